"""Call slots: which batches are in flight, one task each, and for which models there is room. On the event loop.

A batch keeps its slot while it is narrowed, so bisecting never adds load. A crash suspect has all slots to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping

from promptbus_worker.batcher import Batch, is_last_attempt
from promptbus_worker.limiter import Limiter
from promptbus_worker.record import Pending, Phase
from promptbus_worker.runner import unanswered


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

    @property
    def limit(self) -> int:
        """How many slots there are, of all models together."""
        return sum(limiter.limit for limiter in self._limiters.values())

    def start(self, run: Coroutine[object, object, None], batch: Batch) -> None:
        """Run this batch in a slot of its own."""
        task = asyncio.get_running_loop().create_task(run)
        self.batches[task] = batch
        self.taken[batch.model] += 1
        if batch.requests and batch.requests[0].crash_suspect:
            self.exclusive = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self.batches.pop(task)
        self.taken[batch.model] -= 1
        if task is self.exclusive:
            self.exclusive = None
        self._on_ended(batch)

    def with_full(self, blocked: list[str]) -> list[str]:
        """`blocked`, and the models of which no slot is free."""
        for model, limiter in self._limiters.items():
            if self.taken[model] >= limiter.limit and model not in blocked:
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
