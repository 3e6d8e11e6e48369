"""The doctor's hold on Kafka: an admin client whose every call ends by one deadline, and what it heard meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from promptbus.kafka_errors import ConnectionNotes
from promptbus.listener import Address
from promptbus_worker.deadline import Deadline
from promptbus_worker.preflight import Finding, fail
from promptbus_worker.settings import Settings

_CALL_S = 5.0

T = TypeVar("T")


class Admin:
    """Owns the AdminClient. Raises KafkaException, TypeError or ValueError for settings that librdkafka refuses."""

    def __init__(self, settings: Settings, deadline: Deadline) -> None:
        self._settings = settings
        self._deadline = deadline
        self._notes = ConnectionNotes()
        # Errors come as findings; librdkafka's own lines would only repeat them, ten times.
        self.logger = logging.getLogger("promptbus_worker.doctor.librdkafka")
        self.logger.disabled = True
        self.client = AdminClient(settings.client_config(), error_cb=self._notes.note, logger=self.logger)

    def call_s(self) -> float:
        """How long the next call may take, seconds."""
        return max(0.1, self._deadline.remaining_s(_CALL_S))

    @property
    def out_of_time(self) -> bool:
        """Nothing more is to be asked."""
        return self._deadline.expired

    def result(self, future: Future[T]) -> T:
        """Wait for `future`, and listen meanwhile. Raises KafkaException, or TimeoutError at the deadline."""
        while not future.done():
            self.client.poll(0.02)
            if self._deadline.expired:
                raise TimeoutError("no answer in time")
        return future.result()

    def named_brokers(self) -> Sequence[Address]:
        """Those that the cluster named, and that a connection to failed."""
        self.client.poll(0)  # brings what the client has to say
        return self._notes.named_brokers()

    def no_answer(self, error: Exception) -> Finding:
        """Why nothing came back."""
        self.client.poll(0)  # brings what the client has to say
        why = self._notes.misunderstanding(self._settings, max(1.0, self._deadline.remaining_s(_CALL_S)))
        if why is not None:
            return fail(why, "")
        return fail(
            f"Kafka {self._settings.kafka_bootstrap} takes connections, but does not answer: {text_of(error)}",
            "is it a Kafka broker, and does KAFKA_SECURITY_PROTOCOL fit its listener?",
        )


def text_of(error: Exception) -> str:
    """An exception of confluent-kafka, or any, on one line."""
    first = error.args[0] if error.args else None
    if isinstance(first, KafkaError):
        return _one_line(first.str()) or first.name()
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
