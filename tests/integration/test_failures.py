"""Triton, Kafka or a worker fails under load: nothing is lost, nothing is wrong, no prompt is charged for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, answered, dead_letters, holding, uncommitted
from tests.integration.system import SHORT_SESSIONS, System, Workers, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second
OUT_OF_TIME = 'promptbus_retries_total{reason="timeout"}'


@pytest.fixture(scope="module")
def module_triton() -> Iterator[Triton]:
    with Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton:
        yield triton


@pytest.fixture
def own_triton(module_triton: Triton) -> Triton:
    """Runs at the start of each test, which may break it."""
    if len(module_triton.stubs()) < 2:
        module_triton.kill()
    return module_triton.start()


@pytest.fixture
def fragile(shared_kafka: Kafka, own_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """Topics on the shared Kafka, and a Triton that may be broken."""
    with system(shared_kafka, own_triton, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Kafka]:
    """A broker that these tests stop."""
    with Kafka(properties=SHORT_SESSIONS) as kafka:
        yield kafka


@pytest.fixture
def on_own_kafka(own_kafka: Kafka, shared_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """The system on a broker that may be stopped."""
    with system(own_kafka.start(), shared_triton, tmp_path) as made:
        yield made


def gone(workers: Workers, partitions: int = 6) -> None:
    """Wait until the worker has noticed that Triton does not answer."""

    def noticed() -> bool:
        now = workers.metrics()
        return now["promptbus_breaker_open"] == 1 and now["promptbus_paused_partitions"] == partitions

    eventually("the breaker is open and the partitions are paused", noticed)


def back(workers: Workers) -> None:
    """Wait until the worker calls Triton again."""
    eventually("the breaker is closed", lambda: workers.metrics()["promptbus_breaker_open"] == 0)


def test_dead_stubs_charge_no_prompt(fragile: System, own_triton: Triton) -> None:
    account = Account(fragile)
    workers = fragile.start().ready()
    account.publish(600, SLOW)
    answered(fragile, 50)
    holding(100, workers)
    assert own_triton.kill_stubs() == 2
    gone(workers)
    assert own_triton.ready  # so readiness is no reason to go on
    assert len(fragile.collected().by_id) < len(account)
    own_triton.kill()
    own_triton.start()
    replies = account.settle()
    assert replies.codes == {"ok": 600}
    assert replies.repeated == []
    assert dead_letters(fragile) == 0
    back(workers)
    assert workers.terminate() == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_triton_may_go_and_come_back(fragile: System, own_triton: Triton, how: str) -> None:
    account = Account(fragile)
    workers = fragile.start().ready()
    account.publish(600, SLOW)
    answered(fragile, 50)
    holding(100, workers)
    if how == "stop":
        own_triton.stop()
    else:
        own_triton.kill()
    gone(workers)
    assert len(fragile.collected().by_id) < len(account)
    own_triton.start()
    replies = account.settle()
    assert replies.codes == {"ok": 600}
    assert replies.repeated == []
    assert dead_letters(fragile) == 0
    back(workers)
    assert workers.metrics()["promptbus_paused_partitions"] == 0
    assert workers.terminate() == 0


def says_so_twice(workers: Workers, what: str) -> None:
    """Wait for the second line that says what it waits for; the lines are seconds apart, not a flood."""
    message = f"waiting for {what}"
    eventually(message, lambda: sum(message in line["message"] for line in workers.lines()) == 2, 30)
    status, body = workers.get("/ready")
    assert status == 503
    assert message in body
    assert workers.get("/live")[0] == 200


def test_a_worker_waits_for_an_absent_triton(fragile: System, own_triton: Triton) -> None:
    own_triton.kill()
    account = Account(fragile)
    account.publish(100)
    workers = fragile.start()
    says_so_twice(workers, f"Triton at {own_triton.url}")
    own_triton.start()
    workers.ready()
    assert account.settle().repeated == []
    assert workers.terminate() == 0


def test_a_worker_waits_for_an_absent_kafka(on_own_kafka: System, own_kafka: Kafka) -> None:
    account = Account(on_own_kafka)
    account.publish(100)
    bootstrap = own_kafka.bootstrap
    own_kafka.stop()
    workers = on_own_kafka.start()
    says_so_twice(workers, f"Kafka at {bootstrap}")
    own_kafka.start()
    workers.ready()
    assert account.settle().repeated == []
    assert workers.terminate() == 0


def test_a_broker_may_be_killed_under_load(on_own_kafka: System, own_kafka: Kafka) -> None:
    account = Account(on_own_kafka)
    workers = on_own_kafka.start().ready()
    account.publish(300, SLOW)
    with account.load(100, SLOW):
        answered(on_own_kafka, 100)
        holding(100, workers)
        own_kafka.kill()
        own_kafka.start()
        answered(on_own_kafka, 600)
    replies = account.settle()
    assert replies.codes == {"ok": len(account)}
    assert workers.terminate() == 0


def test_requests_deleted_before_they_were_answered_stop_the_worker(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path
) -> None:
    with system(shared_kafka, shared_triton, tmp_path, partitions=1) as made:
        account = Account(made)
        account.publish(10)
        workers = made.start()
        account.settle()
        assert workers.terminate() == 0
        account.publish(20)
        admin = AdminClient({"bootstrap.servers": shared_kafka.bootstrap, "log_level": 0})
        for future in admin.delete_records([TopicPartition(made.requests, 0, 15)]).values():
            assert future.result(30).low_watermark == 15
        workers = made.start()
        assert workers.process.wait(60) == 1
        assert any("committed offset is out of range" in line["message"] for line in workers.lines())
        assert len(made.collected().by_id) == 10
        assert made.committed() == 10
        assert uncommitted(made) == 15


def test_a_frozen_worker_burns_no_attempt_and_comes_back(either_protocol: System) -> None:
    whole = either_protocol
    account = Account(whole)
    frozen = whole.start(TRITON_TIMEOUT_S="4").ready()
    account.publish(400, "[[slow:500]]")
    answered(whole, 20)
    holding(100, frozen)
    assert frozen.metrics()["promptbus_in_flight_requests"] >= 16
    (process,) = frozen.children()
    process.send_signal(signal.SIGSTOP)
    other = whole.start(TRITON_TIMEOUT_S="4").ready()
    # Only after the session's end are the partitions given away; by then every call was due long ago.
    eventually("the other one has all", lambda: other.metrics()["promptbus_assigned_partitions"] == 6)
    answered(whole, 100)
    process.send_signal(signal.SIGCONT)
    eventually("the frozen one has partitions again", lambda: rejoined(frozen, other))
    replies = account.settle()
    assert replies.codes == {"ok": 400}
    assert {reply.attempts for reply in replies.first.values()} == {1}
    assert frozen.metrics()[OUT_OF_TIME] == 0
    assert frozen.metrics()['promptbus_rebalances_total{kind="lost"}'] == 1
    assert frozen.terminate() == 0
    assert other.terminate() == 0


def rejoined(frozen: Workers, other: Workers) -> bool:
    """Whether the two share the partitions."""
    return (
        frozen.metrics()["promptbus_assigned_partitions"] == 3
        and other.metrics()["promptbus_assigned_partitions"] == 3
    )
