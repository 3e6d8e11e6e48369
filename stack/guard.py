"""A small process that owns one server: when its starter is gone, so is the server.

Run by path (`python -I guard.py SPEC`), never imported by the stack, so that it starts quickly and needs
nothing. SPEC is JSON: argv, control (a socket's descriptor), grace_s, shm_prefix, remove_if_orphaned.

A starter that is killed cannot clean up, and a parent-death signal alone reaches only the direct child, and
fires when the starting *thread* ends. So the starter holds one end of a socket, the guard the other:

    guard → starter   "pid N\\n" once the server runs
    starter → guard   "T" stop it gracefully · "K" kill it · "D" live on without the starter (`make up`)
    end of file       the starter is gone: kill everything, remove its temporary folders

SIGTERM to a guard means "T" (`make down`). If the guard itself is killed, the kernel kills the server.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Our direct children; orphans of the server become ours because we are their subreaper."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


class Guard:
    def __init__(self, spec: dict[str, object]) -> None:
        self.control: socket.socket | None = socket.socket(fileno=int(str(spec["control"])))
        self.grace_s = float(str(spec["grace_s"]))
        self.shm_prefix = str(spec["shm_prefix"])
        remove = spec["remove_if_orphaned"]
        self.remove_if_orphaned = [Path(str(p)) for p in remove] if isinstance(remove, list) else []
        self.remove_after: list[Path] = []
        self.starter: int | None = os.getppid()
        self.kill_at: float | None = None
        self.wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        argv = spec["argv"]
        if not isinstance(argv, list):
            raise TypeError("argv must be a list")
        me = os.getpid()

        def die_with_guard() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:
                os._exit(127)

        self.server = subprocess.Popen(
            [str(a) for a in argv],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_guard,  # safe: this process has one thread
        )
        self.control.sendall(f"pid {self.server.pid}\n".encode())

    def run(self) -> int:
        """Until the server has ended and nothing of it is left. Returns its exit code, 128 + n for signal n."""
        while self.server.poll() is None:
            self._wait()
        code = self.server.returncode
        self._sweep()
        # last: whoever waits for a folder to go may then rely on all the rest being gone
        for path in self.remove_after:
            shutil.rmtree(path, ignore_errors=True)
        return code if code >= 0 else 128 - code

    def _wait(self) -> None:
        watched: list[int | socket.socket] = [self.wake]
        if self.control is not None:
            watched.append(self.control)
        until_kill = 1.0 if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
        ready, _, _ = select.select(watched, [], [], min(1.0, until_kill))
        if self.wake in ready:
            for number in os.read(self.wake, 64):
                if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    self._terminate()
        if self.control is not None and self.control in ready:
            self._obey(self.control)
        # A fork of the starter may hold the socket's other end open: its pid tells as well.
        if self.control is not None and self.starter not in (None, os.getppid()):
            self._orphaned()
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self._kill()

    def _obey(self, control: socket.socket) -> None:
        try:
            orders = control.recv(64)
        except OSError:
            orders = b""
        if not orders:
            self._orphaned()
        for order in orders:
            if order == ord("T"):
                self._terminate()
            elif order == ord("K"):
                self._kill()
            elif order == ord("D"):
                self.control = None
                control.close()

    def _orphaned(self) -> None:
        self.control = None
        self.remove_after = self.remove_if_orphaned
        self._kill()

    def _terminate(self) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.grace_s
            with contextlib.suppress(ProcessLookupError):
                self.server.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.server.pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """End what the server left behind: its group, orphans that became our children, shared memory."""
        self._kill()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = _children() if sys.platform == "linux" else []
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self.shm_prefix:
            for region in Path("/dev/shm").glob(self.shm_prefix + "*"):  # noqa: S108
                region.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(Guard(json.loads(sys.argv[1])).run())
