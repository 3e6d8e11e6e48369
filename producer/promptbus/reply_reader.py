"""Reads the reply topic: every partition, from an explicit offset, without a group.

A group would give each client a share of the replies; a client needs all of them, because its reply may be on any
partition. So partitions are assigned by hand and nothing is ever committed. librdkafka insists on a group id all the
same; it gets a random one that no broker ever stores anything for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Literal, TypeVar, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaException,
    Message,
    TopicPartition,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from promptbus.errors import PromptBusError, TopicMissing
from promptbus.kafka_errors import (
    LOG,
    PASSING,
    QUICK_RETRIES,
    UNKNOWN_TOPIC,
    UNREACHABLE,
    ConnectionNotes,
    describe,
    error_of,
    refused,
    settings_refused,
)
from promptbus.messages import Headers
from promptbus.settings import ClientConfig, KafkaSettings

MAX_RECORDS = 1_000  # per read
TOPIC_GRACE_S = 0.5  # a topic created a moment ago is not yet known to every broker

T = TypeVar("T")


class ReplyReader:
    """One consumer over all partitions of one topic. One thread at a time."""

    def __init__(self, settings: KafkaSettings, topic: str, *, notes: ConnectionNotes | None = None) -> None:
        self.topic = topic
        self._bootstrap = settings.kafka_bootstrap
        self._notes = notes or ConnectionNotes()
        self._assigned: set[int] = set()
        config: ClientConfig = {
            "client.id": "promptbus-client",
            "queued.max.messages.kbytes": 8192,
            "fetch.queue.backoff.ms": 10,
            # the first fetch begins when the first partition is ready; a record on another waits for the next fetch
            "fetch.wait.max.ms": 100,
            "socket.nagle.disable": True,
            **QUICK_RETRIES,
            "log.connection.close": False,
            # an offset that is out of range was deleted by retention, or the topic was made anew: what is oldest
            # now is the first that can be ours
            "auto.offset.reset": "earliest",
            **settings.client_config(),
            **settings.consumer_overrides(),
            "group.id": f"promptbus-client-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
        }
        try:
            self._consumer = Consumer({**config, "error_cb": self._notes.note}, logger=LOG)
        except KafkaException as exception:
            raise settings_refused(exception) from None

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
            places = self._retrying(until, lambda: self._ends(partitions, until), timeout_s)
        self._consumer.incremental_assign(places)
        self._assigned = partitions

    def partitions(self, topic: str, variable: str, timeout_s: float) -> set[int]:
        """The partitions of any topic (`variable` is the setting that names it). Raises as `open` does."""
        started = time.monotonic()
        until = started + timeout_s

        def ask() -> set[int]:
            try:
                return self._read_partitions(topic, until)
            except KafkaException as exception:
                if error_of(exception).code() in UNKNOWN_TOPIC and time.monotonic() - started > TOPIC_GRACE_S:
                    raise TopicMissing(topic, variable, self._bootstrap) from None
                raise

        return self._retrying(until, ask, timeout_s)

    def read(self, timeout_s: float) -> list[Message]:
        """Records in hand, waiting at most `timeout_s` for the first. Errors are among them, never raised."""
        # consume(n, timeout) would wait for n records or the whole time
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        return [first, *self._consumer.consume(MAX_RECORDS - 1, 0)]

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

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _read_partitions(self, topic: str, until: float) -> set[int]:
        # through the consumer: its metadata requests never create a topic, a producer's may
        found = self._consumer.list_topics(topic, timeout=_left(until)).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return set(found.partitions)

    def _ends(self, partitions: set[int], until: float) -> list[TopicPartition]:
        # OFFSET_END as a time stamp is ListOffsets' "latest": one call for all partitions
        asked = [TopicPartition(self.topic, number, OFFSET_END) for number in sorted(partitions)]
        ends = self._consumer.offsets_for_times(asked, timeout=_left(until))
        for end in ends:
            if end.error is not None:
                raise KafkaException(end.error)
        return [TopicPartition(self.topic, end.partition, end.offset) for end in ends]

    def _retrying(self, until: float, call: Callable[[], T], timeout_s: float) -> T:
        attempts = Retrying(
            retry=retry_if_exception(_passes),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(_left(until)),
            reraise=True,
        )
        try:
            return attempts(call)
        except KafkaException as exception:
            error = error_of(exception)
            forbidden = refused(error, f"read {self.topic!r}")
            if forbidden is not None:
                raise forbidden from None
            self._consumer.poll(0)  # brings the error callbacks that say why
            if error.code() in UNREACHABLE:
                raise self._notes.unavailable(self._bootstrap, timeout_s) from None
            raise PromptBusError(f"Kafka at {self._bootstrap} answered: {describe(error)}") from None


def record_headers(message: Message) -> Headers | None:
    """A consumed record's headers."""
    # a consumed record has bytes or None; str is what a producer may be given
    return cast("Headers | None", message.headers())


def _left(until: float) -> float:
    return max(0.05, until - time.monotonic())


def _passes(exception: BaseException) -> bool:
    """Errors that a second try may not meet."""
    if not isinstance(exception, KafkaException):
        return False
    error = error_of(exception)
    return error.retriable() or error.code() in PASSING
