"""One server process: start, readiness, stop, kill. Nothing of it survives its starter (see guard.py)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stack.errors import StackError, StartFailed

GUARD = Path(__file__).with_name("guard.py")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
LOOPBACK = "127.0.0.1,localhost,::1"


def server_environment(
    extra: Mapping[str, str] | None = None, *, keep_proxies: bool = False
) -> dict[str, str]:
    """The environment of a child: ours without proxies (they are for downloads) and without Python's paths.

    With `keep_proxies` (a worker whose Triton is elsewhere) only loopback is taken out of their reach.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if (keep_proxies or name.lower() not in PROXY_VARIABLES) and name not in ("PYTHONPATH", "PYTHONHOME")
    }
    if keep_proxies:
        given = kept.get("no_proxy") or kept.get("NO_PROXY") or ""
        kept["NO_PROXY"] = kept["no_proxy"] = ",".join(filter(None, [given, LOOPBACK]))
    else:
        kept["NO_PROXY"] = kept["no_proxy"] = LOOPBACK
    return kept | dict(extra or {})


def end_like_an_interrupt() -> None:
    """SIGTERM and a closed terminal shall clean up as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log, at most 16 KiB of it; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class Process:
    """A server under its guard. `pid` is the server's own, for tests that freeze or kill it."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        grace_s: float = 10.0,
        shm_prefix: str = "",
        remove_if_orphaned: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.log = log
        ours, theirs = socket.socketpair()
        spec = {
            "argv": [str(a) for a in argv],
            "control": theirs.fileno(),
            "grace_s": grace_s,
            "shm_prefix": shm_prefix,
            "remove_if_orphaned": [str(p) for p in remove_if_orphaned],
        }
        with log.open("ab") as output, theirs:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        self._control = ours
        self._grace_s = grace_s
        try:
            answer = ours.recv(64)
        except BaseException:
            self.kill()
            raise
        if not answer.startswith(b"pid "):
            self._reap(10)
            raise StartFailed(f"{name} could not be started:\n{tail(log)}")
        self.pid = int(answer.split()[1])

    @property
    def guard_pid(self) -> int:
        """The process to which `make down` sends SIGTERM."""
        return self._guard.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + n when signal n ended it."""
        return self._guard.poll()

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting."""
        self._order(b"T")

    def stop(self) -> int:
        """SIGTERM, and SIGKILL after the grace period. Returns the exit code; nothing of it is left then."""
        self.ask_to_stop()
        return self._reap(self._grace_s + 10)

    def kill(self) -> int:
        """SIGKILL for the server and everything it started."""
        self._order(b"K")
        return self._reap(10)

    def detach(self) -> None:
        """Let it live on when this process ends (`make up`)."""
        self._order(b"D")
        self._control.close()

    def signal(self, number: signal.Signals) -> None:
        """Send the server itself a signal, such as SIGSTOP and SIGCONT."""
        if self.running:
            os.kill(self.pid, number)

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float, explain: Callable[[str], str]) -> None:
        """Ask `ready` until it says yes. Otherwise ends the process and raises StartFailed.

        `explain` turns the log's tail into a sentence; empty when it knows none.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not ready():
                if not self.running:
                    raise StartFailed(self._ended(explain))
                if time.monotonic() > deadline:
                    reason = explain(tail(self.log, 200)) or "Its log ends with:\n" + tail(self.log)
                    raise StartFailed(f"{self.name} did not become ready within {timeout_s:.0f} s. {reason}")
                time.sleep(0.03)
        except BaseException:
            self.kill()
            raise

    def _ended(self, explain: Callable[[str], str]) -> str:
        code = self.exit_code
        known = explain(tail(self.log, 200))
        if known:
            return f"{self.name} did not start. {known}"
        if code == 128 + signal.SIGKILL:
            return (
                f"{self.name} was killed while it started, most likely because memory ran out. "
                "Free some memory (`free -m` shows it) and try again."
            )
        return (
            f"{self.name} ended with exit code {code} while it started. Its log ends with:\n{tail(self.log)}"
        )

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(order)

    def _reap(self, timeout_s: float) -> int:
        try:
            code = self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # the kernel then kills the server
            self._guard.wait()
            raise StackError(f"{self.name} did not end within {timeout_s:.0f} s and was killed.") from None
        finally:
            self._control.close()
        return code
