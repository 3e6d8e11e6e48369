"""What a poll brings: records of current epochs, each tracked in the ledger. On the consumer's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from promptbus.messages import Headers
from promptbus_worker.deadline import Clock
from promptbus_worker.ledger import NEW, Ledger, Ownership, Tracked
from promptbus_worker.positions import Positions
from promptbus_worker.record import Record

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics


class Polling:
    """Polls, and makes records of messages."""

    def __init__(
        self,
        ledger: Ledger,
        positions: Positions,
        metrics: Metrics,
        *,
        on_error: Callable[[KafkaError], None],
        on_stop: Callable[[str, bool], None],
        clock: Clock,
    ) -> None:
        """`on_error` hears of errors that a poll returns; `on_stop`, why the worker cannot go on, and whether a restart
        may mend it."""
        self._ledger = ledger
        self._positions = positions
        self._metrics = metrics
        self._on_error = on_error
        self._on_stop = on_stop
        self._clock = clock
        self.discarding = False
        """Whether what is polled from now on is left to the next owner."""

    def poll(self, consumer: Consumer, room: int, wait_s: float) -> list[Record]:
        """At most `room` records; waits for the first one."""
        # consume(n, timeout) would wait for all n: 110 ms at low load. So wait for one, then take what is there.
        first = consumer.poll(wait_s)
        if first is None:
            return []
        messages = [first]
        epoch = self._ledger.epoch
        if room > 1:
            messages += consumer.consume(room - 1, 0)
        if self._ledger.epoch != epoch:
            messages = self._without_new_epochs(consumer, messages, epoch)
        now = self._clock()
        records = []
        for message in messages:
            error = message.error()
            if error is not None:
                if not self._is_unpositioned(message):
                    self._on_error(error)
            elif (record := self._record(message, now)) is not None:
                records.append(record)
        return records

    def _without_new_epochs(self, consumer: Consumer, messages: list[Message], epoch: int) -> list[Message]:
        """A rebalance went on inside consume: what was polled before it is of an epoch that is over.

        Taken for the new one it would push its lower offsets aside as already seen. So records of partitions that
        were assigned just now are dropped, and read again from where the new epoch begins.
        """
        kept: list[Message] = []
        again: dict[tuple[str, int], Ownership] = {}
        for message in messages:
            topic, partition = message.topic() or "", message.partition() or 0
            ownership = self._ledger.owned(topic, partition)
            if message.error() is None and ownership is not None and ownership.epoch > epoch:
                again[topic, partition] = ownership
            else:
                kept.append(message)
        for ownership in again.values():
            if ownership not in self._positions.unknown:
                self._seek_back(consumer, ownership)
        return kept

    def _seek_back(self, consumer: Consumer, ownership: Ownership) -> None:
        watermark = self._ledger.watermark(ownership)
        assert watermark is not None, "an epoch with a position has begun"
        try:
            consumer.seek(TopicPartition(ownership.topic, ownership.partition, watermark))
        except KafkaException as error:
            self._on_stop(f"Partition {ownership.partition} cannot be read from {watermark}: {error}", True)

    def _is_unpositioned(self, message: Message) -> bool:
        """Whether it is about a partition whose position is still being looked for: what is wrong there passes."""
        ownership = self._ledger.owned(message.topic() or "", message.partition() or 0)
        return ownership is not None and ownership in self._positions.unknown

    def _record(self, message: Message, now: float) -> Record | None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return None  # only the annotations allow it
        ownership = self._ledger.owned(topic, partition)
        if ownership is None or self.discarding:
            return None
        if self._positions.unknown and ownership in self._positions.unknown:
            return None
        key, value = message.key(), message.value()
        headers, problem = _headers(message)
        # Python's objects around a record take about as much as a short prompt.
        size = (len(value) if value else 0) + (len(key) if key else 0) + 500
        _, timestamp_ms = message.timestamp()
        tracked = self._ledger.track(ownership, offset, size, timestamp_ms)
        if tracked is not NEW:
            if tracked is Tracked.SETTLED_BEFORE:
                self._metrics.redeliveries_skipped_total.inc()
            return None
        return Record(ownership, offset, timestamp_ms, key, value, headers, size, now, problem)


def _headers(message: Message) -> tuple[Headers | None, str | None]:
    try:
        return cast(Headers | None, message.headers()), None
    except Exception:
        # The client raises SystemError for a header name that is not UTF-8. One record must not stop the worker.
        return None, "a header's name is not UTF-8"
