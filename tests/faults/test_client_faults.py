"""What clients do when Kafka refuses what it would take a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from promptbus.errors import NotAllowed
from promptbus.request_writer import RequestWriter
from promptbus.topic_reader import TopicReader
from promptbus_worker.kafka import producer_config
from promptbus_worker.settings import Settings
from tests.faults.mock_kafka import Api, MockKafka
from tests.unit.client.place import QUIET, settings_for

NOT_LEADER = 6
# What a broker answers while leaders move or a topic is new. https://kafka.apache.org/protocol#protocol_error_codes
PASSING = {
    3: "UNKNOWN_TOPIC_OR_PARTITION",
    5: "LEADER_NOT_AVAILABLE",
    NOT_LEADER: "NOT_LEADER_OR_FOLLOWER",
    9: "REPLICA_NOT_AVAILABLE",
    56: "KAFKA_STORAGE_ERROR",
    74: "FENCED_LEADER_EPOCH",
    75: "UNKNOWN_LEADER_EPOCH",
    78: "OFFSET_NOT_AVAILABLE",
}


@pytest.mark.parametrize("code", PASSING, ids=PASSING.get)
def test_a_refusal_that_passes_is_asked_again(code: int) -> None:
    with MockKafka() as kafka:
        kafka.create("requests", 2)
        reader = TopicReader(settings_for(kafka.bootstrap), "requests")
        assert reader.partitions("requests", "KAFKA_REQUEST_TOPIC", 30) == {0, 1}
        kafka.fail(Api.LIST_OFFSETS, code, code)
        try:
            assert reader.offsets_at([0, 1], OFFSET_BEGINNING, 30) == {0: 0, 1: 0}
            assert kafka.left(Api.LIST_OFFSETS) == 0
        finally:
            reader.close()


def test_a_missing_right_is_not() -> None:
    with MockKafka() as kafka:
        kafka.create("requests", 1)
        reader = TopicReader(settings_for(kafka.bootstrap), "requests")
        assert reader.partitions("requests", "KAFKA_REQUEST_TOPIC", 30) == {0}
        kafka.fail(Api.LIST_OFFSETS, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        try:
            with pytest.raises(NotAllowed, match="'requests'"):
                reader.offsets_at([0], OFFSET_BEGINNING, 30)
        finally:
            reader.close()


def write_as_client(kafka: MockKafka, first_is_under_way: Callable[[], None]) -> list[object]:
    """Two requests, one after the other; what was said of them."""
    errors: list[object] = []
    writer = RequestWriter(settings_for(kafka.bootstrap), "topic", linger_ms=0, delivery_timeout_s=30)
    writer.open(30)
    kafka.fail(Api.PRODUCE, NOT_LEADER, delay_ms=500)
    writer.publish(b"first", delivered=errors.append)
    first_is_under_way()
    writer.publish(b"second", delivered=errors.append)
    assert writer.flush(30) == 0
    writer.close()
    return errors


def write_as_worker(kafka: MockKafka, first_is_under_way: Callable[[], None]) -> list[object]:
    """The same with replies."""
    errors: list[object] = []
    settings = Settings(_env_file=None, kafka_bootstrap=kafka.bootstrap)
    producer = Producer(producer_config(settings, "worker-0", [1 << 20]))
    producer.list_topics("topic", 30)
    kafka.fail(Api.PRODUCE, NOT_LEADER, delay_ms=500)
    producer.produce("topic", b"first", on_delivery=lambda error, _: errors.append(error))
    first_is_under_way()
    producer.produce("topic", b"second", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    return errors


@pytest.mark.parametrize("write", [write_as_client, write_as_worker])
def test_a_batch_that_was_refused_is_not_delivered_by_the_success_of_the_next(
    write: Callable[[MockKafka, Callable[[], None]], list[object]],
) -> None:
    """A leader that does not know the producer yet takes a later batch without the earlier one (KAFKA-15591), as this
    broker does, and the client then reports both as delivered."""
    with MockKafka() as kafka:
        kafka.create("topic", 1)

        def first_is_under_way() -> None:
            deadline = time.monotonic() + 10
            while kafka.left(Api.PRODUCE):
                assert time.monotonic() < deadline, "the first was never sent"
                time.sleep(0.005)

        assert write(kafka, first_is_under_way) == [None, None]
        reader = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "reader"}, logger=QUIET)
        reader.assign([TopicPartition("topic", 0, 0)])
        values = [message.value() for message in reader.consume(2, timeout=10)]
        reader.close()
        assert values == [b"first", b"second"]
