"""Every error that the Kafka client can report has a verdict, and the dangerous ones have the right one."""

import pytest
from confluent_kafka import KafkaError

from promptbus_worker import kafka_outcomes
from promptbus_worker.kafka_outcomes import (
    CommitAction,
    ConsumerAction,
    DeliveryAction,
    commit_verdict,
    consumer_verdict,
    delivery_verdict,
    stop_sentence,
)

NAMES = sorted(
    {
        KafkaError(code).name()
        for name in dir(KafkaError)
        if isinstance(code := getattr(KafkaError, name), int) and not name.startswith("__")
    }
)


def delivery(name: str) -> DeliveryAction:
    return delivery_verdict(name, fatal=False, retriable=False)


def commit(name: str) -> CommitAction:
    return commit_verdict(name, fatal=False, retriable=False)


def poll(name: str) -> ConsumerAction:
    return consumer_verdict(name, fatal=False, retriable=False)


def test_the_tables_name_only_errors_that_exist() -> None:
    known = set(NAMES)
    for table in ("_STOP_SENTENCES", "_LATER", "_TOO_LARGE", "_NOT_OURS"):
        assert set(getattr(kafka_outcomes, table)) <= known, table


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_its_verdicts_and_fatal_always_stops(name: str) -> None:
    for retriable in (False, True):
        assert isinstance(delivery_verdict(name, fatal=False, retriable=retriable), DeliveryAction)
        assert isinstance(commit_verdict(name, fatal=False, retriable=retriable), CommitAction)
        assert isinstance(consumer_verdict(name, fatal=False, retriable=retriable), ConsumerAction)
        assert delivery_verdict(name, fatal=True, retriable=retriable) is DeliveryAction.STOP
        assert commit_verdict(name, fatal=True, retriable=retriable) is CommitAction.STOP
        assert consumer_verdict(name, fatal=True, retriable=retriable) is ConsumerAction.STOP


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("_MSG_TIMED_OUT", DeliveryAction.RESEND),
        ("_TRANSPORT", DeliveryAction.RESEND),
        ("_AUTHENTICATION", DeliveryAction.RESEND),
        ("NOT_ENOUGH_REPLICAS", DeliveryAction.RESEND),
        ("_INVALID_DIFFERENT_RECORD", DeliveryAction.RESEND),
        ("MSG_SIZE_TOO_LARGE", DeliveryAction.TOO_LARGE),
        ("TOPIC_AUTHORIZATION_FAILED", DeliveryAction.STOP),
        ("UNKNOWN_TOPIC_OR_PART", DeliveryAction.STOP),
        ("INVALID_RECORD", DeliveryAction.STOP),
        ("_FENCED", DeliveryAction.STOP),
        ("_PURGE_QUEUE", DeliveryAction.DROPPED),
        ("_PURGE_INFLIGHT", DeliveryAction.DROPPED),
    ],
)
def test_a_failed_delivery(name: str, action: DeliveryAction) -> None:
    assert delivery(name) is action


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("NO_ERROR", CommitAction.OK),
        ("_NO_OFFSET", CommitAction.OK),
        ("ILLEGAL_GENERATION", CommitAction.LOST),
        ("UNKNOWN_MEMBER_ID", CommitAction.LOST),
        ("REBALANCE_IN_PROGRESS", CommitAction.LOST),
        ("FENCED_INSTANCE_ID", CommitAction.LOST),
        ("FENCED_MEMBER_EPOCH", CommitAction.LOST),
        ("_ASSIGNMENT_LOST", CommitAction.LOST),
        ("STALE_MEMBER_EPOCH", CommitAction.RETRY),
        ("NOT_COORDINATOR", CommitAction.RETRY),
        ("_AUTHENTICATION", CommitAction.RETRY),
        ("_TIMED_OUT", CommitAction.RETRY),
        ("_WAIT_COORD", CommitAction.RETRY),
        ("GROUP_AUTHORIZATION_FAILED", CommitAction.STOP),
        ("OFFSET_METADATA_TOO_LARGE", CommitAction.STOP),
    ],
)
def test_a_commits_answer(name: str, action: CommitAction) -> None:
    assert commit(name) is action


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("_PARTITION_EOF", ConsumerAction.CARRY_ON),
        ("_TRANSPORT", ConsumerAction.CARRY_ON),
        ("_AUTHENTICATION", ConsumerAction.CARRY_ON),
        ("_ALL_BROKERS_DOWN", ConsumerAction.CARRY_ON),
        ("_RESOLVE", ConsumerAction.CARRY_ON),
        ("NOT_COORDINATOR", ConsumerAction.CARRY_ON),
        ("_MAX_POLL_EXCEEDED", ConsumerAction.LOST),
        ("_AUTO_OFFSET_RESET", ConsumerAction.STOP),
        ("TOPIC_AUTHORIZATION_FAILED", ConsumerAction.STOP),
        ("GROUP_AUTHORIZATION_FAILED", ConsumerAction.STOP),
        ("UNKNOWN_TOPIC_OR_PART", ConsumerAction.STOP),
        ("FENCED_INSTANCE_ID", ConsumerAction.STOP),
        ("INCONSISTENT_GROUP_PROTOCOL", ConsumerAction.STOP),
    ],
)
def test_an_error_met_while_polling(name: str, action: ConsumerAction) -> None:
    assert poll(name) is action


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_that_stops_polling_says_what_to_do(name: str) -> None:
    said = stop_sentence(name, "text")
    assert f"({name}: text)" in said
    if poll(name) is ConsumerAction.STOP:
        assert "cannot mend" not in said


def test_missing_rights_and_lost_offsets_are_named() -> None:
    assert "READ on the group" in stop_sentence("GROUP_AUTHORIZATION_FAILED", "")
    assert "WRITE" in stop_sentence("TOPIC_AUTHORIZATION_FAILED", "")
    assert "--reset-offsets" in stop_sentence("_AUTO_OFFSET_RESET", "")


def test_brokers_without_the_new_group_protocol_are_named_as_the_reason() -> None:
    met = "Fatal error: Broker: API version not supported: ConsumerGroupHeartbeat fatal error: Broker: API version not supported"
    assert "KAFKA_GROUP_PROTOCOL" in stop_sentence("_FATAL", met)
    assert "KAFKA_GROUP_PROTOCOL" not in stop_sentence("_FATAL", "out of memory")
    assert commit("STALE_MEMBER_EPOCH") is CommitAction.RETRY
    assert commit("FENCED_MEMBER_EPOCH") is CommitAction.LOST
