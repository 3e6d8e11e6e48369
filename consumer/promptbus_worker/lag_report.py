"""Tells the supervisor about once a second how far behind this worker's partitions are. On the consumer's thread."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Self

from promptbus_worker import lag_files
from promptbus_worker.deadline import Clock
from promptbus_worker.heartbeat import SLOT_VARIABLE
from promptbus_worker.lag import LagMeter, PartitionLag
from promptbus_worker.ledger import Ledger
from promptbus_worker.log_ends import Consumer, LogEnds

log = logging.getLogger(__name__)

EVERY_S = 1.0


class LagReport:
    """One worker's. It never raises: neither a full disk nor a defect in here may stop the path."""

    def __init__(
        self, directory: Path, slot: int, *, clock: Clock = time.monotonic, wall_clock: Clock = time.time
    ) -> None:
        self._directory = directory
        self._slot = slot
        self._clock = clock
        self._wall_clock = wall_clock
        self._meter = LagMeter()
        self._ends = LogEnds()
        self._due_at = float("-inf")
        self._last: list[PartitionLag] = []
        self._failing = False

    @classmethod
    def from_environment(cls) -> Self | None:
        """The report of the slot that the supervisor gave this process; None without one."""
        slot, directory = os.environ.get(SLOT_VARIABLE), os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        return cls(Path(directory), int(slot)) if slot is not None and directory else None

    def send_if_due(self, consumer: Consumer, ledger: Ledger, *, fetching: bool) -> None:
        """Measure and write, once a second. `fetching`: partitions are not paused."""
        now = self._clock()
        if now < self._due_at:
            return
        self._due_at = now + EVERY_S
        try:
            progress = ledger.progress()
            next_offsets = {each.ownership: each.next_offset for each in progress}
            ends = self._ends.read(consumer, next_offsets, fetching=fetching, now=now)
            self._last = self._meter.measure(progress, ends, now=now, wall_ms=self._wall_clock() * 1000)
            self._write()
        except Exception:
            self._failed()

    def keep_only(self, ledger: Ledger) -> None:
        """Partitions have gone: say so at once, for their next owner is about to name them too."""
        owned = {(ownership.topic, ownership.partition) for ownership in ledger.ownerships()}
        self._last = [lag for lag in self._last if (lag.topic, lag.partition) in owned]
        try:
            self._write()
        except Exception:
            self._failed()

    def _write(self) -> None:
        lag_files.write(self._directory, self._slot, self._last, self._clock())
        self._failing = False

    def _failed(self) -> None:
        if not self._failing:
            log.exception("the lag of partitions cannot be reported")
        self._failing = True
