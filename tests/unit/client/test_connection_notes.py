"""What is remembered of librdkafka's errors about its connections."""

from __future__ import annotations

from confluent_kafka import KafkaError

from promptbus.kafka_errors import ConnectionNotes
from promptbus.listener import Address

TRANSPORT, SSL, ALL_DOWN = KafkaError._TRANSPORT, KafkaError._SSL, KafkaError._ALL_BROKERS_DOWN


def test_brokers_that_the_cluster_named_are_remembered_once_each() -> None:
    notes = ConnectionNotes()
    for code, text in (
        (TRANSPORT, "sasl_ssl://localhost:9093/1: error:0A000086 (after 30ms in state SSL_HANDSHAKE)"),
        (ALL_DOWN, "2/2 brokers are down"),
        (SSL, "sasl_ssl://localhost:9093/1: SSL handshake failed: certificate verify failed"),
        (TRANSPORT, "plaintext://[::1]:9094/2: Connect to ipv6#[::1]:9094 failed: Connection refused"),
    ):
        notes.note(KafkaError(code, text))
    assert list(notes.named_brokers()) == [Address("localhost", 9093), Address("::1", 9094)]


def test_bootstrap_servers_and_other_errors_name_no_broker() -> None:
    notes = ConnectionNotes()
    notes.note(KafkaError(TRANSPORT, "plaintext://localhost:9092/bootstrap: Connection refused"))
    notes.note(KafkaError(ALL_DOWN))
    notes.note(KafkaError(TRANSPORT, "GroupCoordinator: localhost:9092: Disconnected"))
    assert list(notes.named_brokers()) == []
