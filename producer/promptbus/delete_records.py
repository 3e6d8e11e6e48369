"""Deletes the oldest records of a topic's partitions. Kafka can delete nothing else: no record out of the middle."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import TimeoutError as FuturesTimeout

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from promptbus.dead_letters import Span
from promptbus.errors import KafkaUnavailable, PromptBusError
from promptbus.kafka_errors import LOG, UNREACHABLE, describe, error_of, refused, settings_refused
from promptbus.rights import Right
from promptbus.settings import KafkaSettings

DELETE_S = 30.0


def delete_before(settings: KafkaSettings, topic: str, spans: Iterable[Span]) -> dict[int, PromptBusError]:
    """Delete every record below each span's end; what was not possible, by partition.

    Raises SettingsRefused.
    """
    try:
        admin = AdminClient(dict(settings.client_config()), logger=LOG)
    except KafkaException as exception:
        raise settings_refused(exception) from None
    places = [TopicPartition(topic, span.partition, span.end) for span in spans]
    failures: dict[int, PromptBusError] = {}
    futures = admin.delete_records(places, request_timeout=DELETE_S, operation_timeout=DELETE_S)
    for place, future in futures.items():
        try:
            future.result(timeout=2 * DELETE_S)
        except KafkaException as exception:
            failures[place.partition] = why_not(error_of(exception), topic, settings)
        except FuturesTimeout:
            failures[place.partition] = KafkaUnavailable(f"Kafka did not answer within {2 * DELETE_S:g} s")
    return failures


def why_not(error: KafkaError, topic: str, settings: KafkaSettings) -> PromptBusError:
    """The error in a sentence that says what to do."""
    if error.code() == KafkaError.POLICY_VIOLATION:
        return PromptBusError(
            f"Kafka deletes no records of {topic!r}, because it is a compacted topic: "
            "its cleanup.policy must contain `delete`"
        )
    forbidden = refused(error, settings, Right("DELETE", "topic", topic))
    if forbidden is not None:
        return forbidden
    if error.code() in UNREACHABLE:
        return KafkaUnavailable(f"no Kafka broker at {settings.kafka_bootstrap} did it: {describe(error)}")
    return PromptBusError(f"Kafka did not delete: {describe(error)}")
