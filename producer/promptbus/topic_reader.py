"""One topic read without a group: partitions assigned by hand, nothing ever committed.

librdkafka insists on a group id all the same; it gets a random one that no broker ever stores anything for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from promptbus.errors import PromptBusError, TopicMissing
from promptbus.kafka_errors import (
    LOG,
    QUICK_RETRIES,
    UNKNOWN_TOPIC,
    UNREACHABLE,
    ConnectionNotes,
    describe,
    error_of,
    passes,
    refused,
    settings_refused,
)
from promptbus.messages import Headers
from promptbus.rights import Right
from promptbus.settings import ClientConfig, KafkaSettings

MAX_RECORDS = 1_000  # per read
TOPIC_GRACE_S = 0.5  # a topic created a moment ago is not yet known to every broker

T = TypeVar("T")


class TopicReader:
    """One consumer on one topic. One thread at a time."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        notes: ConnectionNotes | None = None,
        tell_ends: bool = False,
    ) -> None:
        """`tell_ends`: a partition's end is read like an error, _PARTITION_EOF."""
        self.topic = topic
        self._settings = settings
        self._notes = notes or ConnectionNotes()
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
            "enable.partition.eof": tell_ends,
            "isolation.level": "read_committed",
        }
        try:
            self._consumer = Consumer({**config, "error_cb": self._notes.note}, logger=LOG)
        except KafkaException as exception:
            raise settings_refused(exception) from None

    def partitions(self, topic: str, variable: str, timeout_s: float, *, operation: str = "READ") -> set[int]:
        """The partitions of any topic (`variable` is the setting that names it, `operation` what it is for).

        Raises KafkaUnavailable, TopicMissing, NotAllowed.
        """
        started = time.monotonic()
        until = started + timeout_s

        def ask() -> set[int]:
            try:
                return self._read_partitions(topic, until)
            except KafkaException as exception:
                if error_of(exception).code() in UNKNOWN_TOPIC and time.monotonic() - started > TOPIC_GRACE_S:
                    raise TopicMissing(topic, variable, self._settings.kafka_bootstrap) from None
                raise

        # to see a topic is a right of its own, which the one to use it includes
        rights = Right("DESCRIBE", "topic", topic), Right(operation, "topic", topic)
        return self._retrying(until, ask, timeout_s, rights)

    def offsets_at(self, partitions: Iterable[int], time_ms: int, timeout_s: float) -> dict[int, int]:
        """Where each partition goes on at a time (Unix ms, or OFFSET_BEGINNING or OFFSET_END): one call for all.

        OFFSET_END for a partition whose records are all older. Raises KafkaUnavailable, NotAllowed.
        """
        until = time.monotonic() + timeout_s

        def ask() -> dict[int, int]:
            # the two special offsets as time stamps are what ListOffsets calls "earliest" and "latest"
            asked = [TopicPartition(self.topic, number, time_ms) for number in sorted(partitions)]
            found = self._consumer.offsets_for_times(asked, timeout=_left(until))
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
            return {place.partition: place.offset for place in found}

        return self._retrying(until, ask, timeout_s, [Right("DESCRIBE", "topic", self.topic)])

    def read(self, timeout_s: float) -> list[Message]:
        """Records in hand, waiting at most `timeout_s` for the first. Errors are among them, never raised."""
        # consume(n, timeout) would wait for n records or the whole time
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        # librdkafka looks for the coordinator of the group that it insists on; no right on groups is needed here
        messages = [first, *self._consumer.consume(MAX_RECORDS - 1, 0)]
        return [message for message in messages if not _about_the_group(message)]

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _read_partitions(self, topic: str, until: float) -> set[int]:
        # through the consumer: its metadata requests never create a topic, a producer's may
        found = self._consumer.list_topics(topic, timeout=_left(until)).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return set(found.partitions)

    def _retrying(self, until: float, call: Callable[[], T], timeout_s: float, rights: Iterable[Right]) -> T:
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
            forbidden = refused(error, self._settings, *rights)
            if forbidden is not None:
                raise forbidden from None
            self._consumer.poll(0)  # brings the error callbacks that say why
            if error.code() in UNREACHABLE:
                raise self._notes.unavailable(self._settings, timeout_s) from None
            raise PromptBusError(
                f"Kafka at {self._settings.kafka_bootstrap} answered: {describe(error)}"
            ) from None


def record_headers(message: Message) -> Headers | None:
    """A consumed record's headers."""
    # a consumed record has bytes or None; str is what a producer may be given
    return cast("Headers | None", message.headers())


def _about_the_group(message: Message) -> bool:
    error = message.error()
    return error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED


def _left(until: float) -> float:
    return max(0.05, until - time.monotonic())


def _passes(exception: BaseException) -> bool:
    """Errors that a second try may not meet."""
    return isinstance(exception, KafkaException) and passes(error_of(exception))
