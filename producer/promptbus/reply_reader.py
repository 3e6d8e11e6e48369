"""Reads the reply topic: every partition, from an explicit offset.

A group would give each client a share of the replies; a client needs all of them, because its reply may be on any
partition.
"""

from __future__ import annotations

import time
from typing import Literal

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from promptbus.kafka_errors import LOG, ConnectionNotes, describe, error_of
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import TopicReader


class ReplyReader(TopicReader):
    """One consumer over all partitions of one topic. One thread at a time."""

    def __init__(self, settings: KafkaSettings, topic: str, *, notes: ConnectionNotes | None = None) -> None:
        super().__init__(settings, topic, notes=notes)
        self._assigned: set[int] = set()

    def open(self, timeout_s: float, *, start: Literal["end", "beginning"] = "end") -> None:
        """Assign every partition; from then on, whatever is written after this call is read.

        Where partitions end is asked before this returns: an assignment at "the end" would be resolved at the first
        fetch, which may come after the first reply.

        Raises KafkaUnavailable, TopicMissing, NotAllowed.
        """
        until = time.monotonic() + timeout_s
        partitions = self.partitions(self.topic, "KAFKA_REPLY_TOPIC", timeout_s)
        places = [TopicPartition(self.topic, number, OFFSET_BEGINNING) for number in sorted(partitions)]
        if start == "end":
            ends = self.offsets_at(partitions, OFFSET_END, max(0.05, until - time.monotonic()))
            places = [TopicPartition(self.topic, number, offset) for number, offset in ends.items()]
        self._consumer.incremental_assign(places)
        self._assigned = partitions

    def assign_new_partitions(self, timeout_s: float) -> set[int]:
        """Assign partitions that were added to the topic, from their beginning; returns them.

        Whatever they hold was written after this reader was opened, so the beginning is where it would have been.
        Raises nothing for a broker that does not answer: the next call finds them.
        """
        try:
            added = self._read_partitions(self.topic, time.monotonic() + timeout_s) - self._assigned
        except KafkaException as exception:
            LOG.debug("partitions of %s were not read: %s", self.topic, describe(error_of(exception)))
            return set()
        if added:
            self._consumer.incremental_assign(
                [TopicPartition(self.topic, number, OFFSET_BEGINNING) for number in sorted(added)]
            )
            self._assigned |= added
        return added
