"""Each request is answered at its own deadline at the latest, and without inference if it had passed before."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Mapping

import pytest

from promptbus.messages import Reply, decode_reply
from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.mixed import body
from tests.integration.system import Read, Sending, System, Workers, eventually, system

LATE_MS = 400
"""How late an answer may come on a busy machine. Early it may never be."""
LINGER_S = 0.3


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    """One of its own: these tests count its inferences and keep its instances busy."""
    with Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as server:
        yield server


class Clocked:
    """A system whose requests have deadlines relative to the moment of sending."""

    def __init__(self, whole: System, workers: Workers) -> None:
        self.whole = whole
        self.workers = workers

    def send(self, requests: Mapping[str, tuple[str, float | None]]) -> dict[str, int]:
        """Prompt and seconds until the deadline by request id; the deadlines in Unix milliseconds."""
        deadlines = {
            i: int((time.time() + in_s) * 1000) for i, (_, in_s) in requests.items() if in_s is not None
        }
        self.whole.send(
            [
                Sending(
                    body(prompt, request_id=i),
                    None,
                    [("deadline", b"%d" % deadlines[i])] if i in deadlines else [],
                    partition=0,
                )
                for i, (prompt, _) in requests.items()
            ]
        )
        return deadlines

    def reply(self, request_id: str) -> tuple[Reply, Read]:
        record = self.whole.reply_to(request_id)
        return decode_reply(record.value), record

    def check_expired(self, request_id: str, deadline_ms: int) -> Reply:
        """Answered `expired`, at its deadline."""
        reply, record = self.reply(request_id)
        assert reply.error is not None, request_id
        assert (reply.error.code, reply.error.retryable) == ("expired", True)
        late_ms = record.timestamp_ms - deadline_ms
        assert -1 <= late_ms <= LATE_MS, f"{request_id} was answered {late_ms} ms after its deadline"
        return reply

    def check_answered(self, request_id: str) -> Reply:
        reply, _ = self.reply(request_id)
        assert reply.error is None, f"{request_id}: {reply.error}"
        return reply


@pytest.fixture(scope="module")
def clocked(
    shared_kafka: Kafka, triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clocked]:
    folder, env = tmp_path_factory.mktemp("deadlines"), {"BATCH_LINGER_MS": f"{LINGER_S * 1000:g}"}
    with system(shared_kafka, triton, folder, env=env) as whole:
        yield Clocked(whole, whole.start().ready())


def inferences(triton: Triton) -> float:
    """Prompts that Triton has run, and requests for it that failed, by its own count."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(triton.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    names = ("nv_inference_count{", "nv_inference_request_failure{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def test_what_expired_before_it_was_read_is_never_inferred(clocked: Clocked, triton: Triton) -> None:
    before = inferences(triton)
    clocked.send({f"late-{n}": ("x", -n - 0.001) for n in range(100)} | {"on time": ("x", 3600)})
    clocked.check_answered("on time")
    for n in range(100):
        reply, _ = clocked.reply(f"late-{n}")
        assert reply.error is not None
        assert reply.error.code == "expired"
        assert (reply.attempts, reply.timings.inference_ms) == (0, 0)
    assert inferences(triton) == before + 1


def test_what_expires_while_it_waits_is_never_inferred(clocked: Clocked, triton: Triton) -> None:
    before = inferences(triton)
    # Four calls are in flight at most; each of these fills one.
    clocked.send({f"slow-{n}": (f"[[slow:2500]] {n}", None) for n in range(32)})
    eventually("all slots are taken", lambda: gauge(clocked, "in_flight_batches") == 4, within_s=2)
    deadlines = clocked.send({f"behind-{n}": ("x", 0.2 + 0.02 * n) for n in range(20)})
    for request_id, deadline in deadlines.items():
        reply = clocked.check_expired(request_id, deadline)
        assert (reply.attempts, reply.timings.inference_ms) == (0, 0)
    for n in range(32):
        clocked.check_answered(f"slow-{n}")
    assert inferences(triton) == before + 32


def gauge(clocked: Clocked, name: str) -> float:
    return clocked.workers.metrics()[f"promptbus_{name}"]


def test_one_near_deadline_in_a_batch_does_not_hurt_the_others(clocked: Clocked) -> None:
    batch: dict[str, tuple[str, float | None]] = {f"patient-{n}": ("x", None) for n in range(6)}
    batch["cause"] = ("[[slow:2000]]", 60)
    deadlines = clocked.send({**batch, "near": ("x", 0.9)})
    clocked.check_expired("near", deadlines["near"])
    for request_id in batch:
        reply = clocked.check_answered(request_id)
        assert reply.timings.inference_ms >= 2000, "it was in the batch that took so long"
        assert reply.attempts == 1


def test_each_of_a_batch_is_answered_at_its_own_deadline(clocked: Clocked) -> None:
    within: dict[str, tuple[str, float | None]] = {f"staged-{n}": ("x", 0.8 + 0.2 * n) for n in range(7)}
    deadlines = clocked.send({**within, "staged-7": ("[[slow:1900]]", 5)})
    for n in range(5):
        clocked.check_expired(f"staged-{n}", deadlines[f"staged-{n}"])
    # Those whose deadlines lie after the answer get it.
    clocked.check_answered("staged-7")


def test_a_call_is_given_up_at_the_last_deadline_of_its_batch(clocked: Clocked, triton: Triton) -> None:
    timeouts = clocked.workers.metrics()[
        'promptbus_inference_calls_total{model="gpt4_nano",result="timeout"}'
    ]
    requests: dict[str, tuple[str, float | None]] = {f"brief-{n}": ("x", 0.7 + 0.1 * n) for n in range(7)}
    deadlines = clocked.send({**requests, "brief-7": ("[[slow:4000]]", 1.5)})
    for request_id, deadline in deadlines.items():
        clocked.check_expired(request_id, deadline)
    eventually(
        "the call was given up",
        lambda: (
            clocked.workers.metrics()['promptbus_inference_calls_total{model="gpt4_nano",result="timeout"}']
            == timeouts + 1
        ),
        within_s=2,
    )


def test_a_request_without_a_deadline_never_expires(clocked: Clocked) -> None:
    deadlines = clocked.send({"no hurry": ("[[slow:3000]]", None), "in a hurry": ("x", 0.8)})
    clocked.check_expired("in a hurry", deadlines["in a hurry"])
    clocked.check_answered("no hurry")


def test_expired_requests_are_not_dead_lettered_and_counted_once(clocked: Clocked) -> None:
    ended = [decode_reply(record.value) for record in clocked.whole.all_reply_records()]
    assert len({reply.request_id for reply in ended}) == len(ended), "one reply for each"
    expired = sum(reply.error is not None and reply.error.code == "expired" for reply in ended)
    name = 'promptbus_requests_total{code="expired",model="gpt4_nano"}'
    eventually("all are counted", lambda: clocked.workers.metrics()[name] == expired)
    assert clocked.whole.all_dead_letters() == []
