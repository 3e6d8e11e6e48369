"""What the limiter finds out about servers whose capacity steps up and down: as much as the best fixed limit gives."""

from __future__ import annotations

import math

import pytest

from promptbus_worker.limiter import Limiter
from tests.unit.worker.simulation import Duration, Server, best_fixed, compete, play

INSTANCES = (1, 4, 2, 8)
START = 2
"""Two per instance, as a worker begins with the first of them."""
MOST = 32
AS_GOOD = 0.9
LONGEST_WAIT = 1.25
"""Mean wait at the server, in durations of a call. One instance alone with its next call at the door makes it 1."""


def always(seconds: float) -> Duration:
    return lambda rng: seconds


def scattered(seconds: float, variation: float) -> Duration:
    """Log-normal; `variation`: standard deviation as a share of the mean."""
    sigma = math.sqrt(math.log(1 + variation**2))
    mu = math.log(seconds) - sigma**2 / 2
    return lambda rng: rng.lognormvariate(mu, sigma)


def of_batches(seconds: float) -> Duration:
    """Batches of 1 to 8 requests, most of them full; a half of the time is each call's, the rest each request's."""
    return lambda rng: seconds * (0.5 + 0.5 * rng.choice((1, 2, 4, 8, 8, 8, 8, 8)) / 8)


@pytest.mark.parametrize(
    ("staircase", "seconds", "measured_s"),
    [(INSTANCES, 0.005, 4.0), (INSTANCES, 0.15, 25.0), ((10, 5, 12, 6), 0.15, 25.0)],
    ids=["5ms", "150ms", "150ms-high"],
)
@pytest.mark.parametrize(
    ("queue", "timeout", "settles_s"),
    [(None, 200.0, 2.0), (0, 200.0, 12.0), (3, 200.0, 12.0), (None, 5.0, 2.0)],
    ids=["queues", "refuses", "short", "timeouts"],
)
def test_after_each_step_it_is_within_ten_percent_of_the_best_fixed_limit(
    staircase: tuple[int, ...],
    seconds: float,
    measured_s: float,
    queue: int | None,
    timeout: float,
    settles_s: float,
) -> None:
    """`settles_s` after a step. `timeout`: in durations of a call; 5 of them are less than 32 calls wait for."""
    every = settles_s + measured_s
    steps = [(number * every, instances) for number, instances in enumerate(staircase)]
    whole = play(
        Server(steps, always(seconds), queue),
        Limiter(START, 1, MOST),
        len(steps) * every,
        timeout_s=timeout * seconds,
    )
    for step, instances in steps:
        begin, end = step + settles_s, step + every
        alone = Server([(0.0, instances)], always(seconds), queue)
        best = best_fixed(alone, 1.0, 1.0 + measured_s / 4, timeout_s=timeout * seconds, most=16)
        assert whole.rate(begin, end) >= AS_GOOD * best, f"{instances} instances"
        assert whole.mean_wait(begin, end) <= LONGEST_WAIT * seconds


@pytest.mark.parametrize("seconds", [1.5, 5.0, 20.0])
def test_calls_of_many_seconds_take_as_many_rounds(seconds: float) -> None:
    """16 rounds after more instances came, and after most of them went."""
    every = 40 * seconds
    steps = [(0.0, 2), (every, 8), (2 * every, 3)]
    whole = play(Server(steps, scattered(seconds, 0.3)), Limiter(4, 1, MOST), 3 * every, timeout_s=1000.0)
    for step, instances in steps:
        begin, end = step + 16 * seconds, step + every
        assert whole.rate(begin, end) >= AS_GOOD * instances / seconds, f"{instances} instances"
        assert whole.mean_wait(begin, end) <= LONGEST_WAIT * seconds, f"{instances} instances"


@pytest.mark.parametrize("duration", [scattered(0.15, 0.3), of_batches(0.15)], ids=["scattered", "batches"])
@pytest.mark.parametrize("seed", range(3))
def test_durations_that_scatter_cost_time_but_no_more_throughput(duration: Duration, seed: int) -> None:
    """A minute after a step; the share of what so many instances can do, in the minute after that."""
    steps = [(number * 120.0, instances) for number, instances in enumerate(INSTANCES)]
    server = Server(steps, duration)
    whole = play(server, Limiter(START, 1, MOST), 480.0, seed=seed)
    for step, instances in steps:
        fixed = play(Server([(0.0, instances)], duration), Limiter(16, 16, 16), 61.0, seed=seed)
        assert whole.rate(step + 60, step + 120) >= AS_GOOD * fixed.rate(1.0, 61.0), f"{instances} instances"
        assert whole.mean_wait(step + 60, step + 120) <= 2 * LONGEST_WAIT * 0.15


@pytest.mark.parametrize(
    "duration", [always(0.15), scattered(0.15, 0.3), of_batches(0.15)], ids=["always", "scattered", "batches"]
)
@pytest.mark.parametrize(
    ("instances", "starts"),
    [(4, (2, 2)), (4, (2, 12)), (8, (4,) * 3), (4, (2,) * 4), (8, (4,) * 6), (16, (8,) * 4), (32, (20, 8))],
)
def test_workers_that_do_not_know_of_each_other_share_a_server_fairly(
    duration: Duration, instances: int, starts: tuple[int, ...]
) -> None:
    """In every half-minute after the first one. They do not drive each other's limits up, and lose no throughput."""
    server = Server([(0.0, instances)], duration)
    workers = compete(server, [Limiter(start, 1, MOST) for start in starts], 210.0)
    fixed = play(server, Limiter(MOST, MOST, MOST), 210.0)
    for begin in range(30, 210, 30):
        rates = [worker.rate(begin, begin + 30) for worker in workers]
        assert min(rates) >= 0.9 * sum(rates) / len(rates)
        assert sum(rates) >= 0.97 * fixed.rate(begin, begin + 30)
        limits = sum(worker.limit_at(begin) for worker in workers)
        assert limits <= 2 * len(starts) ** (1 / 3) * instances + len(starts)


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_of_less_than_a_millisecond_wait_at_the_door_for_about_as_long(workers: int) -> None:
    """So the server has something to do while an event loop is busy otherwise. Without BRIDGE_S they wait for 0.1 and 0.2 ms."""
    found = compete(
        Server([(0.0, 2)], scattered(0.0002, 0.3)), [Limiter(4, 1, MOST) for _ in range(workers)], 20.0
    )
    for one in found:
        assert 0.0003 <= one.mean_wait(10.0, 20.0) <= 0.002
    rates = [one.rate(10.0, 20.0) for one in found]
    assert min(rates) >= 0.9 * sum(rates) / workers


def test_an_instant_model_has_its_calls_within_a_second() -> None:
    whole = play(Server([(0.0, 2)], scattered(0.0002, 0.3)), Limiter(4, 1, MOST), 10.0)
    assert whole.limit_at(1.0) >= AS_GOOD * whole.limit_at(10.0) >= 10


def test_a_worker_that_comes_later_gets_its_share() -> None:
    workers = compete(
        Server([(0.0, 8)], scattered(0.15, 0.3)),
        [Limiter(START, 1, MOST) for _ in range(2)],
        90.0,
        begin=[0.0, 30.0],
    )
    assert workers[1].rate(45.0, 90.0) >= 0.9 * workers[0].rate(45.0, 90.0)


def test_a_fixed_limit_that_fills_the_queue_waits_many_times_as_long() -> None:
    """What additive increase until something is refused would come to, for comparison."""
    whole = play(Server([(0.0, 2)], always(0.15)), Limiter(MOST, MOST, MOST), 60.0)
    assert whole.mean_wait(10.0, 60.0) > 10 * LONGEST_WAIT * 0.15
