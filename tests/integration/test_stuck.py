"""A worker that stands still is killed and started again and loses nothing; one that only waits is left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, answered, dead_letters, holding
from tests.integration.system import SHORT_SESSIONS, System, Workers, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second
SHORT = {"WORKER_STUCK_S": "5", "TRITON_TIMEOUT_S": "4"}
RESTARTS = "promptbus_worker_restarts_total"

# The worker, which stands still on SIGUSR2: in its event loop, or in its consumer thread. Only the first one of its
# folder does.
STANDS_STILL = """
import os, signal, sys, threading, time
from functools import partial
from confluent_kafka import Consumer
from promptbus_worker import path, worker

asked = threading.Event()

def stand_still():
    time.sleep(3600)

if os.environ["STAND_STILL"] == "loop":
    signal.signal(signal.SIGUSR2, lambda *_: stand_still())
else:
    signal.signal(signal.SIGUSR2, lambda *_: asked.set())

    class StandsStill(Consumer):
        def poll(self, timeout):
            if asked.is_set():
                stand_still()
            return super().poll(timeout)

    path.Intake = partial(path.Intake, make_consumer=StandsStill)
sys.exit(worker.main())
"""


def stuck_line(workers: Workers) -> dict[str, str]:
    (line,) = [line for line in workers.lines() if "worker is stuck" in line["message"]]
    return line


@pytest.mark.parametrize(
    ("where", "says"),
    [("loop", "no heartbeat for "), ("consumer", "its Kafka consumer has made no progress for ")],
)
def test_a_worker_whose_thread_stands_still_is_started_again(whole: System, where: str, says: str) -> None:
    account = Account(whole)
    workers = whole.start(STANDS_STILL, STAND_STILL=where, **SHORT).ready()
    account.publish(600, SLOW)
    answered(whole, 50)
    holding(100, workers)
    (process,) = workers.children()
    process.send_signal(signal.SIGUSR2)
    eventually("it is started again", lambda: workers.metrics().get(RESTARTS) == 1)
    replies = account.settle()
    assert replies.codes == {"ok": 600}
    assert dead_letters(whole) == 0
    assert says in stuck_line(workers)["message"]
    assert "in stand_still" in workers.log.read_text()
    assert [child.pid for child in workers.children()] != [process.pid]
    assert workers.terminate() == 0


def test_a_worker_that_is_frozen_for_too_long_is_started_again(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(**SHORT).ready()
    account.publish(600, SLOW)
    answered(whole, 50)
    holding(100, workers)
    (process,) = workers.children()
    process.send_signal(signal.SIGSTOP)
    eventually("it is started again", lambda: workers.metrics().get(RESTARTS) == 1)
    replies = account.settle()
    assert replies.codes == {"ok": 600}
    assert dead_letters(whole) == 0
    assert stuck_line(workers)["state"] == "stopped by a signal"
    assert workers.terminate() == 0


def test_workers_that_were_frozen_together_with_their_supervisor_go_on(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(**SHORT).ready()
    account.publish(300, SLOW)
    answered(whole, 50)
    (process,) = workers.children()
    everybody = [workers.process.pid, process.pid]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    eventually("they slept for longer than a stuck one may", lambda: time.monotonic() > began + 7)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    assert account.settle().codes == {"ok": 300}
    assert workers.metrics()[RESTARTS] == 0
    assert [child.pid for child in workers.children()] == [process.pid]
    assert workers.terminate() == 0


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[tuple[Kafka, Triton, System]]:
    """Servers of this test's own."""
    with (
        Kafka(properties=SHORT_SESSIONS) as kafka,
        Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton,
        system(kafka, triton, tmp_path) as made,
    ):
        yield kafka, triton, made


@pytest.mark.parametrize("which", ["kafka", "triton"])
def test_a_server_that_hangs_is_no_reason_to_start_a_worker_again(
    breakable: tuple[Kafka, Triton, System], which: str
) -> None:
    kafka, triton, made = breakable
    account = Account(made)
    workers = made.start(**SHORT).ready()
    account.publish(300, SLOW)
    answered(made, 50)
    (process,) = workers.children()
    pid = kafka.pid if which == "kafka" else triton.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    eventually("it hung for twice the limit", lambda: time.monotonic() > began + 11)
    assert workers.get("/live")[0] == 200
    os.kill(pid, signal.SIGCONT)
    assert account.settle().codes == {"ok": 300}
    assert workers.metrics()[RESTARTS] == 0
    assert [child.pid for child in workers.children()] == [process.pid]
    assert workers.terminate() == 0
