"""Says when no Kafka broker answers, and when one does again.

librdkafka reports every connection that fails, also those it is about to replace, and never that all is well again. So
an error is only a reason to ask a broker, again and again until one answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from confluent_kafka import KafkaException

from promptbus_worker.deadline import Clock
from promptbus_worker.outage import Outage

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0


class BrokerWatch:
    """On the event loop. It sleeps until there is trouble."""

    def __init__(self, ask: Callable[[], object], where: str, clock: Clock) -> None:
        """`ask` blocks for some seconds at most and raises KafkaException if no broker answers."""
        self._ask = ask
        self._clock = clock
        self._outage = Outage(log, f"Kafka at {where}")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def trouble(self, why: str) -> None:
        """A client has an error; find out whether brokers answer."""
        if not self._stopped and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._watch(why))

    async def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, why: str) -> None:
        while not await self._answers():
            self._outage.look(True, self._clock(), why, ": requests wait until it does")
            await asyncio.sleep(ASK_EVERY_S)
        self._outage.look(False, self._clock())

    async def _answers(self) -> bool:
        try:
            await asyncio.to_thread(self._ask)
        except KafkaException:
            return False
        return True
