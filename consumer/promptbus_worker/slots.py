"""Call slots: which batches are in flight, one task each, and for which models there is room. On the event loop.

A batch keeps its slot while it is narrowed, so bisecting never adds load. A crash suspect has all slots to itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping

from promptbus_worker.batcher import Batch, is_last_attempt
from promptbus_worker.limiter import Limiter
from promptbus_worker.record import Pending, Phase
from promptbus_worker.runner import unanswered

log = logging.getLogger(__name__)

Run = Callable[[Batch], Coroutine[object, object, None]]


class Slots:
    """As many for each model as its limiter says."""

    def __init__(self, limiters: Mapping[str, Limiter], on_ended: Callable[[Batch], None]) -> None:
        """`on_ended` hears of each batch whose slot is free again."""
        self._limiters = limiters
        self._on_ended = on_ended
        self.batches: dict[asyncio.Task[None], Batch] = {}
        """What is in flight, by the tasks that run it. A probe's batch has no requests, or one."""
        self.taken = dict.fromkeys(limiters, 0)
        """By model."""
        self.exclusive: asyncio.Task[None] | None = None
        """Runs a crash suspect: nothing else may start."""
        self._free: asyncio.Task[None] | None = None  # has ended its batch just now
        self._next: Run | None = None  # what that one goes on with

    @property
    def limit(self) -> int:
        """How many slots there are, of all models together."""
        return sum([limiter.limit for limiter in self._limiters.values()])

    def start(self, run: Run, batch: Batch) -> None:
        """Run this batch in a slot of its own."""
        task = self._free
        if task is not None:
            self._free, self._next = None, run
        else:
            task = asyncio.get_running_loop().create_task(self._work(run))
            task.add_done_callback(self._broken_off)
        self.batches[task] = batch
        self.taken[batch.model] += 1
        if batch.requests and batch.requests[0].crash_suspect:
            self.exclusive = task

    async def _work(self, run: Run | None) -> None:
        """A task's batches: when one has ended it goes on with the next that starts. A task for each would cost more."""
        task = asyncio.current_task()
        assert task is not None
        while run is not None:
            await run(self.batches[task])
            ended = self._release(task)
            self._free = task
            try:
                self._on_ended(ended)
            except Exception:
                log.exception("going on after a batch failed by a defect of the worker")
            run, self._free, self._next = self._next, None, None

    def _broken_off(self, task: asyncio.Task[None]) -> None:
        if task in self.batches:
            self._on_ended(self._release(task))

    def _release(self, task: asyncio.Task[None]) -> Batch:
        batch = self.batches.pop(task)
        self.taken[batch.model] -= 1
        if task is self.exclusive:
            self.exclusive = None
        return batch

    def with_full(self, blocked: list[str], fills_batch: Callable[[str], bool]) -> list[str]:
        """`blocked`, and the models of which no slot is free. `fills_batch`: whether a full batch of a model waits."""
        for model, limiter in self._limiters.items():
            taken = self.taken[model]
            if taken < limiter.light_limit or model in blocked:
                continue
            if taken >= limiter.limit or not fills_batch(model):
                blocked.append(model)
        return blocked

    def last_attempts(self) -> list[str]:
        """Models of which a request is in flight alone, for the last time."""
        batches = self.batches.values()
        return [b.model for b in batches if len(b.requests) == 1 and is_last_attempt(b.requests[0])]

    def unanswered(self) -> Iterator[Pending]:
        """All requests in flight."""
        return (request for batch in self.batches.values() for request in unanswered(batch.requests))

    async def cancel(self) -> list[Pending]:
        """End all tasks; the requests that were in flight."""
        batches, tasks = list(self.batches.values()), list(self.batches)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [r for batch in batches for r in batch.requests if r.phase is Phase.IN_FLIGHT]
