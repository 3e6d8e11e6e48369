"""What a log line looks like, and what may never be in one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from promptbus_worker.logs import JsonFormatter, TextFormatter

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
