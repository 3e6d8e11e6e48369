"""What a worker process tells its supervisor: one JSON line about every half second, over an inherited pipe.

The supervisor never asks; a worker whose lines stop, or whose `poll_age_s` grows, is stuck. The pipe's end of file
means that the process is gone.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Self

import orjson

FD_VARIABLE = "PROMPTBUS_HEARTBEAT_FD"
SLOT_VARIABLE = "PROMPTBUS_SLOT"

DRAINING = "draining"
"""`stopping` of a worker that stops because it was told to."""

# A line stays below PIPE_BUF (4,096 bytes on Linux): such writes are never torn apart.
_MAX_TEXT_CHARS = 300
_MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of one worker process.

    `ready`: brokers were reached and the model's metadata was read once.
    `poll_age_s`: seconds since the Kafka consumer thread last made progress.
    `oldest_call_s`: for how long the inference call that began first has been running; 0 if none does.
    `stopping`: why the worker is about to exit, for people; None while it runs.
    `waiting_for`: what is missing before it is ready, for people ("Triton at localhost:8000").
    """

    ready: bool
    poll_age_s: float
    stopping: str | None = None
    waiting_for: str | None = None
    oldest_call_s: float = 0.0

    def encode(self) -> bytes:
        """One line of JSON with its newline, short enough for one atomic write to a pipe."""
        members = asdict(self)
        members["stopping"] = _cut(self.stopping)
        members["waiting_for"] = _cut(self.waiting_for)
        return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)


def decode_lines(buffer: bytearray) -> list[Heartbeat]:
    """Take every complete line out of `buffer`, oldest first; a line that is no heartbeat is dropped."""
    heartbeats: list[Heartbeat] = []
    while (end := buffer.find(b"\n")) >= 0:
        heartbeat = _decode(bytes(buffer[:end]))
        del buffer[: end + 1]
        if heartbeat is not None:
            heartbeats.append(heartbeat)
    if len(buffer) > _MAX_LINE_BYTES:
        buffer.clear()
    return heartbeats


class HeartbeatWriter:
    """The worker's end. Writing never blocks and never raises: a frozen supervisor must not stop the path."""

    def __init__(self, fd: int) -> None:
        """`fd`: the pipe's write end, open. It is set non-blocking, and not passed on to further children."""
        self._fd = fd
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)

    @classmethod
    def from_environment(cls) -> Self:
        """The pipe that the supervisor passed. Raises RuntimeError outside of a supervised worker process."""
        fd = os.environ.get(FD_VARIABLE, "")
        if not fd.isascii() or not fd.isdigit():
            raise RuntimeError(f"{FD_VARIABLE} is not set: start the worker with `promptbus worker`")
        return cls(int(fd))

    def write(self, heartbeat: Heartbeat) -> bool:
        """Send one heartbeat. False: not sent, because the supervisor is gone or has not read for minutes."""
        try:
            os.write(self._fd, heartbeat.encode())
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def close(self) -> None:
        """Close the pipe; the supervisor sees its end."""
        os.close(self._fd)


def _cut(text: str | None) -> str | None:
    # JSON makes at most 6 bytes of a character, so two texts stay below 4,096. A lone surrogate (they come with the
    # texts of OS errors) would make orjson refuse the whole line.
    if text is None:
        return None
    return text[:_MAX_TEXT_CHARS].encode("utf-8", "replace").decode()


def _decode(line: bytes) -> Heartbeat | None:
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    match members:
        case {"ready": bool(ready), "poll_age_s": float() | int() as age}:
            stopping, waiting_for = members.get("stopping"), members.get("waiting_for")
            oldest_call_s = members.get("oldest_call_s")
            return Heartbeat(
                ready=ready,
                poll_age_s=float(age),
                stopping=stopping if isinstance(stopping, str) else None,
                waiting_for=waiting_for if isinstance(waiting_for, str) else None,
                oldest_call_s=float(oldest_call_s) if isinstance(oldest_call_s, int | float) else 0.0,
            )
        case _:
            return None
