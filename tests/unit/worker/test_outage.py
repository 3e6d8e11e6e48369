"""What an operator reads when a service goes and comes back."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import pytest
from confluent_kafka import KafkaException

from promptbus_worker.broker_watch import BrokerWatch
from promptbus_worker.outage import Outage
from promptbus_worker.outcomes import CallFailure
from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import loop, run


def test_one_line_when_it_goes_one_a_minute_and_one_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(logging.getLogger("test"), "Kafka at k:9092")
    outage.look(False, 0.0)
    for second in range(150):
        outage.look(True, 10.0 + second, "refused", ": requests wait")
    outage.look(False, 160.5)
    outage.look(False, 161.0)
    assert caplog.messages == [
        "Kafka at k:9092 does not answer: requests wait",
        "Kafka at k:9092 still does not answer, for 60 s now",
        "Kafka at k:9092 still does not answer, for 120 s now",
        "Kafka at k:9092 answers again, after 150.5 s",
    ]
    assert [vars(r).get("error") for r in caplog.records] == ["refused", "refused", "refused", None]


def test_a_triton_that_goes_and_comes_back_is_four_lines_however_many_calls_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        path = Path()
        path.model.failure = CallFailure.REFUSED
        path.ask("a", "b", "c")
        await asyncio.sleep(30)
        path.model.failure = None
        await path.settle(3)

    run(body())
    gone, paused, back, resumed = caplog.messages
    assert paused == "no model can be called: partitions are paused until one answers"
    assert gone == "Triton's model gpt4_nano does not answer"
    assert resumed == "partitions resume"
    assert back.startswith("Triton's model gpt4_nano answers again, after 3")
    assert vars(caplog.records[0])["error"] == "refused"


def test_a_dead_letter_has_a_line_that_says_which_request_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        path = Path()
        path.model.poison = {"secret prompt"}
        path.ask("fine")
        path.ask("secret prompt")
        await path.settle(2)

    run(body())
    (line,) = [r for r in caplog.records if r.getMessage() == "a request goes to the dead letters"]
    fields = vars(line)
    assert {name: fields[name] for name in ("request_id", "topic", "partition", "offset", "code")} == {
        "request_id": "secret prompt",
        "topic": "requests",
        "partition": 0,
        "offset": 1,
        "code": "model_error",
    }
    assert isinstance(fields["epoch"], int)


class Brokers:
    """What asking them comes to, and logging in."""

    def __init__(self, gone_for: int = 0, refused_for: int = 0) -> None:
        self.gone_for = gone_for
        self.refused_for = refused_for
        self.asked = 0
        self.logins = 0

    def ask(self) -> None:
        self.asked += 1
        if self.asked <= self.gone_for:
            raise KafkaException("no")

    def log_in(self) -> str | None:
        self.logins += 1
        return "check the password" if self.logins <= self.refused_for else None


def watched(brokers: Brokers, monkeypatch: pytest.MonkeyPatch, *errors: str, for_s: float = 100) -> None:
    async def at_once(function: partial[object]) -> object:
        return function()

    async def body() -> None:
        watch = BrokerWatch(brokers.ask, brokers.log_in, "k:9092", loop().time)
        for _ in range(100):
            for error in errors or ("_ALL_BROKERS_DOWN",):
                watch.trouble(error, "1/1 brokers are down")
        await asyncio.sleep(for_s)
        asked = brokers.asked, brokers.logins
        await asyncio.sleep(100)
        assert (brokers.asked, brokers.logins) == asked, "it sleeps when all is well"
        await watch.stop()
        watch.trouble("_FAIL", "too late")
        await asyncio.sleep(10)
        assert (brokers.asked, brokers.logins) == asked

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", at_once)  # a thread's time is not virtual
        run(body())


def test_brokers_that_are_gone_are_two_lines_whatever_the_client_reports(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched(Brokers(gone_for=7), monkeypatch)
    assert caplog.messages == [
        "Kafka at k:9092 does not answer: requests wait until it does",
        "Kafka at k:9092 answers again, after 7.0 s",
    ]


def test_a_connection_that_is_only_replaced_is_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched(Brokers(gone_for=0), monkeypatch)
    assert caplog.messages == []


def test_a_refused_login_is_told_with_its_reason_and_tried_again_at_leisure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    brokers = Brokers(refused_for=12)
    watched(brokers, monkeypatch, "_ALL_BROKERS_DOWN", "_AUTHENTICATION", for_s=130)
    assert caplog.messages == [
        "Kafka at k:9092 cannot be connected to: requests wait until it can",
        "Kafka at k:9092 still cannot be connected to, for 60 s now",
        "Kafka at k:9092 answers again, after 120.0 s",
    ]
    assert [vars(r).get("error") for r in caplog.records] == [
        "check the password",
        "check the password",
        None,
    ]
    assert brokers.logins == 13


def test_a_login_that_works_again_at_once_is_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    brokers = Brokers()
    watched(brokers, monkeypatch, "_AUTHENTICATION")
    assert (brokers.logins, caplog.messages) == (1, [])
