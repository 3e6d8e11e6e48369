"""A server with instances, a queue and a door, and a worker with a backlog: events, no clock."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count, zip_longest

from promptbus_worker.limiter import Limiter
from promptbus_worker.model import ModelStatistics
from promptbus_worker.triton_load import ASK_EVERY_S, Watch

BACKOFF_S = 0.05
"""After a refusal or a time-out the worker calls nobody for so long, as with its breaker."""
TRAVEL_S = 0.0002
"""From the end of a call to the next one's beginning, and from a refusal to its arrival."""

Duration = Callable[[random.Random], float]
Step = tuple[float, int]
"""From this second on so many instances."""


@dataclass
class Server:
    """What is called. `steps`: instances over time. `queue`: how many may wait; None: any number."""

    steps: Sequence[Step]
    duration: Duration
    queue: int | None = None


@dataclass
class Outcome:
    """What happened. Times in seconds."""

    answered: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(
        default_factory=list
    )  # when it ended, how long it waited at the server
    limits: list[tuple[float, int]] = field(default_factory=list)
    refused: int = 0
    timed_out: int = 0

    def rate(self, begin: float, end: float) -> float:
        """Answers per second between two moments."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)

    def mean_wait(self, begin: float, end: float) -> float:
        """Mean time that calls which ended between two moments had waited at the server."""
        waits = [wait for at, wait in self.waits if begin <= at < end]
        return sum(waits) / len(waits)

    def limit_at(self, moment: float) -> int:
        return [limit for at, limit in self.limits if at <= moment][-1]


@dataclass(eq=False)
class Worker:
    """One that never runs out of batches."""

    watch: Watch
    in_flight: int = 0
    paused_until: float = 0.0
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def limiter(self) -> Limiter:
        return self.watch.limiter


@dataclass(eq=False)
class Call:
    worker: Worker
    began: float
    started: float | None = None
    given_up: bool = False


def play(server: Server, limiter: Limiter, end: float, *, timeout_s: float = 30.0, seed: int = 0) -> Outcome:
    """A worker that never runs out of batches calls the server until `end`."""
    (outcome,) = compete(server, [limiter], end, timeout_s=timeout_s, seed=seed)
    return outcome


def compete(
    server: Server,
    limiters: Sequence[Limiter],
    end: float,
    *,
    timeout_s: float = 30.0,
    seed: int = 0,
    begin: Sequence[float] = (),
) -> list[Outcome]:
    """Several workers call the same server until `end`. `begin`: when each of them starts, 0 for those without."""
    rng, order = random.Random(seed), count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    waiting: deque[Call] = deque()
    workers = [Worker(Watch(limiter), outcome=Outcome(limits=[(0.0, limiter.limit)])) for limiter in limiters]
    busy = instances = 0
    calls = queue_ns = compute_ns = 0  # Triton's statistics

    def at(when: float, do: Callable[..., None], *arguments: object) -> None:
        event: Callable[[float], None] = partial(do, *arguments)
        heappush(events, (when, next(order), event))

    def resize(to: int, now: float) -> None:
        nonlocal instances
        instances = to
        serve(now)

    def serve(now: float) -> None:
        nonlocal busy
        while waiting and busy < instances:
            call = waiting.popleft()
            call.started = now
            busy += 1
            at(now + server.duration(rng), served, call)

    def served(call: Call, now: float) -> None:
        nonlocal busy, calls, queue_ns, compute_ns
        busy -= 1
        assert call.started is not None
        calls += 1
        queue_ns += round((call.started - call.began) * 1e9)
        compute_ns += round((now - call.started) * 1e9)
        if not call.given_up:  # given up or not, Triton works on it to the end
            answered(call, now)
        serve(now)

    def answered(call: Call, now: float) -> None:
        assert call.started is not None
        call.given_up = True  # nobody waits for it any more
        call.worker.outcome.answered.append(now)
        call.worker.outcome.waits.append((now, call.started - call.began))
        call.worker.limiter.succeeded(call.began, now)
        ended(call.worker, now)

    def overloaded(call: Call, now: float) -> None:
        worker = call.worker
        call.given_up = True
        worker.limiter.overloaded(call.began, now)
        if now >= worker.paused_until:
            worker.paused_until = now + BACKOFF_S
            at(worker.paused_until, fill, worker)
        ended(worker, now)

    def timed_out(call: Call, now: float) -> None:
        if not call.given_up:
            call.worker.outcome.timed_out += 1
            overloaded(call, now)

    def ended(worker: Worker, now: float) -> None:
        worker.in_flight -= 1
        if worker.limiter.limit != worker.outcome.limits[-1][1]:
            worker.outcome.limits.append((now, worker.limiter.limit))
        at(now + TRAVEL_S, fill, worker)

    def fill(worker: Worker, now: float) -> None:
        while worker.in_flight < worker.limiter.limit and now >= worker.paused_until:
            worker.in_flight += 1
            call = Call(worker, now)
            worker.limiter.note(now, worker.in_flight)
            if busy >= instances and server.queue is not None and len(waiting) >= server.queue:
                worker.outcome.refused += 1
                at(now + TRAVEL_S, overloaded, call)
                continue
            waiting.append(call)
            at(now + timeout_s, timed_out, call)
            serve(now)

    def ask(worker: Worker, now: float) -> None:
        if worker.watch.wants_news(now - ASK_EVERY_S, now, worker.in_flight):
            servers = {"one": ModelStatistics(calls, queue_ns, compute_ns)}
            worker.watch.told(servers, now, most_running=math.inf)
        at(now + ASK_EVERY_S, ask, worker)

    for when, to in server.steps:
        at(when, resize, to)
    for worker, first in zip_longest(workers, begin, fillvalue=0.0):
        at(first, fill, worker)
        at(first + ASK_EVERY_S, ask, worker)
    while events[0][0] < end:
        now, _, do = heappop(events)
        do(now)
    return [worker.outcome for worker in workers]


def best_fixed(server: Server, begin: float, end: float, *, timeout_s: float, most: int) -> float:
    """The highest throughput between two moments that any fixed limit up to `most` has."""
    return max(
        play(server, Limiter(fixed, fixed, fixed), end, timeout_s=timeout_s).rate(begin, end)
        for fixed in range(1, most + 1)
    )
