"""Says when no Kafka broker answers, or lets us in, and when one does again.

librdkafka reports every connection that fails, also those it is about to replace, and never that all is well again. So
an error is only a reason to ask a broker, again and again until one answers. One about TLS or a login is a reason to try a
new connection: older ones may be in use for long after a password was changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from confluent_kafka import KafkaException

from promptbus_worker.deadline import Clock
from promptbus_worker.kafka_outcomes import refuses_connection
from promptbus_worker.outage import Outage

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
LOG_IN_EVERY_S = 10.0
"""Brokers may lock out who fails more often."""


class BrokerWatch:
    """On the event loop. It sleeps until there is trouble."""

    def __init__(
        self, ask: Callable[[], object], log_in: Callable[[], str | None], where: str, clock: Clock
    ) -> None:
        """`ask` raises KafkaException if no broker answers; `log_in` returns why there is no new connection, or None.
        Both block for some seconds at most."""
        self._ask = ask
        self._log_in = log_in
        self._clock = clock
        self._outage = Outage(log, f"Kafka at {where}")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._refused = False

    def trouble(self, error: str, text: str) -> None:
        """A client has an error, by its name and in its words; find out whether brokers answer."""
        self._refused = self._refused or refuses_connection(error)
        if not self._stopped and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._watch(f"{error}: {text}"))

    async def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, why: str) -> None:
        while True:
            if self._refused:
                refusal = await asyncio.to_thread(self._log_in)
                if refusal is None:
                    break
                then, what = ": requests wait until it can", "cannot be connected to"
                self._outage.look(True, self._clock(), refusal, then, what)
                await asyncio.sleep(LOG_IN_EVERY_S)
            elif await self._answers():
                break
            else:
                self._outage.look(True, self._clock(), why, ": requests wait until it does")
                await asyncio.sleep(ASK_EVERY_S)
        self._refused = False
        self._outage.look(False, self._clock())

    async def _answers(self) -> bool:
        try:
            await asyncio.to_thread(self._ask)
        except KafkaException:
            return False
        return True
