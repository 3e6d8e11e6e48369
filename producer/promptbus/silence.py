"""Why nobody answers, as far as Kafka knows: asked after a time-out, so that its message can name what is missing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeout
from typing import NamedTuple, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, but the package has no __all__
    AdminClient,
    ConsumerGroupDescription,
    OffsetSpec,
)

from promptbus.errors import ReplyTimeout
from promptbus.kafka_errors import LOG, describe, error_of, passes, refused
from promptbus.rights import Right
from promptbus.settings import KafkaSettings

ASK_S = 2.0  # longest time one question may take, and for so long one that is refused for now is asked again
AGAIN_S = 0.1
FRESH_S = 5.0  # many requests time out together; they share one answer

T = TypeVar("T")


class Reason(NamedTuple):
    """`sentence`: what is known. `consumers`: members of the group that have the topic; None if not known."""

    sentence: str
    consumers: int | None = None


class Silence:
    """Asks about one request topic and the group that should consume it. Thread-safe."""

    def __init__(self, settings: KafkaSettings, request_topic: str, group_id: str) -> None:
        self._settings = settings
        self._topic = request_topic
        self._group_id = group_id
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._answer = Reason("")

    def explain(self, late: ReplyTimeout) -> ReplyTimeout:
        """The same error with its reason. Blocks for a few seconds at most; never raises for Kafka's sake."""
        reason = self.reason()
        return ReplyTimeout(
            late.request_id,
            late.timeout_s,
            acknowledged=late.acknowledged,
            hint=reason.sentence,
            consumers=reason.consumers,
        )

    def reason(self) -> Reason:
        """Why nobody answers. Blocks for a few seconds at most; never raises for Kafka's sake."""
        with self._lock:
            if time.monotonic() - self._asked_at > FRESH_S:
                try:
                    self._answer = self._ask_until_told()
                except KafkaException as exception:
                    self._answer = Reason(f"Kafka could not be asked why ({self._problem(exception)})")
                except FuturesTimeout:
                    self._answer = Reason(f"Kafka did not say why within {2 * ASK_S:g} s")
                self._asked_at = time.monotonic()
            return self._answer

    def _ask_until_told(self) -> Reason:
        """A cluster's first group waits for its coordinator to come into being."""
        until = time.monotonic() + ASK_S
        while True:
            try:
                return self._ask()
            except KafkaException as exception:
                if not passes(error_of(exception)) or time.monotonic() > until:
                    raise
                time.sleep(AGAIN_S)

    def _ask(self) -> Reason:
        admin = AdminClient(dict(self._settings.client_config()), logger=LOG)
        # Metadata first: librdkafka 2.16 aborts the process (an assertion on `eonce`, in half of the tries) when a
        # question about groups times out for want of a broker. This one only raises.
        admin.list_topics(self._topic, timeout=ASK_S)
        described = admin.describe_consumer_groups([self._group_id], request_timeout=ASK_S)
        group = _result(described[self._group_id])
        partitions, members = _assigned(group, self._topic)
        if not members:
            return Reason(
                f"nobody consumes {self._topic!r} in the consumer group {self._group_id!r} (KAFKA_GROUP_ID): "
                "start a worker with `promptbus worker`",
                0,
            )
        consumers = f"{members} consumer{'s' if members > 1 else ''} of the group {self._group_id!r}"
        waiting = self._waiting(admin, partitions)
        if waiting:
            return Reason(
                f"{consumers} and {waiting:,} request{'s' if waiting > 1 else ''} not yet done on {self._topic!r}: "
                "the workers are busy, or Triton does not answer them; see `promptbus doctor` and the workers' logs",
                members,
            )
        return Reason(
            f"{consumers} and nothing left to do on {self._topic!r}: the reply went elsewhere; "
            "do workers and client name the same KAFKA_REPLY_TOPIC?",
            members,
        )

    def _problem(self, exception: KafkaException) -> str:
        error = error_of(exception)
        forbidden = refused(error, self._settings, Right("DESCRIBE", "group", self._group_id))
        return describe(error) if forbidden is None else str(forbidden)

    def _waiting(self, admin: AdminClient, partitions: list[int]) -> int:
        places = [TopicPartition(self._topic, number) for number in partitions]
        asked = ConsumerGroupTopicPartitions(self._group_id, places)
        committed = _result(admin.list_consumer_group_offsets([asked], request_timeout=ASK_S)[self._group_id])
        done = {place.partition: place.offset for place in committed.topic_partitions or []}
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # has no annotations
        ends = admin.list_offsets(dict.fromkeys(places, latest), request_timeout=ASK_S)
        waiting = 0
        for place, end in ends.items():
            begun = done.get(place.partition, -1)
            waiting += max(0, _result(end).offset - max(0, begun))
        return waiting


def _result(future: Future[T]) -> T:
    return future.result(timeout=2 * ASK_S)


def _assigned(group: ConsumerGroupDescription, topic: str) -> tuple[list[int], int]:
    """The topic's partitions that the group's members hold, and how many members hold some."""
    partitions: list[int] = []
    members = 0
    for member in group.members:
        held = [place.partition for place in member.assignment.topic_partitions if place.topic == topic]
        partitions += held
        members += bool(held)
    return partitions, members
