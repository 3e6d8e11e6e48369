"""Standing still is noticed; a deadline is kept wherever its request is; one budget serves a whole sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus_worker.deadline import Deadline
from promptbus_worker.expiry import Expiry
from promptbus_worker.freeze import FREEZE_S, FreezeGuard
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Pending, Phase, Record
from tests.unit.worker.virtual_time import loop, run


def expiring(expires_at: float | None, phase: Phase = Phase.WAITING) -> Pending:
    record = Record(Ownership("requests", 0, 1), 0, 0, None, b"{}", None, 0, 0.0)
    request = Pending(record, "r", "reply", "results")
    request.expires_at, request.phase = expires_at, phase
    return request


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=40), st.floats(0, 60))
def test_a_freeze_is_a_gap_of_more_than_a_second_and_is_dated_at_its_end(
    gaps: list[float], asked: float
) -> None:
    now, last_freeze = 0.0, float("-inf")
    guard = FreezeGuard(now)
    for gap in gaps:
        before, now = now, now + gap
        guard.tick(now)
        if now - before > FREEZE_S:
            last_freeze = now
    assert guard.woke_at == last_freeze
    assert guard.since(asked) == (last_freeze >= asked)


def test_a_guard_that_is_told_the_time_often_sees_no_freeze() -> None:
    guard = FreezeGuard(0.0)
    for tick in range(1, 1000):
        guard.tick(tick * FREEZE_S)
    assert guard.woke_at == float("-inf")


def test_each_request_expires_at_its_own_deadline_and_not_before() -> None:
    async def body() -> None:
        start = loop().time()
        expired: list[tuple[float, Pending]] = []
        expiry = Expiry(lambda request: expired.append((loop().time() - start, request)), loop().time)
        requests = [expiring(start + delay) for delay in (30.0, 10.0, 20.0, 10.0)]
        requests[2].phase = Phase.IN_FLIGHT
        for request in requests:
            expiry.watch(request)
        await asyncio.sleep(60)
        assert [when for when, _ in expired] == pytest.approx([10, 10, 20, 30], abs=0.01)
        assert [request for _, request in expired] == [requests[1], requests[3], requests[2], requests[0]]

    run(body())


@pytest.mark.parametrize("phase", [Phase.ANSWERED, Phase.DROPPED])
def test_what_is_answered_or_dropped_does_not_expire(phase: Phase) -> None:
    async def body() -> None:
        expired: list[Pending] = []
        expiry = Expiry(expired.append, loop().time)
        request = expiring(loop().time() + 1)
        expiry.watch(request)
        request.phase = phase
        await asyncio.sleep(5)
        assert expired == []

    run(body())


def test_a_request_without_deadline_is_not_watched() -> None:
    async def body() -> None:
        expired: list[Pending] = []
        Expiry(expired.append, loop().time).watch(expiring(None))
        await asyncio.sleep(10_000)
        assert expired == []

    run(body())


def test_a_deadline_in_the_past_expires_at_once() -> None:
    async def body() -> None:
        start = loop().time()
        expired: list[Pending] = []
        Expiry(expired.append, loop().time).watch(expiring(start - 5))
        await asyncio.sleep(0.01)
        assert len(expired) == 1

    run(body())


def test_one_timer_serves_many_deadlines() -> None:
    async def body() -> None:
        def timers() -> int:
            return len([handle for handle in loop()._scheduled if not handle.cancelled()])  # type: ignore[attr-defined]  # the standard library's own list

        expiry = Expiry(lambda request: None, loop().time)
        before = timers()
        for delay in range(100, 0, -1):
            expiry.watch(expiring(loop().time() + delay))
        assert timers() == before + 1

    run(body())


def test_answered_requests_are_forgotten_long_before_a_far_deadline() -> None:
    async def body() -> None:
        expired: list[Pending] = []
        expiry = Expiry(expired.append, loop().time)
        near = expiring(loop().time() + 60)
        expiry.watch(near)
        for _ in range(10_000):
            request = expiring(loop().time() + 1e9)
            expiry.watch(request)
            request.phase = Phase.ANSWERED
        assert len(expiry) < 3000
        await asyncio.sleep(61)
        assert expired == [near], "and nobody else is"

    run(body())


def test_a_failing_callback_does_not_stop_the_deadlines_of_others() -> None:
    async def body() -> None:
        expired: list[Pending] = []

        def on_expired(request: Pending) -> None:
            expired.append(request)
            if len(expired) == 1:
                raise RuntimeError("a defect")

        loop().set_exception_handler(lambda _, context: None)
        expiry = Expiry(on_expired, loop().time)
        for _ in range(3):
            expiry.watch(expiring(loop().time() + 1))
        await asyncio.sleep(2)
        assert len(expired) == 3

    run(body())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("passed", "at_most", "remaining", "expired"),
    [
        (0.0, float("inf"), 5.0, False),
        (0.0, 2.0, 2.0, False),
        (4.0, 2.0, 1.0, False),
        (5.0, 2.0, 0.0, True),
        (9.0, float("inf"), 0.0, True),
    ],
)
def test_a_budget_counts_down_and_is_never_negative(
    passed: float, at_most: float, remaining: float, expired: bool
) -> None:
    clock = Clock()
    tell: Callable[[], float] = clock
    deadline = Deadline(5.0, tell)
    clock.now += passed
    assert deadline.remaining_s(at_most) == pytest.approx(remaining)
    assert deadline.expired is expired
