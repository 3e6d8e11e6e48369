"""The sentence about a right that is missing, and the command that grants it."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from promptbus.errors import NotAllowed
from promptbus.kafka_errors import refused
from promptbus.rights import Right, grant, lacking, principal
from promptbus.settings import KafkaSettings


def settings(**more: object) -> KafkaSettings:
    return KafkaSettings(_env_file=None, KAFKA_BOOTSTRAP="k:9092", **more)  # type: ignore[arg-type]  # pydantic checks them


LOGIN = {"kafka_sasl_mechanism": "PLAIN", "kafka_sasl_username": "alice", "kafka_sasl_password": "secret"}


@pytest.mark.parametrize(
    ("more", "who"),
    [
        ({}, "User:ANONYMOUS"),
        ({"kafka_security_protocol": "SSL"}, "User:<the subject of KAFKA_SSL_CERTIFICATE_LOCATION>"),
        ({"kafka_security_protocol": "SASL_SSL", **LOGIN}, "User:alice"),
    ],
)
def test_who_we_are_follows_from_how_we_come(more: dict[str, object], who: str) -> None:
    assert principal(settings(**more)) == who


def test_the_command_names_user_operation_and_thing_and_may_be_pasted() -> None:
    ours = settings(kafka_security_protocol="SASL_SSL", **LOGIN)
    assert grant(ours, Right("DESCRIBE_CONFIGS", "topic", "t")) == (
        "kafka-acls --bootstrap-server k:9092 --add --allow-principal User:alice "
        "--operation DescribeConfigs --topic t"
    )
    assert grant(ours, Right("READ", "group", "my group")).endswith("--operation Read --group 'my group'")
    anything = Right("WRITE", "transactional-id", "g-h-0", beginning="g-")
    assert grant(ours, anything).endswith(
        "--operation Write --transactional-id g- --resource-pattern-type prefixed"
    )


def test_several_rights_make_one_sentence() -> None:
    rights = [Right("READ", "topic", "a"), Right("WRITE", "topic", "b"), Right("READ", "group", "g")]
    said = lacking(settings(), *rights)
    assert "lacks the right READ on topic 'a', WRITE on topic 'b' and READ on group 'g'." in said
    assert said.count("kafka-acls") == 3
    assert "lacks the right READ on topic 'a'. An" in lacking(settings(), rights[0])


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    ],
)
def test_only_refusals_become_the_sentence(code: int) -> None:
    right = Right("READ", "topic", "a")
    assert isinstance(refused(KafkaError(code), settings(), right), NotAllowed)
    assert refused(KafkaError(KafkaError._TIMED_OUT), settings(), right) is None
