"""One worker process: waits for Kafka and Triton, builds the parts, wires them, runs until drained.

The path of a record, in the order of the files:

    intake.poll → admission.admit → batcher.offer → dispatcher.run → triton.infer → replies.send
        → (the broker acknowledges) → ledger.settle → intake.commit

Two threads: this event loop, and the consumer's (`intake`). Started by the supervisor, never by hand; it ignores
SIGINT, and drains on SIGTERM or when its supervisor is gone (end of file on standard input).
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
import time
from contextlib import suppress

import uvloop

from promptbus.masking import secrets_of
from promptbus.settings import load
from promptbus_worker import kafka, logs, record, tracing
from promptbus_worker.heartbeat import DRAINING, SLOT_VARIABLE, Heartbeat, HeartbeatWriter
from promptbus_worker.metrics import Metrics
from promptbus_worker.model import InferenceClient
from promptbus_worker.outcomes import ModelUnusable
from promptbus_worker.path import Path
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Refused, Surroundings, wait_for_surroundings
from promptbus_worker.triton import TritonClient
from promptbus_worker.triton_servers import TritonServers
from promptbus_worker.worker_process import Exit

log = logging.getLogger("promptbus_worker.worker")  # it runs as __main__

TICK_S = 0.1
HEARTBEAT_EVERY_TICKS = 5
FLUSH_S = 1.5
"""For the last spans, after the drain; the supervisor waits a little longer than both."""
OBJECTS_BETWEEN_COLLECTIONS = 100_000
COMPILED = not record.__file__.endswith(".py")
"""The modules of a request's path are C, as in a wheel that was built so (hatch_build.py)."""


class Worker:
    """One process's state. `run` returns its exit code."""

    def __init__(self, settings: Settings, slot: int, heartbeats: HeartbeatWriter | None) -> None:
        self._settings = settings
        self._name = f"{settings.instance}-{slot}"
        self._heartbeats = heartbeats
        self._metrics = Metrics(settings.models)
        self._tracing = tracing.from_environment(os.environ, name=self._name, group=settings.kafka_group_id)
        self._stopping = asyncio.Event()
        self._exit = Exit.DRAINED
        self._reason: str | None = None
        self._waiting_for: str | None = None
        self._path: Path | None = None

    async def run(self) -> Exit:
        """Until SIGTERM, the supervisor's end, or something that an operator or a restart has to mend."""
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        if self._heartbeats is not None:
            loop.add_reader(sys.stdin.fileno(), self._supervisor_gone)
        ticker = asyncio.create_task(self._tick())
        settings = self._settings
        triton = _triton(settings)
        try:
            surroundings = await self._surroundings(triton)
            if surroundings is not None:
                await self._serve(triton, surroundings)
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            await triton.close()
            await asyncio.to_thread(self._tracing.close, FLUSH_S)
        return self._exit

    async def _surroundings(self, triton: InferenceClient) -> Surroundings | None:
        """None if the worker is to stop before it has begun."""
        waiting = asyncio.create_task(
            wait_for_surroundings(self._settings, self._name, triton, self._wait_for)
        )
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not waiting.done():
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            return None
        try:
            return waiting.result()
        except (kafka.Unusable, ModelUnusable, Refused) as error:
            self.stop(Exit.GAVE_UP, str(error))
            return None

    async def _serve(self, triton: InferenceClient, surroundings: Surroundings) -> None:
        path = self._path = Path(
            self._settings, self._name, triton, surroundings, self._metrics, self.stop, self._tracing
        )
        await asyncio.to_thread(path.connect)
        _collect_rarely()
        path.start()
        log.info("consuming", extra={"topic": self._settings.kafka_request_topic, "compiled": COMPILED})
        await self._stopping.wait()
        log.info("draining", extra={"reason": self._reason or "told to stop"})
        self._beat()
        drained = await path.drain(self._settings.worker_drain_s)
        if not drained and self._exit is Exit.DRAINED:
            self._exit = Exit.DRAIN_TIMED_OUT
            log.warning("the drain ran out of time; what was in flight will be read again")

    def stop(self, code: Exit, reason: str) -> None:
        """Drain and exit with `code`; the first reason counts."""
        if self._exit is Exit.DRAINED and not self._stopping.is_set():
            self._exit, self._reason = code, reason
            log.error(reason)
        self._stopping.set()

    def _supervisor_gone(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            log.warning("the supervisor is gone")
            self._stopping.set()

    def _wait_for(self, what: str) -> None:
        self._waiting_for = what
        self._beat()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            if self._path is not None:
                self._path.dispatcher.freeze.tick(time.monotonic())
            if ticks % HEARTBEAT_EVERY_TICKS == 0:
                self._beat()
            ticks += 1
            await asyncio.sleep(TICK_S)

    def _beat(self) -> None:
        path = self._path
        if path is not None:
            path.dispatcher.update_gauges()
        now = time.monotonic()
        ready = path is not None and path.intake.joined
        stopping = self._reason or (DRAINING if self._stopping.is_set() else None)
        heartbeat = Heartbeat(
            ready=ready and stopping is None,
            poll_age_s=max(0.0, now - path.intake.progress_at) if path is not None else 0.0,
            oldest_call_s=path.dispatcher.oldest_call_s(now) if path is not None else 0.0,
            stopping=stopping,
            waiting_for=None
            if ready
            else "Kafka's consumer group"
            if path is not None
            else self._waiting_for,
        )
        if self._heartbeats is not None:
            self._heartbeats.write(heartbeat)


def _triton(settings: Settings) -> InferenceClient:
    connections = (settings.concurrency_max + 1) * len(settings.models)
    clients = {
        url: TritonClient(url, headers=settings.http_headers, max_connections=connections)
        for url in settings.triton_urls
    }
    return TritonServers(clients, time.monotonic) if len(clients) > 1 else next(iter(clients.values()))


def _collect_rarely() -> None:
    """Requests in hand are no garbage and hardly anything here is a cycle, yet Python would walk all of them, and all
    modules as well, over and over: after every 700 new ones by default."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


def main() -> int:
    """Entry point of the process that the supervisor starts."""
    # Stacks of all threads: before a crash in native code ends it, and when the supervisor finds it stuck.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    settings = load(Settings)
    slot = int(os.environ.get(SLOT_VARIABLE, "0"))
    logs.configure(
        settings.log_level,
        settings.log_format,
        slot,
        prompts=settings.log_prompts,
        secrets=secrets_of(settings),
    )
    heartbeats = HeartbeatWriter.from_environment()
    try:
        return uvloop.run(Worker(settings, slot, heartbeats).run())
    except Exception:
        log.exception("the worker failed")
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
