"""The formulas of docs/capacity.md against the queue that they describe, played through prompt by prompt."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise
from math import inf

import pytest

from bench.queueing import Server, drain_s, erlang_c, processes_for, processor_bound
from bench.statistics import percentile

FOUR = Server(instances=4, batch=8, service_s=0.15)


def played(server: Server, rate: float, prompts: int = 40_000) -> list[float]:
    """Response times in ascending order; the first tenth, while it was still filling, is left out."""
    dice = random.Random(7)
    arrivals = [0.0]
    for _ in range(prompts):
        arrivals.append(arrivals[-1] + dice.expovariate(rate))
    free = [0.0] * server.instances
    found: list[float] = []
    first = 0
    while first < len(arrivals):
        begins = max(heapq.heappop(free), arrivals[first])
        last = first
        while last < len(arrivals) and last - first < server.batch and arrivals[last] <= begins:
            last += 1
        ends = begins + server.service_s
        found += [ends - arrival for arrival in arrivals[first:last]]
        heapq.heappush(free, ends)
        first = last
    return sorted(found[prompts // 10 :])


@pytest.mark.parametrize("used", [0.05, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("instances", [1, 2, 4])
def test_response_times_are_those_of_the_queue(instances: int, used: float) -> None:
    server = Server(instances, batch=8, service_s=0.15)
    rate = used * server.capacity
    times = played(server, rate)
    assert server.response_s(rate) == pytest.approx(sum(times) / len(times), rel=0.1)
    assert server.percentile_s(rate, 0.5) == pytest.approx(percentile(times, 50), rel=0.15)
    # Percentiles of two waits are added up, which errs on the safe side.
    assert 0.85 < server.percentile_s(rate, 0.95) / percentile(times, 95) < 1.25


def test_capacity_is_all_instances_with_full_batches() -> None:
    assert FOUR.capacity == pytest.approx(213.3, abs=0.1)
    assert FOUR.utilisation(160) == pytest.approx(0.75)


def test_calls_in_flight_bring_throughput_up_to_the_number_of_instances() -> None:
    rates = [FOUR.throughput(number) for number in range(1, 7)]
    assert rates[:4] == pytest.approx([number * 8 / 0.15 for number in (1, 2, 3, 4)])
    assert rates[4:] == [rates[3]] * 2


def test_nothing_waits_when_hardly_anything_comes_and_all_wait_for_ever_above_the_capacity() -> None:
    assert FOUR.response_s(0.1) == pytest.approx(0.15, rel=0.01)
    assert FOUR.percentile_s(0.1, 0.95) == pytest.approx(0.15, rel=0.01)
    assert FOUR.response_s(FOUR.capacity) == inf
    assert FOUR.percentile_s(1.1 * FOUR.capacity, 0.5) == inf


def test_times_that_vary_make_the_queue_longer() -> None:
    varied = Server(4, 8, 0.15, variation=1.0)
    rate = 0.9 * varied.capacity
    assert varied.response_s(rate) > 1.5 * FOUR.response_s(rate)
    times = [varied.response_s(share * varied.capacity) for share in (0.1, 0.5, 0.9, 0.99)]
    assert all(more > less for less, more in pairwise(times))


def test_erlang_c_for_one_server_is_its_utilisation_and_for_several_as_in_the_tables() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(4, 3.6) == pytest.approx(0.788, abs=0.001)
    assert erlang_c(4, 4.0) == erlang_c(4, 9.0) == 1.0
    assert erlang_c(3, 0.0) == 0.0


def test_the_processor_bounds_processes_alone_and_all_together() -> None:
    assert processor_bound(1, 50e-6, 60e-6, cores=2) == pytest.approx(20_000)
    assert processor_bound(4, 50e-6, 80e-6, cores=2) == pytest.approx(25_000)
    assert processes_for(20_000, 25e-6) == 1
    assert processes_for(100_000, 25e-6) == 4


def test_a_backlog_goes_by_what_the_capacity_leaves() -> None:
    assert drain_s(100_000, 213, 113) == 1000
    assert drain_s(1, 100, 100) == inf
