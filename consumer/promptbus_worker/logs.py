"""Logs to stderr: text for people at a terminal, one JSON object per line for machines.

Extra fields (`log.info("paused", extra={"partition": 3})`) become `key=value` or JSON members. A prompt or an answer
never reaches a log unless LOG_PROMPTS asks for it: fields that could carry one are dropped by name, quotations in
servers' texts are taken out (`redaction`), and messages are cut. Repeats are left out and counted (`repeats`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from promptbus.masking import masked
from promptbus_worker.redaction import PROMPT_CHARS, ServerText, prompt_text
from promptbus_worker.repeats import Allowance, Kind, LeftOut, Repeats

MAX_MESSAGE_CHARS = 2000
MAX_FIELD_CHARS = 500
MAX_TRACEBACK_CHARS = 8000
MAX_TEMPLATE_CHARS = 200

ALLOWANCE = Allowance(lines=10, window_s=10.0)
"""Lines of one kind."""
LIBRDKAFKA_ALLOWANCE = Allowance(lines=3, window_s=60.0)
"""librdkafka tries a dead broker again many times a second, and each of its lines says the same."""

LIBRDKAFKA_LOGGER = "librdkafka"

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NEVER_LOGGED = frozenset({"response", "value", "body", "metadata", "password", "token"})
_RESERVED = frozenset({"ts", "level", "logger", "slot", "exception"})


def configure(
    level: str,
    log_format: Literal["json", "text"] | None,
    slot: int | None = None,
    *,
    prompts: bool = False,
    secrets: Collection[str] = (),
) -> None:
    """Set up logging of this process, once, first thing.

    `level`: debug, info, warning or error. `log_format` None: text if stderr is a terminal, else JSON.
    `slot`: number of the worker process, printed with every line; None in the supervisor. `prompts`: lines about a
    request may show the beginning of its prompt. `secrets` are masked wherever they stand.
    """
    if log_format is None:
        log_format = "text" if sys.stderr.isatty() else "json"
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    handler = LimitedHandler(sys.stderr)
    handler.setFormatter(formatter(slot=slot, prompts=prompts, secrets=secrets))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # Below warning these tell about their own insides, not about ours.
    for name in ("asyncio", "aiohttp", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def librdkafka_logger() -> logging.Logger:
    """Pass this as `logger=` to every confluent-kafka client; without it librdkafka writes to stderr itself.

    Its lines appear when the client is polled.
    """
    return logging.getLogger(LIBRDKAFKA_LOGGER)


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Leaves out repeats above debug level, and says how many once their window is over or the process ends."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repeats = Repeats()
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line or count it. The caller holds the handler's lock."""
        now = time.monotonic()
        kind = _kind(record)
        allowance = LIBRDKAFKA_ALLOWANCE if record.name == LIBRDKAFKA_LOGGER else ALLOWANCE
        written = record.levelno <= logging.DEBUG or self._repeats.admit(kind, allowance, now)
        self._say(self._repeats.over(now))
        if written:
            super().emit(record)
        self._set_timer(now)

    def close(self) -> None:
        """Say what was left out in windows that are still open."""
        with self.lock or threading.RLock():
            if self._timer is not None:
                self._timer.cancel()
            self._say(self._repeats.over(float("inf")))
        super().close()

    def _set_timer(self, now: float) -> None:
        # The flood may be over, and nothing else be logged for hours.
        if self._timer is None and self._repeats.next_end < float("inf"):
            self._timer = threading.Timer(max(0.0, self._repeats.next_end - now), self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        with self.lock or threading.RLock():
            now = time.monotonic()
            self._timer = None
            self._say(self._repeats.over(now))
            self._set_timer(now)

    def _say(self, over: list[LeftOut]) -> None:
        for (name, level, template), lines, window_s in over:
            arguments = (f"{lines:,}", window_s, template)
            message = "… %s more like this in %g s: %s"
            super().emit(logging.LogRecord(name, level, "", 0, message, arguments, None))


def _kind(record: logging.LogRecord) -> Kind:
    template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
    if record.name == LIBRDKAFKA_LOGGER and isinstance(record.args, tuple) and record.args:
        template = str(record.args[0])  # its facility: FAIL, REQTMOUT …; its template is always the same
    elif template == "%s":
        template = _message(record)
    if record.exc_info and record.exc_info[0] is not None:
        template += f" ({record.exc_info[0].__name__})"
    return Kind(record.name, record.levelno, template[:MAX_TEMPLATE_CHARS])


class JsonFormatter(logging.Formatter):
    """`{"ts", "level", "logger", "message", …}`, one line."""

    def __init__(
        self, *, slot: int | None = None, prompts: bool = False, secrets: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._secrets = secrets
        self._prompts = prompts
        self._slot = {} if slot is None else {"slot": slot}

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object without a line break."""
        members: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(_message(record), MAX_MESSAGE_CHARS),
            **self._slot,
        }
        for name, value in _extras(record, prompts=self._prompts):
            members[f"{name}_" if name in _RESERVED else name] = value
        if record.exc_info:
            members["exception"] = _tail(_clean_surrogates(self.formatException(record.exc_info)))
        return masked(orjson.dumps(members).decode(), self._secrets)


class TextFormatter(logging.Formatter):
    """`14:03:07 warning [0] intake: partition paused partition=3`."""

    def __init__(
        self, *, slot: int | None = None, prompts: bool = False, secrets: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._secrets = secrets
        self._prompts = prompts
        self._slot = "" if slot is None else f"[{slot}] "

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception's traceback follows on lines of its own."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        logger = record.name.removeprefix("promptbus_worker.")
        message = _one_line(_clean(_message(record), MAX_MESSAGE_CHARS))
        fields = "".join(
            f" {name}={_one_line(str(value))}" for name, value in _extras(record, prompts=self._prompts)
        )
        line = f"{time} {record.levelname.lower():7} {self._slot}{logger}: {message}{fields}"
        if record.exc_info:
            line += "\n" + _tail(_clean_surrogates(self.formatException(record.exc_info)))
        return masked(line, self._secrets)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: a log line may never break the path
        return str(record.msg)


def _extras(
    record: logging.LogRecord, *, prompts: bool
) -> Iterator[tuple[str, str | int | float | bool | None]]:
    for name, value in vars(record).items():
        if name in _OF_EVERY_RECORD:
            continue
        if name == "prompt":
            if prompts and (text := prompt_text(value)):
                yield name, _clean(text, PROMPT_CHARS)
            continue
        if name in _NEVER_LOGGED:
            yield name, "(not logged)"
        elif value is None or isinstance(value, bool | float):
            yield name, value
        elif isinstance(value, ServerText):
            yield name, _clean(value.text if prompts else str(value), MAX_FIELD_CHARS)
        elif isinstance(value, int):
            yield name, value if -(2**53) < value < 2**53 else str(value)
        else:
            yield name, _clean(str(value), MAX_FIELD_CHARS)


def _timestamp(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _clean(text: str, limit: int) -> str:
    text = _clean_surrogates(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _clean_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _one_line(text: str) -> str:
    # A text that others wrote must not be able to forge a line of its own, or to drive the terminal.
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _tail(traceback: str) -> str:
    return traceback if len(traceback) <= MAX_TRACEBACK_CHARS else "…" + traceback[-MAX_TRACEBACK_CHARS:]
