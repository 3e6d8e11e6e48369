"""Which records a worker process is working on, told to its supervisor so that it survives the process.

A mapped file per slot: what a process wrote before it crashed is still there afterwards, at no cost of a system call
per batch. It has rows of 512 places; a row is a count and so many (partition, offset), all 64-bit integers in the
machine's byte order. The count is written last and cleared first, so a row never names what it does not hold.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from promptbus_worker.heartbeat import SLOT_VARIABLE
from promptbus_worker.ledger import Place
from promptbus_worker.record import Record

ROW_PLACES = 512
_COUNT = struct.Struct("=q")
_pack_count = _COUNT.pack_into
_PLACE = struct.Struct("=qq")
_ROW_BYTES = _COUNT.size + ROW_PLACES * _PLACE.size


class InFlightFile:
    """The worker's side. Belongs to the event loop."""

    def __init__(self, path: Path | None, rows: int) -> None:
        """Makes the file anew with room for `rows` calls at once; None: in memory only. Raises OSError."""
        size = rows * _ROW_BYTES
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            with path.open("w+b") as file:
                file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        self._free = list(range(rows))

    @classmethod
    def from_environment(cls, rows: int) -> Self:
        """In the folder that the supervisor passed, for this process's slot; in memory only without one."""
        directory, slot = os.environ.get("PROMETHEUS_MULTIPROC_DIR"), os.environ.get(SLOT_VARIABLE)
        return cls(_path(Path(directory), int(slot)) if directory and slot else None, rows)

    def begin(self, records: Sequence[Record]) -> list[int]:
        """From now on the file says that these are being worked on, as far as there are rows; for `end`."""
        numbers: list[int] = []
        for record in records:
            numbers.append(record.ownership.partition)
            numbers.append(record.offset)
        rows: list[int] = []
        for first in range(0, len(numbers), 2 * ROW_PLACES):
            if not self._free:
                break
            part = numbers[first : first + 2 * ROW_PLACES]
            row = self._free.pop()
            rows.append(row)
            start = row * _ROW_BYTES
            _packer(len(part))(self._map, start + _COUNT.size, *part)
            _pack_count(self._map, start, len(part) // 2)
        return rows

    def end(self, rows: Sequence[int]) -> None:
        """These are not worked on any more."""
        for row in rows:
            _pack_count(self._map, row * _ROW_BYTES, 0)
        self._free += rows


@cache
def _packer(numbers: int) -> Callable[..., None]:
    return struct.Struct(f"={numbers}q").pack_into


def read(directory: Path, slot: int) -> set[Place]:
    """What the slot's last process was working on when it ended. The supervisor's side."""
    try:
        data = _path(directory, slot).read_bytes()
    except OSError:  # it ended before it had begun
        return set()
    places: set[Place] = set()
    for start in range(0, len(data) - _ROW_BYTES + 1, _ROW_BYTES):
        (count,) = _COUNT.unpack_from(data, start)
        first = start + _COUNT.size
        places.update(_PLACE.iter_unpack(data[first : first + min(count, ROW_PLACES) * _PLACE.size]))
    return places


def remove(directory: Path, slot: int) -> None:
    """What was in it is known."""
    with suppress(OSError):
        _path(directory, slot).unlink(missing_ok=True)


def _path(directory: Path, slot: int) -> Path:
    return directory / f"in_flight_{slot}.bin"
