"""Reads the dead letter topic, from offsets and times to the end it had at the start; so it comes to an end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, Message, TopicPartition

from promptbus.dead_letters import DeadLetter, Place, Selection, Span
from promptbus.errors import PlaceMissing
from promptbus.kafka_errors import LOG, ConnectionNotes, describe, refused
from promptbus.rights import Right
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import TopicReader, record_headers

ASK_S = 5.0  # longest time one question to the brokers may take
READ_S = 0.2
SILENCE_S = 30.0  # a partition that has more to read and brings nothing for this long: no broker serves it

_AT_END = KafkaError._PARTITION_EOF  # noqa: SLF001


class DeadLetterReader(TopicReader):
    """One consumer on KAFKA_DEAD_LETTER_TOPIC. Only committed records are seen."""

    def __init__(self, settings: KafkaSettings, *, silence_s: float = SILENCE_S) -> None:
        super().__init__(settings, settings.kafka_dead_letter_topic, notes=ConnectionNotes(), tell_ends=True)
        self._silence_s = silence_s

    def spans(self, selection: Selection) -> list[Span]:
        """What to read for `selection`, by partition; those with nothing to read are left out.

        Raises PlaceMissing, KafkaUnavailable, TopicMissing, NotAllowed.
        """
        chosen = self._chosen(selection.partitions)
        starts = self.offsets_at(chosen, OFFSET_BEGINNING, ASK_S)
        ends = self.offsets_at(chosen, OFFSET_END, ASK_S)
        since = {} if selection.since_ms is None else self.offsets_at(chosen, selection.since_ms, ASK_S)
        spans = []
        for partition in sorted(chosen):
            start, end = starts[partition], ends[partition]
            if partition in since:
                start = end if since[partition] == OFFSET_END else max(start, since[partition])
            if selection.from_offset is not None:
                start = max(start, selection.from_offset)
            if selection.to_offset is not None:
                end = min(end, selection.to_offset + 1)
            if start < end:
                spans.append(Span(partition, start, end))
        return spans

    def prefixes(self, selection: Selection) -> list[Span]:
        """From each partition's beginning to the first record that `until_ms` or `to_offset` spares. Raises as `spans`."""
        spans = self.spans(Selection(partitions=selection.partitions, to_offset=selection.to_offset))
        if selection.until_ms is None or not spans:
            return spans
        spared = self.offsets_at([span.partition for span in spans], selection.until_ms, ASK_S)
        cut = []
        for span in spans:
            at = spared[span.partition]
            end = span.end if at == OFFSET_END else min(span.end, at)
            if span.start < end:
                cut.append(span._replace(end=end))
        return cut

    def letters(self, spans: Iterable[Span]) -> Iterator[DeadLetter]:
        """Every record of these spans, one partition after the other, each in the order of its offsets.

        Raises KafkaUnavailable, NotAllowed.
        """
        for span in spans:
            self._consumer.assign([TopicPartition(self.topic, span.partition, span.start)])
            yield from self._of(span)
        self._consumer.unassign()

    def _of(self, span: Span) -> Iterator[DeadLetter]:
        heard_at = time.monotonic()
        while True:
            messages = self.read(READ_S)
            for message in messages:
                error = message.error()
                offset = message.offset()
                if error is not None and error.code() != _AT_END:
                    self._judge(error)
                    continue
                if message.partition() != span.partition or offset is None:
                    continue
                if error is not None:
                    # the end as it is now: at or beyond the one that was read at the start
                    return
                # Gaps are as good as records: compaction, transaction markers and purges leave them.
                if offset >= span.end:
                    return
                yield _letter(message, span.partition, offset)
                if offset == span.end - 1:
                    return
            if messages:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > self._silence_s:
                raise self._notes.unavailable(self._settings, self._silence_s)

    def _judge(self, error: KafkaError) -> None:
        forbidden = refused(error, self._settings, Right("READ", "topic", self.topic))
        if forbidden is not None:
            raise forbidden
        LOG.debug("reading %s: %s", self.topic, describe(error))  # librdkafka tries again by itself

    def _chosen(self, wanted: Collection[int]) -> set[int]:
        there = self.partitions(self.topic, "KAFKA_DEAD_LETTER_TOPIC", ASK_S)
        for partition in wanted:
            if partition not in there:
                raise PlaceMissing(
                    f"{self.topic!r} has no partition {partition}; it has 0 to {len(there) - 1}"
                )
        return set(wanted) or there


def _letter(message: Message, partition: int, offset: int) -> DeadLetter:
    key, value = message.key(), message.value()
    return DeadLetter(
        Place(partition, offset),
        message.timestamp()[1],
        key if isinstance(key, bytes) else None,
        value if isinstance(value, bytes) else None,
        tuple(record_headers(message) or ()),
    )
