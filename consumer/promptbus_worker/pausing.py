"""Whether the consumer's partitions are paused: all of them or none. On the consumer's thread.

Polling goes on meanwhile. A pause throws prefetched records away, so a moment without room is none. Partitions whose
position is not known are paused as well, but by `positions`, which resumes them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition

from promptbus_worker.ledger import Ledger, Ownership
from promptbus_worker.positions import Positions

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_AFTER_S = 2.0
"""Without room for this long, partitions are paused."""


class Pausing:
    """Pauses and resumes."""

    def __init__(self, ledger: Ledger, positions: Positions, metrics: Metrics) -> None:
        self._ledger = ledger
        self._positions = positions
        self._metrics = metrics
        self.held = False
        """Whether somebody wants a pause. Any thread may set it."""
        self.paused: bool | None = False
        """None: unknown, for the set of partitions has changed."""
        self._no_room_since: float | None = None

    def update(self, consumer: Consumer, room: int, now: float, *, done: bool) -> None:
        """Pause or resume, if need be. `room`: for so many records; `done`: nothing more is wanted."""
        if room > 0:
            self._no_room_since = None
        elif self._no_room_since is None:
            self._no_room_since = now
        starved = self._no_room_since is not None and now - self._no_room_since >= PAUSE_AFTER_S
        wanted = self.held or done or starved
        if wanted == self.paused:
            return
        ready = [o for o in self._ledger.ownerships() if o not in self._positions.unknown]
        partitions = [TopicPartition(ownership.topic, ownership.partition) for ownership in ready]
        if not partitions:
            return
        try:
            (consumer.pause if wanted else consumer.resume)(partitions)
        except KafkaException as error:
            log.warning("partitions could not be paused or resumed", extra={"error": str(error)})
            return
        self.paused = wanted
        self.update_gauges()

    def assigned(self, consumer: Consumer, new: Sequence[Ownership]) -> None:
        """These have come: pause them at once if the others are, for this very poll could return a record of them."""
        if self.paused:
            consumer.pause([TopicPartition(ownership.topic, ownership.partition) for ownership in new])
        self.paused = None

    def update_gauges(self) -> None:
        """How many partitions there are, and how many of them are paused."""
        owned = len(self._ledger.ownerships())
        self._metrics.assigned_partitions.set(owned)
        self._metrics.paused_partitions.set(owned if self.paused else 0)
