"""Free ports on loopback, and who holds a taken one."""

import errno
import random
import socket
from pathlib import Path

from stack.errors import PortTaken, StackError

HOST = "127.0.0.1"
# Below the range from which outgoing connections take theirs (32768 on): a server that is stopped and started again
# finds its port still free.
FREE_RANGE = range(15000, 32000)


def is_free(port: int) -> bool:
    """True if a server could listen on 127.0.0.1:port now. Connections in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_ports(count: int) -> list[int]:
    """Different ports that are free now. Another process may be quicker: servers are started again then."""
    found: list[int] = []
    for port in random.SystemRandom().sample(FREE_RANGE, 500):
        if is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise StackError(f"No {count} free ports between {FREE_RANGE.start} and {FREE_RANGE.stop} on {HOST}.")


def holder(port: int) -> str:
    """Who listens on a port, as "java (pid 4711)"; empty if it cannot be known (another user's, not Linux)."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(_target(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return ""


def _target(fd: Path) -> str:
    """What a file descriptor is; empty if it was closed meanwhile, which says nothing about the others."""
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def require_free(port: int, what: str) -> None:
    """Raises PortTaken, naming the holder if it can be known."""
    if not is_free(port):
        raise PortTaken(taken_sentence(port, what))


def taken_sentence(port: int, what: str) -> str:
    who = holder(port)
    return (
        f"Port {port} on {HOST}, wanted for {what}, is taken{' by ' + who if who else ''}. "
        "Stop that program or choose another port."
    )
