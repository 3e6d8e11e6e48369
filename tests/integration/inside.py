"""The worker in this process, as `worker.main` runs it: without the seconds in which an interpreter starts."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from promptbus_worker.settings import Settings
from promptbus_worker.worker import Worker
from promptbus_worker.worker_process import Exit


class Inside:
    """A worker that consumes, until it gives up or is told to end."""

    def __init__(self, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._lines_before = len(caplog.records)
        self._worker = Worker(settings, 0, None)
        self._run = asyncio.create_task(self._worker.run())

    def lines(self, level: int, logger: str = "") -> list[str]:
        """What it has said, of this level or above, by this logger and those below it."""
        records = self._caplog.records[self._lines_before :]
        return [r.getMessage() for r in records if r.levelno >= level and r.name.startswith(logger)]

    async def gave_up(self, within_s: float = 120.0) -> str:
        """Wait until it has stopped for good, by itself; why it did."""
        async with asyncio.timeout(within_s):
            code = await self._run
        assert code is Exit.GAVE_UP
        (said,) = self.lines(logging.ERROR, "promptbus_worker.worker")
        return said

    async def end(self) -> Exit:
        """Drain, as on SIGTERM."""
        if not self._run.done():
            self._worker.stop(Exit.DRAINED, "the test is over")
        return await self._run


@asynccontextmanager
async def inside(settings: Settings, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Inside]:
    """A worker that ends with the block."""
    interrupt = signal.getsignal(signal.SIGINT)  # a worker ignores it
    worker = Inside(settings, caplog)
    try:
        yield worker
    finally:
        await worker.end()
        signal.signal(signal.SIGINT, interrupt)
