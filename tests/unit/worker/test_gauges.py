"""What the gauges of a worker say while requests wait, run, are answered, and are acknowledged."""

from __future__ import annotations

import asyncio

from prometheus_client import Counter, Gauge

from promptbus_worker.outcomes import CallFailure
from tests.unit.worker.path import Path, Refusal
from tests.unit.worker.virtual_time import in_virtual_time, loop


def value(metric: Counter | Gauge) -> float:
    (sample,) = [sample for sample in next(iter(metric.collect())).samples if "_created" not in sample.name]
    return sample.value


def in_flight(path: Path) -> tuple[float, float, float]:
    """Requests in flight, the age of the oldest, and requests waiting."""
    path.dispatcher.update_gauges()
    metrics = path.metrics
    age_s = value(metrics.oldest_in_flight_seconds)
    return value(metrics.in_flight_requests), round(age_s, 1), value(metrics.waiting_requests)


def ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


@in_virtual_time
async def test_requests_are_in_flight_from_their_call_until_their_reply_is_acknowledged() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 10
    path.broker.acknowledging = False
    path.ask(*ids(10))
    assert in_flight(path) == (8, 0.0, 2)
    await asyncio.sleep(4)
    assert in_flight(path) == (8, 4.0, 2)
    assert value(path.metrics.in_flight_batches) == 1
    await asyncio.sleep(7)
    assert in_flight(path) == (10, 11.0, 0), "answered, and not acknowledged"
    await asyncio.sleep(600)
    assert in_flight(path) == (10, 611.0, 0), "Kafka takes no replies: somebody should look"
    path.broker.acknowledging = True
    await path.settle(10)
    assert in_flight(path) == (0, 0.0, 0)
    assert value(path.metrics.in_flight_batches) == 0


@in_virtual_time
async def test_what_is_refused_at_admission_is_in_flight_until_acknowledged_too() -> None:
    path = Path()
    path.broker.acknowledging = False
    path.publish(b"garbage")
    await asyncio.sleep(5)
    assert in_flight(path) == (1, 5.0, 0)
    path.broker.acknowledging = True
    await path.settle(1)
    assert in_flight(path) == (0, 0.0, 0)


@in_virtual_time
async def test_a_part_that_was_answered_or_waits_again_is_not_counted_twice() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 1
    path.model.poison = {"p3"}
    path.ask(*ids(8))
    for _ in range(200):
        await asyncio.sleep(0.1)
        requests, _, waiting = in_flight(path)
        assert requests + waiting == path.ledger.records_in_hand
    await path.settle(8)
    assert in_flight(path) == (0, 0.0, 0)


@in_virtual_time
async def test_replies_that_are_dropped_with_their_epoch_are_in_flight_no_more() -> None:
    path = Path()
    path.broker.acknowledging = False
    path.ask(*ids(3))
    await asyncio.sleep(1)
    assert in_flight(path)[0] == 3
    path.ledger.end(path.owned)
    path.dispatcher.forget([path.owned])
    path.broker.answers = lambda topic, size: Refusal("_MSG_TIMED_OUT")
    path.broker.acknowledging = True
    await asyncio.sleep(5)
    assert in_flight(path) == (0, 0.0, 0)


@in_virtual_time
async def test_the_breaker_is_one_while_calls_are_held_back() -> None:
    path = Path()
    path.model.failure = CallFailure.REFUSED
    path.ask("a")
    await asyncio.sleep(1)
    path.dispatcher.update_gauges()
    assert value(path.metrics.breaker_open) == 1
    path.model.failure = None
    await path.settle(1)
    path.dispatcher.update_gauges()
    assert value(path.metrics.breaker_open) == 0


@in_virtual_time
async def test_what_goes_back_because_we_stood_still_is_counted_as_a_retry() -> None:
    path = Path(timeout_s=5)
    path.model.hangs = {"a"}

    def wakes() -> None:
        path.dispatcher.freeze.woke_at = loop().time()
        path.model.hangs = set()

    path.model.before_answer = wakes
    path.ask("a")
    await path.settle(1)
    assert path.codes() == {"a": "ok"}
    assert path.replies_by_id()["a"].attempts == 1, "the call in the freeze was none"
    assert value(path.metrics.retries_total["timeout"]) == 1, "but it was repeated"
