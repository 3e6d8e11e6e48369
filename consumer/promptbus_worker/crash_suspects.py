"""Records that may be why a worker process crashed: run alone from then on, and given up after three crashes.

The supervisor learns from a crashed process's file (`in_flight_file`) what it was working on, and keeps the suspects
in a file that all its workers read. Only a crash counts, never SIGKILL or SIGTERM: those come from outside. A suspect
runs with nothing else in flight, so the next crash tells whether it was the one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import orjson

from promptbus_worker.ledger import Place

CRASHES = 3
"""Crashes with a record as the only suspect in flight, after which it is not tried again."""
MOST_SUSPECTS = 10_000
_NAME = "crash_suspects.json"


class CrashSuspects:
    """The supervisor's list. Pure but for `save`."""

    def __init__(self) -> None:
        self.crashes: dict[Place, int] = {}

    def crashed(self, in_flight: Iterable[Place]) -> None:
        """A process crashed while it worked on these."""
        places = set(in_flight)
        suspects = places & self.crashes.keys() or places
        for place in sorted(places - self.crashes.keys()):
            self.crashes[place] = 0
        if len(suspects) == 1:
            self.crashes[suspects.pop()] += 1
        while len(self.crashes) > MOST_SUSPECTS:  # the oldest have long been answered
            del self.crashes[next(iter(self.crashes))]

    def save(self, directory: Path) -> None:
        """For the workers to read. Raises OSError."""
        unfinished = directory / f"{_NAME}.new"
        unfinished.write_bytes(orjson.dumps([[*place, crashes] for place, crashes in self.crashes.items()]))
        unfinished.replace(directory / _NAME)


class KnownSuspects:
    """A worker's view of the list, read again when it was written again."""

    def __init__(self, directory: Path | None) -> None:
        """None: there is no list."""
        self._path = directory / _NAME if directory is not None else None
        self._read_at = (0, 0)
        self._crashes: dict[Place, int] = {}

    @classmethod
    def from_environment(cls) -> Self:
        """In the folder that the supervisor passed."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        return cls(Path(directory) if directory else None)

    def now(self) -> Mapping[Place, int]:
        """The suspects, and for how many crashes each was the only one in flight. Cheap: it looks at a file's date."""
        if self._path is None:
            return self._crashes
        try:
            stat = os.stat(self._path)
            if (stat.st_mtime_ns, stat.st_ino) != self._read_at:
                rows = orjson.loads(self._path.read_bytes())
                self._crashes = {(partition, offset): crashes for partition, offset, crashes in rows}
                self._read_at = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:  # no process has crashed yet
            return self._crashes
        return self._crashes
