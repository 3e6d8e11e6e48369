"""Logs to stderr: text for people at a terminal, one JSON object per line for machines.

Extra fields (`log.info("paused", extra={"partition": 3})`) become `key=value` or JSON members. A prompt or an answer
never reaches a log: fields that could carry one are dropped by name, and messages are cut.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

import orjson

MAX_MESSAGE_CHARS = 2000
MAX_FIELD_CHARS = 500
MAX_TRACEBACK_CHARS = 8000

LIBRDKAFKA_LOGGER = "librdkafka"

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NEVER_LOGGED = frozenset({"prompt", "response", "value", "body", "metadata", "password", "token"})
_RESERVED = frozenset({"ts", "level", "logger", "slot", "exception"})


def configure(level: str, log_format: Literal["json", "text"] | None, slot: int | None = None) -> None:
    """Set up logging of this process, once, first thing.

    `level`: debug, info, warning or error. `log_format` None: text if stderr is a terminal, else JSON.
    `slot`: number of the worker process, printed with every line; None in the supervisor.
    """
    if log_format is None:
        log_format = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(slot=slot) if log_format == "json" else TextFormatter(slot=slot))
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


class JsonFormatter(logging.Formatter):
    """`{"ts", "level", "logger", "message", …}`, one line."""

    def __init__(self, *, slot: int | None = None) -> None:
        super().__init__()
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
        for name, value in _extras(record):
            members[f"{name}_" if name in _RESERVED else name] = value
        if record.exc_info:
            members["exception"] = _tail(_clean_surrogates(self.formatException(record.exc_info)))
        return orjson.dumps(members).decode()


class TextFormatter(logging.Formatter):
    """`14:03:07 warning [0] intake: partition paused partition=3`."""

    def __init__(self, *, slot: int | None = None) -> None:
        super().__init__()
        self._slot = "" if slot is None else f"[{slot}] "

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception's traceback follows on lines of its own."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        logger = record.name.removeprefix("promptbus_worker.")
        message = _one_line(_clean(_message(record), MAX_MESSAGE_CHARS))
        fields = "".join(f" {name}={_one_line(str(value))}" for name, value in _extras(record))
        line = f"{time} {record.levelname.lower():7} {self._slot}{logger}: {message}{fields}"
        if record.exc_info:
            line += "\n" + _tail(_clean_surrogates(self.formatException(record.exc_info)))
        return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: a log line may never break the path
        return str(record.msg)


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, str | int | float | bool | None]]:
    for name, value in vars(record).items():
        if name in _OF_EVERY_RECORD:
            continue
        if name in _NEVER_LOGGED:
            yield name, "(not logged)"
        elif value is None or isinstance(value, bool | float):
            yield name, value
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
