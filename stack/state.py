"""What `make up` started, written down so that `make down` ends exactly that.

A process id alone is not enough: after a reboot, or much later, it may be somebody else's. So the start time goes with
it (and on Linux the boot), and signals go through a descriptor that stands for that one process.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stack.cache import PROJECT
from stack.errors import StackError

# Tests have a folder of their own, so that they leave the developer's services alone.
FOLDER = Path(os.environ.get("PROMPTBUS_STACK_FOLDER") or PROJECT / ".stack")
STATE = FOLDER / "state.json"
ENV = FOLDER / "env"


@dataclass(frozen=True, slots=True)
class Server:
    """One server's guard: SIGTERM to it ends the server in an orderly way."""

    name: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        return start_of(self.pid) == self.started


def start_of(pid: int) -> str:
    """When a process was started, as text that only this process has; empty if there is none (or only its zombie)."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else f"{boot} {fields[19]}"
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


@contextlib.contextmanager
def locked(folder: Path = FOLDER) -> Iterator[None]:
    """One `make up` or `make down` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another `make up` or `make down`…", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(servers: Sequence[Server], file: Path = STATE) -> None:
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps([asdict(server) for server in servers], indent=1))
    temporary.replace(file)


def read(file: Path = STATE) -> list[Server]:
    """In the order in which they were started; empty if nothing was. Raises StackError if it cannot be understood."""
    try:
        entries = json.loads(file.read_text())
        return [Server(str(e["name"]), int(e["pid"]), str(e["started"])) for e in entries]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        raise StackError(
            f"{file} is damaged, so it cannot be known what runs. Look with `ps aux | grep guard.py`, "
            f"end what is yours with `kill`, and remove the file."
        ) from None


def write_env(values: Mapping[str, str], file: Path = ENV) -> None:
    """KEY=VALUE lines, for `.` in a shell and for other programs."""
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def read_env(file: Path = ENV) -> dict[str, str]:
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def end(server: Server, timeout_s: float = 40.0) -> None:
    """SIGTERM to the guard and wait for it; SIGKILL after `timeout_s`. Nothing happens if it has ended before."""
    if sys.platform != "linux":
        _end_by_pid(server, timeout_s)
        return
    try:
        process = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return
    try:
        # Asked after it was opened: the descriptor cannot come to mean another process.
        if not server.alive:
            return
        for number, patience in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], patience)[0]:
                return
        raise StackError(f"{server.name} (pid {server.pid}) did not end.")
    finally:
        os.close(process)


def _end_by_pid(server: Server, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    if server.alive:
        os.kill(server.pid, signal.SIGTERM)
    while server.alive:
        if time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
            return
        time.sleep(0.05)
