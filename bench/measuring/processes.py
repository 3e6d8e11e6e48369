"""CPU and memory of process trees."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

Roles = Mapping[str, Callable[[], list[psutil.Process]]]
"""Who is measured: a name, and how to find its processes."""


def tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants; none if it is gone."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def processes(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of them that live."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def cpu_s(roles: Roles) -> dict[str, float]:
    """Seconds of CPU, user and system, that each role's living processes have used so far."""
    return {role: sum(map(_cpu_s, find())) for role, find in roles.items()}


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def peak_memory_mb(pid: int) -> float:
    """The most that one process of this tree was ever resident, in MB; 0 if all are gone."""
    return max((_peak_mb(process.pid) for process in tree(pid)), default=0.0)


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
