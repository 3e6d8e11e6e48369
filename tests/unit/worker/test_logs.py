"""What a log line looks like, and what may never be in one."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from promptbus_worker import logs
from promptbus_worker.logs import JsonFormatter, LimitedHandler, TextFormatter
from promptbus_worker.redaction import ServerText
from promptbus_worker.repeats import Allowance
from tests.unit.worker.scripted import until

FORMATTERS: list[Callable[[], logging.Formatter]] = [
    lambda: JsonFormatter(slot=2),
    lambda: TextFormatter(slot=2),
]


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    logger = logging.Logger("promptbus_worker.intake")
    return logger.makeRecord(logger.name, logging.WARNING, "f", 1, message, args, exc_info, extra=extra)


def test_json_carries_the_record_and_its_fields() -> None:
    line = JsonFormatter(slot=2).format(record("paused %s", "it", partition=3, lag_s=0.5))
    parsed = json.loads(line)
    assert parsed.pop("ts").endswith("Z")
    assert parsed == {
        "level": "warning",
        "logger": "promptbus_worker.intake",
        "message": "paused it",
        "slot": 2,
        "partition": 3,
        "lag_s": 0.5,
    }


def test_text_carries_the_slot_the_short_name_and_the_fields() -> None:
    line = TextFormatter(slot=2).format(record("paused", partition=3, topic=None))
    assert line.endswith(" warning [2] intake: paused partition=3 topic=None")


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_fields_that_could_hold_a_prompt_are_not_printed(formatter: Callable[[], logging.Formatter]) -> None:
    line = formatter().format(record("odd", prompt="my secret", response="my secret", value=b"my secret"))
    assert "my secret" not in line


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_a_prompt_is_shown_only_where_it_is_asked_for(
    formatter: type[JsonFormatter | TextFormatter],
) -> None:
    prompt = "tell me a secret " + "x" * 300
    failed = record("failed", prompt=prompt.encode(), detail=ServerText(f"ValueError: {prompt}", [prompt]))
    quiet = formatter().format(failed)
    assert "secret" not in quiet
    assert "xxx" not in quiet
    assert "ValueError: (prompt)" in quiet
    shown = formatter(prompts=True).format(failed)
    assert prompt[:200] + "…" in shown
    assert f"ValueError: {prompt}" in shown
    assert "prompt=" not in TextFormatter(prompts=True).format(record("no request", prompt=None))


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "text",
    ["a\nforged line", "a\r\x1b[2Jb", "lone \udcff surrogate", "\x00", "emoji 🙂 ok", "\u2028"],
)
def test_foreign_text_never_breaks_out_of_its_line(
    formatter: Callable[[], logging.Formatter], text: str
) -> None:
    line = formatter().format(record("%s", text, field=text))
    assert "\n" not in line
    assert "\x1b" not in line
    line.encode()


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_long_messages_and_fields_are_cut_and_say_so(formatter: Callable[[], logging.Formatter]) -> None:
    line = formatter().format(record("m" * 100_000, detail="d" * 100_000))
    assert len(line) < 4000
    assert "(100000 characters)" in line


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_arguments_that_do_not_fit_are_no_error(formatter: Callable[[], logging.Formatter]) -> None:
    assert "%d of %s" in formatter().format(record("%d of %s", "three"))


def test_json_keeps_a_traceback_in_one_line_and_numbers_too_big_as_text() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info(), level="x", offset=2**64))
    parsed = json.loads(line)
    assert "ValueError: why" in parsed["exception"]
    assert parsed["offset"] == str(2**64)
    assert parsed["level"] == "warning"
    assert parsed["level_"] == "x"


def test_without_a_terminal_json_goes_to_stderr_and_the_level_holds() -> None:
    program = """
import logging, warnings
from promptbus_worker import logs
logs.configure("warning", None, 1)
logs.configure("warning", None, 1)  # twice does not print twice
logging.getLogger("promptbus_worker.x").info("no")
logging.getLogger("promptbus_worker.x").warning("yes")
warnings.warn("old", stacklevel=1)
logs.librdkafka_logger().error("from librdkafka")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["slot"]) for line in lines] == [
        ("promptbus_worker.x", 1),
        ("py.warnings", 1),
        ("librdkafka", 1),
    ]


# -- repeats


class Written:
    """A logger of its own whose lines end in a string."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, window_s: float = 1000.0) -> None:
        monkeypatch.setattr(logs, "ALLOWANCE", Allowance(10, window_s))
        self.stream = io.StringIO()
        self.handler = LimitedHandler(self.stream)
        self.handler.setFormatter(TextFormatter())
        self.log = logging.Logger("promptbus_worker.runner", logging.DEBUG)
        self.log.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return [line.partition(": ")[2] for line in self.stream.getvalue().splitlines()]


def test_a_flood_is_a_handful_of_lines_and_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch)
    for number in range(10_000):
        written.log.warning("call %d failed", number)
        if number % 1000 == 0:
            written.log.error("something else")
    written.handler.close()
    lines = written.lines
    assert len(lines) == 10 + 10 + 1
    assert lines.count("something else") == 10
    assert lines[-1] == "… 9,990 more like this in 1000 s: call %d failed"


def test_the_count_comes_without_another_line_when_the_flood_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch, window_s=0.2)
    for _ in range(100):
        written.log.warning("again")
    until(lambda: any("more like this" in line for line in written.lines), "the timer")
    told = sum(int(line.split()[1]) for line in written.lines if "more like this" in line)
    assert told + written.lines.count("again") == 100
    until(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()), "no timer left")


def test_different_errors_are_different_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch)
    for error in (ValueError("a"), KeyError("b")):
        for _ in range(20):
            try:
                raise error
            except Exception:
                written.log.exception("a batch failed")
    for text in ("this", "that"):
        for _ in range(20):
            written.log.error("%s", text)
    assert written.stream.getvalue().count("ValueError: a") == 10
    assert written.stream.getvalue().count("KeyError: 'b'") == 10
    assert written.lines.count("this") == written.lines.count("that") == 10
    written.handler.close()
    assert sum("… 10 more like this" in line for line in written.lines) == 4


def test_debugging_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch)
    for _ in range(100):
        written.log.debug("detail")
    assert written.lines == ["detail"] * 100


def test_a_dead_broker_is_a_few_lines_of_librdkafka() -> None:
    program = """
import logging, time
from confluent_kafka import Producer
from promptbus_worker import logs
logs.configure("info", "text")
seen = []
logging.getLogger(logs.LIBRDKAFKA_LOGGER).addFilter(lambda record: seen.append(record) or True)
producer = Producer({"bootstrap.servers": "127.0.0.1:1", "reconnect.backoff.max.ms": 1, "reconnect.backoff.ms": 1,
                     "logger": logs.librdkafka_logger()})
end = time.monotonic() + 50
while len(seen) < 20 and time.monotonic() < end:
    producer.poll(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.splitlines()
    assert 1 < len(lines) < 10, lines
    assert any("more like this in 60 s: FAIL" in line for line in lines), lines
