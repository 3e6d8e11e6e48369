"""Where reading begins in a partition that was just assigned (DESIGN rule 3).

Nothing of a partition is delivered before its committed offset was read; failing to read it is tried again, never
replaced by a default. A group that has committed nothing begins where KAFKA_START says, at an explicit offset that
is committed at once: a worker that dies before its first commit must not skip what arrived in between.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from promptbus_worker.commit_metadata import decode
from promptbus_worker.ledger import Ownership

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 2.0
NOWHERE = 0
"""Where a paused partition stands until its position is known. Nothing is read from there, but it must be a number:
"end" would be looked up, and librdkafka, when that answer comes after the seek to the position, looks it up once more
and goes there. All records before the end would be skipped without a word."""


class Position(NamedTuple):
    """The next offset to read, whether the group has committed it, and what is settled above it already."""

    offset: int
    committed: bool
    settled_before: Sequence[tuple[int, int]] = ()


class Consumer(Protocol):
    """What is used of confluent_kafka.Consumer."""

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def incremental_assign(self, partitions: list[TopicPartition]) -> None: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition) -> None: ...


class Positions:
    """Finds positions and moves the consumer to them. On the consumer's thread."""

    def __init__(self, *, start_at_end: bool) -> None:
        """`start_at_end`: KAFKA_START=latest."""
        self._start_at_end = start_at_end
        self.unknown: list[Ownership] = []
        """Partitions that were taken over without a position: `find` it and `move` them."""

    def find(self, consumer: Consumer, ownerships: Sequence[Ownership]) -> dict[Ownership, Position]:
        """The positions that can be read now; the others are to be asked for again."""
        found: dict[Ownership, Position] = {}
        by_partition = {(o.topic, o.partition): o for o in ownerships}
        try:
            answers = consumer.committed([TopicPartition(*key) for key in by_partition], READ_TIMEOUT_S)
        except KafkaException as error:
            log.warning("committed offsets cannot be read, trying again", extra={"error": str(error)})
            return found
        for answer in answers:
            ownership = by_partition[answer.topic, answer.partition]
            if answer.error is not None:
                log.warning(
                    "a committed offset cannot be read, trying again",
                    extra={"partition": answer.partition, "error": str(answer.error)},
                )
            elif answer.offset >= 0:
                settled = tuple(decode(answer.offset, answer.metadata))
                found[ownership] = Position(answer.offset, committed=True, settled_before=settled)
            elif (start := self._start(consumer, ownership)) is not None:
                found[ownership] = Position(start, committed=False)
        return found

    def begin(
        self, consumer: Consumer, found: Mapping[Ownership, Position], unpositioned: Iterable[Ownership]
    ) -> None:
        """Take the partitions over: at their positions, or paused where the position is not known yet."""
        missing = [o for o in unpositioned if o not in found]
        known = [TopicPartition(o.topic, o.partition, p.offset) for o, p in found.items()]
        unknown = [TopicPartition(o.topic, o.partition, NOWHERE) for o in missing]
        consumer.incremental_assign(known + unknown)
        if unknown:
            consumer.pause(unknown)
        self.unknown += missing

    def move(self, consumer: Consumer, ownership: Ownership, position: Position) -> bool:
        """Move a partition that was taken over without a position to it. False: try again."""
        partition = TopicPartition(ownership.topic, ownership.partition, position.offset)
        try:
            consumer.seek(partition)
            consumer.resume([partition])
        except KafkaException as error:
            log.warning(
                "reading cannot begin yet, trying again",
                extra={"partition": ownership.partition, "error": str(error)},
            )
            return False
        self.unknown = [other for other in self.unknown if other is not ownership]
        return True

    def look_again(self, consumer: Consumer, ownerships: Sequence[Ownership]) -> None:
        """The positions of these are not known any more."""
        self.unknown += ownerships
        with suppress(KafkaException):  # what is read on is dropped
            consumer.pause([TopicPartition(o.topic, o.partition) for o in ownerships])

    def forget(self) -> None:
        """Some epochs are over: nothing is looked for on their behalf."""
        self.unknown = [ownership for ownership in self.unknown if ownership.live]

    def _start(self, consumer: Consumer, ownership: Ownership) -> int | None:
        # Not get_watermark_offsets: of its two questions to the broker one may fail, and it then returns the other's
        # answer for both. The end, taken for the beginning, would skip all that is there.
        end = OFFSET_END if self._start_at_end else OFFSET_BEGINNING
        partition = TopicPartition(ownership.topic, ownership.partition, end)
        try:
            (answer,) = consumer.offsets_for_times([partition], READ_TIMEOUT_S)
        except KafkaException as failure:
            why = str(failure)
        else:
            if answer.error is None and answer.offset >= 0:
                return answer.offset
            why = str(answer.error)
        log.warning(
            "the log's ends cannot be read, trying again",
            extra={"partition": ownership.partition, "error": why},
        )
        return None
