"""What a client does when Kafka refuses a question that it would answer a moment later."""

from __future__ import annotations

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError

from promptbus.errors import NotAllowed
from promptbus.topic_reader import TopicReader
from tests.faults.mock_kafka import Api, MockKafka
from tests.unit.client.place import settings_for

# What a broker answers while leaders move or a topic is new. https://kafka.apache.org/protocol#protocol_error_codes
PASSING = {
    3: "UNKNOWN_TOPIC_OR_PARTITION",
    5: "LEADER_NOT_AVAILABLE",
    6: "NOT_LEADER_OR_FOLLOWER",
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
