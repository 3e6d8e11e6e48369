"""Asks Triton four times a second what its queue is like, and tells each model's limiter. On the event loop.

Triton's statistics extension adds up how long the calls that it ran waited in its queue and how long they took. What it
grew by between two readings, by the time between them, is a mean number of calls (Little's law).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from promptbus_worker.deadline import Clock
from promptbus_worker.limiter import Limiter, Load
from promptbus_worker.model import InferenceClient, ModelSpec, ModelStatistics
from promptbus_worker.outcomes import CallError

log = logging.getLogger(__name__)

ASK_EVERY_S = 0.25
"""An instant model's limit goes from 4 to 16 in as many windows, and each waits for one reading."""
ROUNDS = 2
"""A window lasts so many calls' time, so that it is no accident how many end in it, and most began in it."""
MIN_CALLS = 4
FAILURES = 12
"""In a row, until it is said that Triton does not tell: three seconds. If it is gone, little is in flight, so as a rule it is not asked."""


class Reading(NamedTuple):
    """The sums at one moment. `calls_s`: what this process's own calls took."""

    at: float
    calls_s: float
    servers: Mapping[str, ModelStatistics]


class Window:
    """From one reading of a model's statistics to another one. Pure."""

    def __init__(self) -> None:
        self._first: Reading | None = None

    def drop(self) -> None:
        """The next reading begins a new one."""
        self._first = None

    def read(self, now: Reading) -> tuple[Load, float] | None:
        """What the model did since which moment, once that is long enough; the next window begins here then."""
        first = self._first
        if first is None:
            self._first = now
            return None
        grown = [_difference(one, first.servers.get(url)) for url, one in now.servers.items()]
        if any(min(one) < 0 for one in grown):  # it was started again
            self._first = now
            return None
        calls = sum(one.calls for one in grown)
        queue_s = sum(one.queue_ns for one in grown) / 1e9
        compute_s = sum(one.compute_ns for one in grown) / 1e9
        lasted_s = now.at - first.at
        if calls < MIN_CALLS or lasted_s < ROUNDS * (queue_s + compute_s) / calls:
            return None
        self._first = now
        own = (now.calls_s - first.calls_s) / lasted_s
        return Load(compute_s / lasted_s, queue_s / lasted_s, own, calls / lasted_s), first.at


class Watch:
    """One model's limiter, and what it is told when. Pure."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._window = Window()

    def wants_news(self, since: float, now: float, in_flight: int) -> bool:
        """Whether the limit was in use since then; long calls are still in flight, though none may have begun of late."""
        self.limiter.note(now, in_flight)
        if self.limiter.in_use_since(since):
            return True
        self._window.drop()
        return False

    def told(self, servers: Mapping[str, ModelStatistics], now: float, most_running: float) -> None:
        """The statistics at this moment. More than `most_running` calls at once cannot be: a balancer sent us to
        another server this time, which has done more before."""
        measured = self._window.read(Reading(now, self.limiter.calls_s, servers))
        if measured is not None and measured[0].running <= most_running:
            self.limiter.measured(*measured, now)

    def untold(self) -> None:
        """There was no answer."""
        self._window.drop()


class TritonLoad:
    """Of every model whose limit is not fixed. A limit that is not in use needs no news, so Triton is not asked then."""

    def __init__(
        self,
        client: InferenceClient,
        version: str | None,
        limiters: Mapping[str, Limiter],
        specs: Mapping[str, ModelSpec],
        in_flight: Callable[[str], int],
        clock: Clock,
    ) -> None:
        """`in_flight`: how many batches of a model are."""
        self._client = client
        self._version = version
        self._watches = {model: Watch(limiter) for model, limiter in limiters.items() if not limiter.is_fixed}
        self._specs = specs
        self._in_flight = in_flight
        self._clock = clock
        self._failures = dict.fromkeys(self._watches, 0)  # in a row
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            since = self._clock()
            await asyncio.sleep(ASK_EVERY_S)
            for model, watch in self._watches.items():
                if not watch.wants_news(since, self._clock(), self._in_flight(model)):
                    continue
                try:
                    await self._ask(model, watch)
                except Exception:
                    watch.untold()
                    log.exception("asking for Triton's statistics failed by a defect of the worker")

    async def _ask(self, model: str, watch: Watch) -> None:
        try:
            servers = await self._client.statistics(model, self._version)
        except CallError as error:
            watch.untold()
            self._failures[model] += 1
            if self._failures[model] == FAILURES:
                log.warning(
                    "Triton does not tell its statistics: the number of batches in flight stays as it is",
                    extra={"model": model, "limit": watch.limiter.limit, "error": str(error)},
                )
            return
        self._failures[model] = 0
        spec = self._specs[model]
        watch.told(servers, self._clock(), most_running=spec.instances * spec.max_batch_size)


def _difference(now: ModelStatistics, before: ModelStatistics | None) -> ModelStatistics:
    """Nothing for a server that was not heard of before."""
    before = before or now
    return ModelStatistics(
        now.calls - before.calls, now.queue_ns - before.queue_ns, now.compute_ns - before.compute_ns
    )
