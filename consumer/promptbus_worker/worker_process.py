"""One worker process as its supervisor sees it: started, heard, reaped; and how long to wait before the next one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from promptbus_worker.heartbeat import FD_VARIABLE, SLOT_VARIABLE, Heartbeat, decode_lines

log = logging.getLogger(__name__)

DUMP_S = 1.0
"""What a stuck process has for writing its stacks before it is killed."""


class Exit(IntEnum):
    """Exit codes of a worker process. Anything else, and death by signal, is a crash."""

    DRAINED = 0
    GAVE_UP = 1  # a restart would not mend it
    CONFIGURATION = 2
    DRAIN_TIMED_OUT = 3
    FAILED = 4  # a restart may mend it


@dataclass(slots=True)
class Backoff:
    """How long a slot waits before its next process. Pure: the times of a process are passed in."""

    first_s: float = 0.5
    longest_s: float = 30.0
    healthy_s: float = 30.0
    hopeless_after: int = 8
    _failures: int = 0
    _never_ready: int = 0

    def failed(self, lived_s: float, *, was_ready: bool) -> float:
        """Note that a process ended unasked after `lived_s`; seconds to wait, doubling up to `longest_s`."""
        lived_long = lived_s >= self.healthy_s
        self._never_ready = 0 if was_ready or lived_long else self._never_ready + 1
        self._failures = 1 if lived_long else self._failures + 1
        # The exponent is capped: years of failures must not make it overflow.
        return min(self.longest_s, self.first_s * float(1 << min(self._failures - 1, 20)))

    @property
    def hopeless(self) -> bool:
        """Whether the last `hopeless_after` processes all ended quickly, and none was ever ready."""
        return self._never_ready >= self.hopeless_after


class WorkerProcess:
    """A running worker. Its standard input is our pipe: when we die, however we die, it reads the end and drains."""

    def __init__(self, slot: int, command: Sequence[str], env: Mapping[str, str], now: float) -> None:
        """Start it. Raises OSError when the system cannot (no memory, too many processes)."""
        self.slot = slot
        self.started_at = now
        self.heard_at = now
        self.heartbeat: Heartbeat | None = None
        self.was_ready = False
        self.stuck: str | None = None
        self._kill_at = float("inf")
        self._buffer = bytearray()
        read_fd, write_fd = os.pipe()
        try:
            # A session of its own: a terminal's Ctrl-C reaches the supervisor alone, which then decides.
            self._process = subprocess.Popen(
                command,
                env={**env, SLOT_VARIABLE: str(slot), FD_VARIABLE: str(write_fd)},
                stdin=subprocess.PIPE,
                pass_fds=(write_fd,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        os.set_blocking(read_fd, False)
        self.heartbeat_fd: int | None = read_fd

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def listen(self, now: float) -> bool:
        """Take in what the worker has sent. False: it has closed its pipe, so it is gone or going."""
        if self.heartbeat_fd is None:
            return False
        try:
            data = os.read(self.heartbeat_fd, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._buffer += data
        for heartbeat in decode_lines(self._buffer):
            self.heartbeat = heartbeat
            self.heard_at = now
            self.was_ready = self.was_ready or heartbeat.ready
        return True

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()

    def drain(self) -> None:
        """Ask it to finish what it has dispatched, and to exit."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def give_up(self, why: str, now: float) -> None:
        """It is stuck: let it write all its threads' stacks to stderr (`worker.main`); `kill_if_due` ends it."""
        self.stuck = why
        self._kill_at = now + DUMP_S
        log.error(
            "worker is stuck: %s; its threads' stacks follow on stderr, then it is killed and started again",
            why,
            extra={"worker": self.slot, "worker_pid": self.pid, "state": _state(self.pid)},
        )
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)

    def kill_if_due(self, now: float) -> None:
        """End it if it was given up and has had its time."""
        if now >= self._kill_at:
            self.kill()

    def kill(self) -> None:
        """End it at once, frozen or not."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def release(self) -> None:
        """Wait for its end and close the pipes; only after it exited or was killed."""
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.heartbeat_fd is not None:
            os.close(self.heartbeat_fd)
            self.heartbeat_fd = None


def is_crash(code: int) -> bool:
    """Whether a process ended by its own fault. SIGKILL and SIGTERM come from outside (an operator, a full machine)."""
    if code < 0:
        return -code not in (signal.SIGKILL, signal.SIGTERM)
    return code not in set(Exit)


def describe_exit(code: int) -> str:
    """How a worker ended, for people."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    match code:
        case Exit.DRAINED:
            return "drained although nobody asked it to"
        case Exit.DRAIN_TIMED_OUT:
            return "did not finish draining in time; what it had in flight is read again"
        case _:
            return f"exited with code {code}"


_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waits for a disk", "Z": "ended"}


def _state(pid: int) -> str:
    """What the kernel says about a process: one that is stopped writes no stacks."""
    with suppress(OSError, IndexError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return _STATES.get(letter, "runs")
    return "unknown"
