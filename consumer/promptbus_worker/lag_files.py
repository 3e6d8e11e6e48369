"""The way of partitions' lag from a worker to its supervisor: one small file per slot, replaced about once a second.

prometheus_client's own files will not do: in them a partition that moves is summed over both workers, and a series
once there stays. Nor will the heartbeat: its line is short, and partitions are many. A file counts only while its
process runs and while it is young, so what a dead or silent worker owned vanishes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from promptbus_worker.lag import PartitionLag

STALE_S = 10.0


def write(directory: Path, slot: int, lags: Sequence[PartitionLag], now: float) -> None:
    """Replace the slot's file as a whole. `now`: monotonic seconds, which all processes share. Raises OSError."""
    path = _path(directory, slot)
    unfinished = path.with_suffix(".new")
    rows = [tuple(lag) for lag in lags]  # orjson takes tuples, but no subclass of theirs
    unfinished.write_bytes(orjson.dumps({"pid": os.getpid(), "at": now, "partitions": rows}))
    unfinished.replace(path)


def read(directory: Path, pids: Mapping[int, int], now: float) -> list[PartitionLag]:
    """What the running workers (slot → process id) own. Of a partition that two name, the later assignment."""
    newest: dict[tuple[str, int], PartitionLag] = {}
    for slot, pid in pids.items():
        for lag in _read(_path(directory, slot), pid, now):
            known = newest.get((lag.topic, lag.partition))
            if known is None or lag.since > known.since:
                newest[lag.topic, lag.partition] = lag
    return [newest[key] for key in sorted(newest)]


def remove(directory: Path, slot: int) -> None:
    """The slot's process is gone."""
    with suppress(OSError):
        _path(directory, slot).unlink(missing_ok=True)


def _path(directory: Path, slot: int) -> Path:
    return directory / f"lag_{slot}.json"


def _read(path: Path, pid: int, now: float) -> list[PartitionLag]:
    try:
        members = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    match members:
        case {"pid": int(writer), "at": float(at), "partitions": list(rows)}:
            return [PartitionLag(*row) for row in rows] if writer == pid and now - at <= STALE_S else []
        case _:
            return []
