"""Writes requests: one idempotent producer, its errors as sentences, its queue as back-pressure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, but the package has no __all__
    AdminClient,
    ConfigResource,
    ResourceType,
)

from promptbus.errors import DeliveryFailed, MessageTooLarge, PromptBusError, TopicMissing
from promptbus.kafka_errors import (
    FATAL,
    LOG,
    QUICK_RETRIES,
    TOO_LARGE,
    UNKNOWN_TOPIC,
    ConnectionNotes,
    describe,
    error_of,
    refused,
    settings_refused,
)
from promptbus.messages import message_bytes
from promptbus.rights import Right
from promptbus.settings import DURABLE, ClientConfig, KafkaSettings

# A batch that a broker finds too large is refused whole. Batches stay below this size, and whatever is larger alone
# is compared with the topic's limit first, so one large request never takes small neighbours with it.
BATCH_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 64 << 20

Header = tuple[str, bytes | None]
Delivered = Callable[[PromptBusError | None], None]


class QueueFull(Exception):
    """The producer's queue has no room now; poll, then try again."""


class RequestWriter:
    """One producer for one topic. `publish` may be called from any thread; callbacks run in whoever polls."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        linger_ms: float,
        delivery_timeout_s: float,
        notes: ConnectionNotes | None = None,
    ) -> None:
        self.topic = topic
        self._settings = settings
        self._notes = notes or ConnectionNotes()
        config: ClientConfig = {
            "client.id": "promptbus-client",
            "linger.ms": linger_ms,
            "delivery.timeout.ms": int(delivery_timeout_s * 1000),
            "batch.size": BATCH_BYTES,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.kbytes": 64 * 1024,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "socket.nagle.disable": True,
            **QUICK_RETRIES,
            "log.connection.close": False,
            **settings.client_config(),
            **settings.producer_overrides(),
            **DURABLE,
        }
        self._fatal: KafkaError | None = None
        try:
            self._producer = Producer({**config, "error_cb": self._note}, logger=LOG)
        except KafkaException as exception:
            raise settings_refused(exception) from None
        self._limit: int | None = None
        self._limit_read = False
        self._limit_lock = threading.Lock()

    def open(self, timeout_s: float) -> None:
        """Connect, so that the first request does not wait for it.

        The topic must be known to exist: a broker that creates topics on demand would create it for a producer.
        """
        until = time.monotonic() + timeout_s
        try:
            # An idempotent producer needs a producer id, and looks for a broker to ask when metadata arrive; finding
            # none connected it looks again after 500 ms. At the first answer the bootstrap connection is just
            # being replaced (a quarter of new producers lost 500 ms to that); at the second there is a broker.
            for _ in range(2):
                self._producer.list_topics(self.topic, timeout=max(0.05, until - time.monotonic()))
        except KafkaException as exception:
            LOG.debug("the producer is not connected yet: %s", describe(error_of(exception)))

    def publish(
        self,
        value: bytes | None,
        *,
        headers: Sequence[Header] = (),
        key: bytes | None = None,
        delivered: Delivered,
    ) -> None:
        """Queue one request; `delivered(None)` or `delivered(error)` follows exactly once, from a poll.

        Raises QueueFull (nothing was queued), MessageTooLarge, or DeliveryFailed.
        """
        size = 0 if value is None else len(value)
        if size > BATCH_BYTES // 2:
            size = self._check_size(value, headers, key)

        def report(error: KafkaError | None, _message: object) -> None:
            delivered(None if error is None else self._failure(error, size))

        try:
            self._producer.produce(self.topic, value, key, headers=list(headers), on_delivery=report)
        except BufferError:
            raise QueueFull from None
        except KafkaException as exception:
            raise self._failure(error_of(exception), size) from None

    def publish_waiting(
        self,
        value: bytes | None,
        *,
        headers: Sequence[Header] = (),
        key: bytes | None = None,
        delivered: Delivered,
        timeout_s: float = 60.0,
    ) -> None:
        """`publish`, but with no room in the queue it polls until there is, at most `timeout_s`."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                return self.publish(value, headers=headers, key=key, delivered=delivered)
            except QueueFull:
                if time.monotonic() > until:
                    raise DeliveryFailed(
                        f"{len(self._producer):,} requests wait in this process and Kafka took none for {timeout_s:g} s"
                    ) from None
                self._producer.poll(0.05)

    def is_large(self, value: bytes) -> bool:
        """Whether `publish` may have to ask the broker for the topic's limit, which blocks up to 2 s, once."""
        return not self._limit_read and len(value) > BATCH_BYTES // 2

    def poll(self, timeout_s: float = 0.0) -> None:
        """Run the callbacks that are due. A producer that fails for good tells it to each of its requests."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exception:
            self._note(error_of(exception))

    def flush(self, timeout_s: float) -> int:
        """Wait until all is acknowledged, at most `timeout_s`; returns how many are not."""
        try:
            return self._producer.flush(timeout_s)
        except KafkaException as exception:
            self._note(error_of(exception))
            return len(self._producer)

    def discard(self) -> None:
        """Give up what is queued or in flight; each gets its `delivered(error)`."""
        if len(self._producer):
            self._producer.purge()
            self.flush(1.0)

    def close(self) -> None:
        """Let go of the connections. What is not acknowledged by then is given up; flush first. Not in a callback."""
        self.discard()
        self._producer.close()

    def _note(self, error: KafkaError) -> None:
        self._notes.note(error)
        if error.fatal():
            self._fatal = error

    def _check_size(self, value: bytes | None, headers: Sequence[Header], key: bytes | None) -> int:
        size = message_bytes(key, value, list(headers))
        limit = self._topic_limit()
        if limit is not None and size > limit:
            raise MessageTooLarge(size, limit, self.topic)
        return size

    def _topic_limit(self) -> int | None:
        """`max.message.bytes` of the topic, read once; None if the broker does not say (no right to ask)."""
        with self._limit_lock:
            if not self._limit_read:
                try:
                    self._limit = self._read_topic_limit()
                except KafkaException as exception:
                    LOG.debug("the limit of %s is not known: %s", self.topic, describe(error_of(exception)))
                self._limit_read = True
            return self._limit

    def _read_topic_limit(self) -> int | None:
        resource = ConfigResource(ResourceType.TOPIC, self.topic)
        admin = AdminClient(dict(self._settings.client_config()), logger=LOG)
        entries = admin.describe_configs([resource], request_timeout=2.0)[resource].result()
        return int(entries["max.message.bytes"].value)

    def _failure(self, error: KafkaError, size: int) -> PromptBusError:
        if error.code() == FATAL and self._fatal is not None:
            error = self._fatal  # what comes after it says no more than that there was one
        code = error.code()
        if code in TOO_LARGE:
            return MessageTooLarge(size, self._limit, self.topic)
        if code in UNKNOWN_TOPIC:
            return TopicMissing(self.topic, "KAFKA_REQUEST_TOPIC", self._settings.kafka_bootstrap)
        forbidden = refused(error, self._settings, Right("WRITE", "topic", self.topic))
        if forbidden is not None:
            return forbidden
        if error.fatal():
            return DeliveryFailed(f"the producer gave up for good: {describe(error)}; make a new client")
        return DeliveryFailed(f"Kafka did not acknowledge the request on {self.topic!r}: {describe(error)}")
