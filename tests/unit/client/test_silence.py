"""Why nobody answers: asked again while Kafka refuses the question for a moment."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from promptbus import silence
from promptbus.silence import Reason, Silence
from tests.unit.client.place import settings_for

TOLD = Reason("nobody consumes", 0)


class Refusing(Silence):
    """Its question is refused with these codes, and then answered."""

    def __init__(self, *codes: int) -> None:
        super().__init__(settings_for("127.0.0.1:1"), "requests", "group")
        self._codes = list(codes)

    def _ask(self) -> Reason:
        if self._codes:
            raise KafkaException(KafkaError(self._codes.pop(0)))
        return TOLD


def test_a_coordinator_that_comes_into_being_is_waited_for() -> None:
    codes = KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS
    assert Refusing(*codes).reason() == TOLD


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "ASK_S", 0.3)
    reason = Refusing(*[KafkaError.COORDINATOR_LOAD_IN_PROGRESS] * 100).reason()
    assert "COORDINATOR_LOAD_IN_PROGRESS" in reason.sentence
    assert reason.consumers is None


def test_a_missing_right_is_told_at_once() -> None:
    reason = Refusing(KafkaError.GROUP_AUTHORIZATION_FAILED).reason()
    assert "DESCRIBE on group 'group'" in reason.sentence
