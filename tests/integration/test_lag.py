"""What /metrics says of lag: nothing when all is answered, more and older while Triton is gone, each partition once."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, answered
from tests.integration.system import System, Workers, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second
PARTITIONS = 6


@pytest.fixture
def fragile(shared_kafka: Kafka, tmp_path: Path) -> Iterator[tuple[System, Triton]]:
    """Topics on the shared Kafka, and a Triton of the test's own."""
    with (
        Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton,
        system(shared_kafka, triton, tmp_path) as made,
    ):
        yield made, triton


def of_partitions(workers: Workers, name: str) -> dict[int, float]:
    """Partition → value, of a gauge that there is for each of them; one with two series fails the test."""
    found: dict[int, float] = {}
    _, body = workers.get("/metrics")
    for line in body.splitlines():
        if match := re.fullmatch(rf'promptbus_{name}{{partition="(\d+)",topic="[^"]+"}} (\S+)', line):
            partition = int(match[1])
            assert partition not in found, f"two series of partition {partition}:\n{body}"
            found[partition] = float(match[2])
    return found


def lag(workers: Workers) -> float:
    """Records behind over all partitions; NaN while one of them has no series."""
    records = of_partitions(workers, "lag_records")
    return sum(records.values()) if len(records) == PARTITIONS else math.nan


def no_lag(workers: Workers) -> bool:
    """Whether /metrics says that nothing waits, in every way it can."""
    seconds = of_partitions(workers, "lag_seconds")
    return (
        lag(workers) == 0
        and set(seconds.values()) == {0.0}
        and workers.metrics()["promptbus_time_to_drain_seconds"] == 0
    )


def test_the_lag_of_a_backlog_shrinks_to_nothing(whole: System) -> None:
    account = Account(whole)
    account.publish(900, SLOW)
    workers = whole.start().ready()
    eventually("a backlog is seen", lambda: lag(workers) > 300)
    metrics = workers.metrics()
    assert metrics["promptbus_oldest_in_flight_seconds"] < 5
    assert max(of_partitions(workers, "lag_seconds").values()) > 0
    eventually(
        "the end is in sight",
        lambda: 0 < workers.metrics()["promptbus_time_to_drain_seconds"] < 60,
        10,
    )
    assert account.settle().codes == {"ok": 900}
    eventually("no lag", lambda: no_lag(workers), 10)
    assert workers.metrics()["promptbus_oldest_in_flight_seconds"] == 0
    assert workers.metrics()["promptbus_redeliveries_skipped_total"] == 0
    assert workers.terminate() == 0


def test_while_triton_is_gone_lag_grows_although_nothing_is_fetched(fragile: tuple[System, Triton]) -> None:
    whole, triton = fragile
    account = Account(whole)
    workers = whole.start().ready()
    account.publish(12)
    answered(whole, 12)
    eventually("no lag", lambda: no_lag(workers), 10)
    triton.stop()
    account.publish(60)
    eventually("paused", lambda: workers.metrics()["promptbus_paused_partitions"] == PARTITIONS)
    eventually("the first lag", lambda: lag(workers) == 60, 15)
    account.publish(600)  # these are not even fetched
    eventually("the brokers were asked", lambda: lag(workers) == 660, 15)
    age_s = max(of_partitions(workers, "lag_seconds").values())
    assert age_s > 1
    eventually(
        "hopeless so far", lambda: workers.metrics()["promptbus_time_to_drain_seconds"] == math.inf, 25
    )
    assert max(of_partitions(workers, "lag_seconds").values()) > age_s
    assert min(of_partitions(workers, "lag_seconds").values()) > 5
    age_s = min(of_partitions(workers, "lag_seconds").values())
    (worker,) = workers.children()
    worker.send_signal(signal.SIGSTOP)
    time.sleep(8)  # its session is over: it loses its partitions, and takes them over again
    worker.send_signal(signal.SIGCONT)
    eventually("lost", lambda: workers.metrics()['promptbus_rebalances_total{kind="lost"}'] > 0)

    def no_younger() -> bool:
        seconds = of_partitions(workers, "lag_seconds").values()
        return (
            lag(workers) == 660
            and min(seconds, default=0) > age_s + 8
            and workers.metrics()["promptbus_time_to_drain_seconds"] == math.inf
        )

    eventually("the backlog is its own again, and no younger for it", no_younger, 10)
    triton.start()
    assert account.settle().codes == {"ok": 672}
    eventually("no lag", lambda: no_lag(workers), 10)
    assert workers.terminate() == 0


def test_the_partitions_of_a_dead_worker_vanish_and_come_back_once_with_their_next_owner(
    whole: System,
) -> None:
    workers = whole.start(WORKER_PROCESSES="2").ready()
    eventually("both share", lambda: len(of_partitions(workers, "lag_records")) == PARTITIONS)
    memory = {name for name in workers.metrics() if "resident_memory" in name}
    assert memory == {f'promptbus_worker_resident_memory_bytes{{slot="{slot}"}}' for slot in (0, 1)}
    before = workers.metrics()
    dead, frozen = workers.children()
    # The other one is frozen meanwhile, so that nobody can take the partitions over before we have looked.
    frozen.send_signal(signal.SIGSTOP)
    dead.kill()
    eventually("its partitions vanish", lambda: len(of_partitions(workers, "lag_records")) == 3, 5)
    frozen.send_signal(signal.SIGCONT)
    eventually("all have an owner", lambda: len(of_partitions(workers, "lag_records")) == PARTITIONS, 30)
    after = workers.metrics()
    for name, value in before.items():
        if "_total" in name:
            assert after[name] >= value, name
    assert workers.terminate() == 0
