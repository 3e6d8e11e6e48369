"""A server with instances, a queue and a door, and a worker with a backlog: events, no clock."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from promptbus_worker.limiter import Limiter

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


@dataclass(eq=False)
class Call:
    began: float
    started: float | None = None
    given_up: bool = False


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


def play(server: Server, limiter: Limiter, end: float, *, timeout_s: float = 30.0, seed: int = 0) -> Outcome:
    """A worker that never runs out of batches calls the server until `end`."""
    rng, order = random.Random(seed), count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    waiting: deque[Call] = deque()
    outcome = Outcome(limits=[(0.0, limiter.limit)])
    busy = in_flight = instances = 0
    paused_until = 0.0

    def at(when: float, do: Callable[[float], None]) -> None:
        heappush(events, (when, next(order), do))

    def resize(now: float, to: int) -> None:
        nonlocal instances
        instances = to
        serve(now)

    def serve(now: float) -> None:
        nonlocal busy
        while waiting and busy < instances:
            call = waiting.popleft()
            call.started = now
            busy += 1
            at(now + server.duration(rng), lambda then, call=call: served(then, call))  # type: ignore[misc] # mypy cannot infer lambdas with defaults

    def served(now: float, call: Call) -> None:
        nonlocal busy
        busy -= 1
        if not call.given_up:  # given up or not, Triton works on it to the end
            answered(now, call)
        serve(now)

    def answered(now: float, call: Call) -> None:
        assert call.started is not None
        call.given_up = True  # nobody waits for it any more
        outcome.answered.append(now)
        outcome.waits.append((now, call.started - call.began))
        limiter.succeeded(call.began, now)
        ended(now)

    def overloaded(now: float, call: Call) -> None:
        nonlocal paused_until
        call.given_up = True
        limiter.overloaded(call.began, now)
        if now >= paused_until:
            paused_until = now + BACKOFF_S
            at(paused_until, fill)
        ended(now)

    def timed_out(now: float, call: Call) -> None:
        if not call.given_up:
            outcome.timed_out += 1
            overloaded(now, call)

    def ended(now: float) -> None:
        nonlocal in_flight
        in_flight -= 1
        if limiter.limit != outcome.limits[-1][1]:
            outcome.limits.append((now, limiter.limit))
        at(now + TRAVEL_S, fill)

    def fill(now: float) -> None:
        nonlocal in_flight
        while in_flight < limiter.limit and now >= paused_until:
            in_flight += 1
            call = Call(now)
            limiter.began(now, in_flight)
            if busy >= instances and server.queue is not None and len(waiting) >= server.queue:
                outcome.refused += 1
                at(now + TRAVEL_S, lambda then, call=call: overloaded(then, call))  # type: ignore[misc] # as above
                continue
            waiting.append(call)
            at(now + timeout_s, lambda then, call=call: timed_out(then, call))  # type: ignore[misc] # as above
            serve(now)

    for when, to in server.steps:
        at(when, lambda then, to=to: resize(then, to))  # type: ignore[misc] # as above
    at(0.0, fill)
    while events[0][0] < end:
        now, _, do = heappop(events)
        do(now)
    return outcome


def best_fixed(server: Server, begin: float, end: float, *, timeout_s: float, most: int) -> float:
    """The highest throughput between two moments that any fixed limit up to `most` has."""
    return max(
        play(server, Limiter(fixed, fixed, fixed), end, timeout_s=timeout_s).rate(begin, end)
        for fixed in range(1, most + 1)
    )
