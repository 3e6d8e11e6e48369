"""The limiter's promises after any sequence of events; what it finds out about servers is in test_limiter_simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus_worker.limiter import AVOID_S, DECREASE, Limiter, Load


@dataclass
class Worker:
    """Calls a server that takes `duration_s` and runs `instances` calls at once, and hears of it every second."""

    limiter: Limiter
    instances: float = float("inf")
    duration_s: float = 0.1
    now: float = 100.0
    heard_at: float = 100.0
    limits: list[int] = field(default_factory=list)

    def round(self, *, share: float = 1.0) -> None:
        """As many calls side by side as the limit allows, or a share of it, all answered."""
        in_flight = max(1, int(self.limiter.limit * share))
        began, self.now = self.now, self.now + self.duration_s * max(1.0, in_flight / self.instances)
        for number in range(in_flight):
            self.limiter.note(began, number + 1)
        for _ in range(in_flight):
            self.limiter.succeeded(began, self.now)
            self.limits.append(self.limiter.limit)
        self.now += 0.001
        if self.now >= self.heard_at + 1:
            running = min(in_flight, self.instances)
            self.limiter.measured(
                Load(running, in_flight - running, in_flight, running / self.duration_s), began, self.now
            )
            self.heard_at = self.now

    def rounds(self, count: int, *, share: float = 1.0) -> None:
        for _ in range(count):
            self.round(share=share)

    def burst(self, calls: int) -> None:
        """Of calls that fill the limit side by side so many are refused, one after the other."""
        began = self.now
        self.limiter.note(began, self.limiter.limit)
        for _ in range(calls):
            self.now += 0.001
            self.limiter.overloaded(began, self.now)
        self.now += 0.001


def test_it_begins_with_the_start_value_within_the_bounds() -> None:
    assert Limiter(4, 1, 32).limit == 4
    assert Limiter(64, 1, 32).limit == 32
    assert Limiter(2, 5, 32).limit == 5


@pytest.mark.parametrize(("minimum", "maximum"), [(0, 4), (5, 4)])
def test_bounds_that_are_none_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="no limit lies between"):
        Limiter(4, minimum, maximum)


def test_a_burst_of_refusals_is_one_decrease() -> None:
    worker = Worker(Limiter(20, 1, 32))
    worker.burst(20)
    assert worker.limiter.limit == int(20 * DECREASE)
    worker.burst(14)
    assert worker.limiter.limit == int(int(20 * DECREASE) * DECREASE)


def test_overload_that_does_not_end_leads_to_the_minimum() -> None:
    worker = Worker(Limiter(20, 2, 32))
    for _ in range(20):
        worker.burst(3)
    assert worker.limiter.limit == 2


def test_a_limit_that_met_overload_is_not_tried_again_for_a_while() -> None:
    worker = Worker(Limiter(8, 1, 32))
    worker.burst(1)
    until = worker.now + AVOID_S
    while worker.now < until - 1:
        worker.round()
    assert max(worker.limits) == 7
    worker.rounds(2000)
    assert worker.limiter.limit > 8


def test_durations_that_do_not_grow_with_the_limit_let_it_grow_to_the_maximum() -> None:
    worker = Worker(Limiter(2, 1, 32))
    worker.rounds(100)
    assert max(worker.limits) == 32
    assert worker.limits.count(32) > len(worker.limits) / 2


@pytest.mark.parametrize(("instances", "limit"), [(1, 2), (2, 4), (4, 7), (8, 13)])
def test_every_instance_finds_its_next_call_at_the_door(instances: int, limit: int) -> None:
    worker = Worker(Limiter(32, 1, 32), instances=instances)
    worker.rounds(300)
    assert set(worker.limits[-200:]) <= {limit - 1, limit}
    assert limit in worker.limits[-200:]


def test_one_measurement_changes_the_limit_by_no_more_than_a_factor_of_two() -> None:
    limiter = Limiter(8, 1, 64)
    limiter.note(10.0, 8)
    limiter.measured(Load(5000, 0, 8, 10), 10.0, 11.0)
    assert limiter.limit == 16
    limiter.note(11.0, 16)
    limiter.measured(Load(1, 100, 16, 10), 11.0, 12.0)
    assert limiter.limit == 8


@pytest.mark.parametrize(("calls_per_s", "limit"), [(10, 3), (4000, 7)])
def test_half_a_millisecond_at_the_door_is_no_reason_to_lower_the_limit(
    calls_per_s: float, limit: int
) -> None:
    """One call runs and two wait: for 0.2 s, or for 0.5 ms."""
    limiter = Limiter(4, 1, 32)
    limiter.note(10.0, 4)
    limiter.measured(Load(1, 2, 4, calls_per_s), 10.0, 11.0)
    assert limiter.limit == limit


def backlog_then_little() -> Limiter:
    """Of a model whose calls are short: more of them after a backlog, if they are full."""
    limiter = Limiter(4, 1, 32)
    for now in range(20):
        limiter.note(now, limiter.limit)
        limiter.measured(Load(1, 0.5, 3, 4000), now, now + 1)
    assert (limiter.limit, limiter.light_limit) == (13, 4)
    return limiter


def test_batches_that_are_not_full_get_no_more_calls_for_short_ones() -> None:
    limiter = backlog_then_little()
    for now in range(30, 50):
        limiter.note(now, 4)
        limiter.measured(Load(0.5, 0.05, 1, 4000), now, now + 1)
    assert (limiter.limit, limiter.light_limit) == (13, 4)


def test_batches_that_are_not_full_get_more_calls_where_more_run() -> None:
    limiter = backlog_then_little()
    for now in range(30, 50):
        limiter.note(now, limiter.light_limit)
        limiter.measured(Load(limiter.light_limit, 0, 4, 10), now, now + 1)
    assert limiter.light_limit == limiter.limit == 32


def test_overload_without_full_batches_lowers_what_was_in_use() -> None:
    limiter = backlog_then_little()
    limiter.note(30.0, 4)
    limiter.overloaded(30.0, 31.0)
    assert limiter.light_limit == limiter.limit == int(4 * DECREASE)


@pytest.mark.parametrize("overloads", [1, 3])
def test_where_triton_tells_nothing_overload_costs_nothing_for_good(overloads: int) -> None:
    worker = Worker(Limiter(8, 1, 32), heard_at=float("inf"))
    for _ in range(overloads):
        worker.burst(1)
        worker.rounds(50)
    worker.now += AVOID_S
    worker.rounds(50)
    assert worker.limiter.limit == 8


def test_news_from_before_a_decrease_says_nothing() -> None:
    limiter = Limiter(8, 1, 32)
    limiter.note(10.0, 8)
    limiter.overloaded(10.0, 11.0)
    limiter.restart(11.0)
    limiter.measured(Load(8, 0, 8, 10), 10.5, 12.0)
    assert limiter.limit == 1


def test_a_model_of_which_nothing_is_told_keeps_its_limit() -> None:
    limiter = Limiter(8, 1, 32)
    limiter.note(10.0, 8)
    limiter.measured(Load(0, 0, 0, 0), 9.0, 11.0)
    assert limiter.limit == 8


def test_little_that_runs_is_no_reason_to_lower_the_limit_as_long_as_nothing_waits() -> None:
    limiter = Limiter(8, 1, 32)
    limiter.note(10.0, 8)
    limiter.measured(Load(0.5, 0.05, 0.5, 10), 9.0, 11.0)
    assert limiter.limit == 8


def test_own_calls_tell_of_servers_that_triton_does_not_know_of() -> None:
    """One of four servers behind a balancer is asked: what runs there is a quarter."""
    limiter = Limiter(4, 1, 32)
    for now in range(20):
        limiter.note(now, limiter.limit)
        limiter.measured(Load(limiter.limit / 4, 0.0, limiter.limit, 10), now, now + 1)
    assert limiter.limit == 32


def test_after_a_restart_it_begins_at_the_minimum_and_doubles_each_round_up_to_where_it_was() -> None:
    worker = Worker(Limiter(6, 1, 32), instances=4)
    worker.rounds(300)
    worker.limiter.restart(worker.now)
    seen = []
    for _ in range(4):
        seen.append(worker.limiter.limit)
        worker.now += 0.01
        worker.round()
    assert seen == [1, 2, 4, 7]


def test_calls_from_before_a_restart_do_not_raise_the_limit() -> None:
    limiter = Limiter(6, 1, 32)
    limiter.restart(10.0)
    for _ in range(10):
        limiter.note(10.5, 1)
        limiter.succeeded(9.0, 11.0)
    assert limiter.limit == 1


def test_overload_after_a_restart_ends_the_climb() -> None:
    worker = Worker(Limiter(8, 1, 32))
    worker.limiter.restart(worker.now)
    worker.now += 0.01
    worker.rounds(2)
    assert worker.limiter.limit == 4
    worker.burst(1)
    assert worker.limiter.limit == 2
    worker.round()
    assert worker.limiter.limit == 3, "one more per round"
    worker.rounds(30)
    assert max(worker.limits[-60:]) == 3, "and no further than below what was refused"


def test_a_fixed_limit_stays_whatever_happens() -> None:
    worker = Worker(Limiter(4, 3, 3), instances=1)
    for _ in range(10):
        worker.rounds(20)
        worker.burst(2)
        worker.limiter.restart(worker.now)
    assert set(worker.limits) == {3}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["answered", "answered", "answered", "half_idle", "overloaded", "late", "restart"]),
        st.floats(0, 3, allow_subnormal=False),
        st.integers(1, 40),
    ),
    max_size=80,
)
BOUNDS = st.tuples(st.integers(1, 8), st.integers(0, 40), st.integers(1, 80))


@settings(max_examples=100, deadline=None)
@given(EVENTS, BOUNDS, st.floats(0.5, 20))
def test_after_any_events_the_promises_hold(
    events: list[tuple[str, float, int]], bounds: tuple[int, int, int], instances: float
) -> None:
    """Bounds; one decrease per window; no growth unless in use; recovery once the overload ends."""
    minimum, width, start = bounds
    limiter = Limiter(start, minimum, minimum + width)
    worker = Worker(limiter, instances=instances)
    decreased_at = float("-inf")
    for event, seconds, count in events:
        before, began = limiter.limit, worker.now
        match event:
            case "answered":
                worker.duration_s = 0.01 + seconds
                worker.rounds(count)
            case "half_idle" if before > 1:
                worker.rounds(count, share=0.5)
                assert limiter.limit == before, "it was not in use"
            case "overloaded":
                worker.burst(count)
                decreased_at = began + 0.001
                assert limiter.limit == max(minimum, int(before * DECREASE)), "one burst is one decrease"
            case "late" if decreased_at > 0:
                limiter.overloaded(decreased_at - seconds, worker.now)
                assert limiter.limit == before, "that call had left before the last decrease"
            case "restart":
                limiter.restart(worker.now)
                worker.now += 0.001
                assert limiter.limit <= before
        assert minimum <= limiter.limit <= minimum + width
        worker.now += seconds
    worker.instances, worker.duration_s = float("inf"), 0.1
    worker.now += AVOID_S
    for _ in range(3000):
        worker.round()
        if limiter.limit == limiter.maximum:
            return
    pytest.fail(f"it never recovered: {limiter.limit} of {limiter.maximum}")
