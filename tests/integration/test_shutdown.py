"""However the worker is told to stop, it answers none twice, loses none, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, answered, holding, shared, uncommitted
from tests.integration.system import SHORT_SESSIONS, System, Workers, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second


def family(workers: Workers) -> list[psutil.Process]:
    """The supervisor and everything it started."""
    parent = psutil.Process(workers.process.pid)
    return [parent, *parent.children(recursive=True)]


def none_left(processes: list[psutil.Process]) -> None:
    """Wait until none of them lives."""
    eventually("every process is gone", lambda: not any(map(lives, processes)), 20)


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def press_ctrl_c(workers: Workers) -> None:
    """What a terminal does: SIGINT to its foreground process group."""
    os.killpg(workers.process.pid, signal.SIGINT)


def began_to_drain(workers: Workers) -> None:
    """Wait until a worker process says so."""
    eventually("it drains", lambda: any(line["message"] == "draining" for line in workers.lines()), 30)


@pytest.mark.parametrize("refused_every", [0, 5], ids=["plain", "with rejections"])
def test_sigterm_in_mid_stream_answers_none_twice(whole: System, refused_every: int) -> None:
    account = Account(whole)
    workers = whole.start().ready()
    account.publish(900, SLOW, refused_every=refused_every)
    answered(whole, 50)
    holding(100, workers)
    processes = family(workers)
    assert workers.terminate() == 0
    none_left(processes)
    left = len(account) - len(whole.collected().by_id)
    assert left > 0  # it was in mid-stream
    assert uncommitted(whole) == left
    whole.start().ready()
    replies = account.settle()
    assert replies.repeated == []
    assert whole.workers[1].terminate() == 0


def test_sigterm_while_triton_is_gone_leaves_the_rest(shared_kafka: Kafka, tmp_path: Path) -> None:
    with (
        Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton,
        system(shared_kafka, triton, tmp_path) as made,
    ):
        account = Account(made)
        workers = made.start().ready()
        account.publish(600, SLOW)
        answered(made, 50)
        triton.kill()
        eventually("the breaker is open", lambda: workers.metrics()["promptbus_breaker_open"] == 1)
        began = time.monotonic()
        assert workers.terminate() == 0
        assert time.monotonic() - began < 10  # and not WORKER_DRAIN_S, 20 s
        assert len(made.collected().by_id) < 600
        triton.start()
        made.start().ready()
        assert account.settle().repeated == []


def test_a_slow_call_is_finished_before_the_end(whole: System) -> None:
    account = Account(whole)
    workers = whole.start().ready()
    account.publish(6, "[[slow:3000]]")
    eventually("a call is under way", lambda: workers.metrics()["promptbus_in_flight_requests"] > 0)
    assert workers.terminate() == 0
    replies = whole.collected()
    assert len(replies.by_id) > 0
    assert uncommitted(whole) == len(account) - len(replies.by_id)
    whole.start().ready()
    assert account.settle().repeated == []


def test_a_drain_out_of_time_loses_nothing(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(WORKER_DRAIN_S="1").ready()
    account.publish(6, "[[slow:5000]]")
    eventually("a call is under way", lambda: workers.metrics()["promptbus_in_flight_requests"] > 0)
    processes = family(workers)
    began = time.monotonic()
    assert workers.terminate() == 3
    assert time.monotonic() - began < 8
    none_left(processes)
    assert whole.collected().by_id == {}
    assert any("the drain ran out of time" in line["message"] for line in workers.lines())
    whole.start().ready()
    assert account.settle().repeated == []


def test_two_of_three_stopped_at_once_answer_none_twice(whole: System) -> None:
    account = Account(whole)
    workers = [whole.start() for _ in range(3)]
    shared(whole, 3)
    account.publish(900, SLOW)
    answered(whole, 50)
    holding(100, *workers[1:])
    for each in workers[1:]:
        each.process.send_signal(signal.SIGTERM)
    for each in workers[1:]:
        assert each.process.wait(40) == 0
    assert account.settle().repeated == []


def test_ctrl_c_drains(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(WORKER_PROCESSES="2").ready()
    shared(whole, 2)
    account.publish(600, SLOW)
    answered(whole, 50)
    holding(100, workers)
    processes = family(workers)
    assert len(processes) == 3
    press_ctrl_c(workers)
    assert workers.process.wait(40) == 0
    none_left(processes)
    assert 0 < len(whole.collected().by_id) < 600
    whole.start().ready()
    assert account.settle().repeated == []


def test_a_second_ctrl_c_stops_at_once(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(WORKER_PROCESSES="2").ready()
    account.publish(64, "[[slow:8000]]")
    eventually("a call is under way", lambda: workers.metrics()["promptbus_in_flight_requests"] > 0)
    processes = family(workers)
    press_ctrl_c(workers)
    began_to_drain(workers)
    began = time.monotonic()
    press_ctrl_c(workers)
    assert workers.process.wait(20) == 3
    assert time.monotonic() - began < 4  # a call takes twice as long
    none_left(processes)
    assert whole.collected().by_id == {}


def test_workers_without_their_supervisor_drain(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(WORKER_PROCESSES="2").ready()
    shared(whole, 2)
    account.publish(600, SLOW)
    answered(whole, 50)
    holding(100, workers)
    processes = family(workers)
    workers.process.kill()
    workers.process.wait()
    none_left(processes)
    assert sum(line["message"] == "the supervisor is gone" for line in workers.lines()) == 2
    left = len(account) - len(whole.collected().by_id)
    assert left > 0
    assert uncommitted(whole) == left
    whole.start().ready()
    assert account.settle().repeated == []


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Kafka]:
    """A broker that these tests stop."""
    with Kafka(properties=SHORT_SESSIONS) as kafka:
        yield kafka


def test_sigterm_while_kafka_is_gone_ends_in_time(
    own_kafka: Kafka, shared_triton: Triton, tmp_path: Path
) -> None:
    with system(own_kafka, shared_triton, tmp_path) as made:
        account = Account(made)
        workers = made.start(WORKER_DRAIN_S="3").ready()
        account.publish(600, SLOW)
        answered(made, 50)
        own_kafka.kill()
        processes = family(workers)
        assert workers.terminate() in (0, 3)  # 3: replies that no broker acknowledged
        none_left(processes)
        own_kafka.start()
        made.start().ready()
        account.settle()
