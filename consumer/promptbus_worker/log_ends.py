"""Where the logs of owned partitions end. On the consumer's thread, which must not stand still for it.

While a partition is fetched, the client knows its end from every answer, and asking the client costs a microsecond.
When nothing is fetched, because partitions are paused or the prefetch queue is full, that stands still: then the
brokers are asked, all partitions in one call, seldom and with a short time-out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition

from promptbus_worker.ledger import Ownership

log = logging.getLogger(__name__)

ASK_EVERY_S = 5.0
ASK_AT_LEAST_EVERY_S = 60.0
"""After each failure the next attempt waits twice as long, up to this: a broker that is gone costs nobody time."""
ASK_TIMEOUT_S = 0.5


class Consumer(Protocol):
    """What is used of confluent_kafka.Consumer."""

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]: ...
    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...


@dataclass(slots=True)
class _End:
    offset: int
    cached: int  # the client's value when it last changed
    learnt_at: float


class LogEnds:
    """The newest known end of each partition."""

    def __init__(self) -> None:
        self._ends: dict[Ownership, _End] = {}
        self._ask_at = float("-inf")
        self._ask_every_s = ASK_EVERY_S

    def read(
        self, consumer: Consumer, next_offsets: Mapping[Ownership, int], *, fetching: bool, now: float
    ) -> dict[Ownership, int]:
        """The end of each partition, where it is known; of the other ones nothing is kept.

        `next_offsets`: the next offset to commit of each. `fetching`: partitions are not paused.
        """
        self._ends = {ownership: end for ownership, end in self._ends.items() if ownership in next_offsets}
        doubtful = []
        for ownership, next_offset in next_offsets.items():
            self._look(consumer, ownership, now if fetching else float("-inf"))
            end = self._ends.get(ownership)
            may_stand_still = end is None or not fetching or end.offset > next_offset
            if may_stand_still and (end is None or now - end.learnt_at >= ASK_EVERY_S):
                doubtful.append(ownership)
        if doubtful and now >= self._ask_at:
            self._ask(consumer, doubtful, now)
        return {ownership: end.offset for ownership, end in self._ends.items()}

    def _look(self, consumer: Consumer, ownership: Ownership, now: float) -> None:
        try:
            _, cached = consumer.get_watermark_offsets(
                TopicPartition(ownership.topic, ownership.partition), cached=True
            )
        except KafkaException:
            return
        end = self._ends.get(ownership)
        if cached >= 0 and (end is None or cached != end.cached):
            self._ends[ownership] = _End(cached, cached, now)

    def _ask(self, consumer: Consumer, ownerships: Sequence[Ownership], now: float) -> None:
        by_partition = {(ownership.topic, ownership.partition): ownership for ownership in ownerships}
        wanted = [TopicPartition(topic, partition, OFFSET_END) for topic, partition in by_partition]
        try:
            answers = consumer.offsets_for_times(wanted, ASK_TIMEOUT_S)
        except KafkaException as error:
            self._ask_every_s = min(2 * self._ask_every_s, ASK_AT_LEAST_EVERY_S)
            log.debug("the ends of partitions cannot be read", extra={"error": str(error)})
        else:
            self._ask_every_s = ASK_EVERY_S
            for answer in answers:
                ownership = by_partition[answer.topic, answer.partition]
                if answer.error is None and answer.offset >= 0:
                    known = self._ends.get(ownership)
                    self._ends[ownership] = _End(answer.offset, known.cached if known else -1, now)
        self._ask_at = now + self._ask_every_s
