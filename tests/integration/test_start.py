"""What a worker says and does at start when something is missing."""

from __future__ import annotations

import itertools
import os
import signal
import time
from datetime import datetime

import pytest

from promptbus_worker.startup import SAY_EVERY_S
from stack import compiled
from stack.ports import free_ports
from tests.integration.account import Account
from tests.integration.system import System, Workers, eventually


def test_missing_topics_are_named_with_what_to_do(whole: System) -> None:
    workers = whole.start(KAFKA_REPLY_TOPIC="no-replies", KAFKA_DEAD_LETTER_TOPIC="no-dead-letters")
    assert workers.process.wait(60) == 1
    (line,) = [line for line in workers.lines() if line["logger"] == "promptbus_worker.worker"]
    assert line["level"] == "error"
    assert "no-replies, no-dead-letters" in line["message"]
    assert "KAFKA_CREATE_TOPICS=true" in line["message"]
    assert whole.kafka.bootstrap in line["message"]


def test_missing_topics_are_made_where_that_is_allowed(whole: System) -> None:
    dead_letters = f"{whole.dead}-own"
    workers = whole.start(KAFKA_DEAD_LETTER_TOPIC=dead_letters, KAFKA_CREATE_TOPICS="true").ready()
    account = Account(whole)
    account.publish(20)
    assert account.settle().codes == {"ok": 20}
    whole.publish([b"no request"])
    (dead,) = whole.reader(dead_letters, 1).records(1, 30)
    assert dead.value == b"no request"
    assert workers.terminate() == 0


def test_the_worker_says_whether_it_runs_compiled(whole: System) -> None:
    workers = whole.start().ready()
    (line,) = [line for line in workers.lines() if line["message"] == "consuming"]
    built = compiled.environment()
    assert bool(line["compiled"]) == bool(built and os.environ.get("PYTHONPATH") == built["PYTHONPATH"])
    assert workers.terminate() == 0


def said_at(workers: Workers, message: str) -> list[float]:
    """When these lines were written."""
    times = [line["ts"] for line in workers.lines() if message in line["message"]]
    return [datetime.fromisoformat(time).timestamp() for time in times]


@pytest.mark.parametrize("missing", ["Kafka", "Triton"])
def test_waiting_is_said_every_few_seconds_and_ctrl_c_ends_it_at_once(whole: System, missing: str) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    variable = {"Kafka": "KAFKA_BOOTSTRAP", "Triton": "TRITON_URL"}[missing]
    workers = whole.start(**{variable: address})
    message = f"waiting for {missing} at {address}"
    eventually("three lines", lambda: len(said_at(workers, message)) >= 3)
    times = said_at(workers, message)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= SAY_EVERY_S - 0.1, "no flood"
    assert max(gaps) <= 4 * SAY_EVERY_S, "and no silence"
    status, body = workers.get("/ready")
    assert status == 503
    assert message in body
    assert workers.get("/live")[0] == 200
    others = [line for line in workers.lines() if line["level"] != "info" and message not in line["message"]]
    assert len(others) <= 8, others
    began = time.monotonic()
    workers.process.send_signal(signal.SIGINT)
    assert workers.process.wait(30) == 0
    assert time.monotonic() - began < 8
