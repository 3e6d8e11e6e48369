"""One worker process: waits for Kafka and Triton, builds the parts, wires them, runs until drained.

The path of a record, in the order of the files:

    intake.poll → admission.admit → batcher.offer → dispatcher.run → triton.infer → replies.send
        → (the broker acknowledges) → ledger.settle → intake.commit

Two threads: this event loop, and the consumer's (`intake`). Started by the supervisor, never by hand; it ignores
SIGINT, and drains on SIGTERM or when its supervisor is gone (end of file on standard input).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import uvloop
from confluent_kafka import Producer

from promptbus.settings import load
from promptbus_worker import kafka, logs
from promptbus_worker.admission import Admission, Limits
from promptbus_worker.batcher import Batcher
from promptbus_worker.deadline import Deadline
from promptbus_worker.dispatcher import Dispatcher
from promptbus_worker.heartbeat import SLOT_VARIABLE, Heartbeat, HeartbeatWriter
from promptbus_worker.intake import Intake
from promptbus_worker.ledger import Ownership
from promptbus_worker.metrics import Metrics
from promptbus_worker.model import InferenceClient, ModelSpec
from promptbus_worker.outcomes import ModelUnusable
from promptbus_worker.positions import Positions
from promptbus_worker.record import Record
from promptbus_worker.replies import Producer as ReplyProducer
from promptbus_worker.replies import Replies
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Surroundings, wait_for_surroundings
from promptbus_worker.triton import TritonClient
from promptbus_worker.worker_process import Exit

log = logging.getLogger(__name__)

TICK_S = 0.1
HEARTBEAT_EVERY_TICKS = 5
BATCHES_IN_HAND_PER_SLOT = 16
"""Batches' worth of records in hand per batch in flight: the next ones wait while the last ones' replies settle."""
MAX_BYTES_IN_HAND = 32 << 20
CALLS_PER_INSTANCE = 2
"""Batches in flight per model instance: one runs while the next one waits at Triton's door."""
CLOSE_S = 5.0


class Worker:
    """One process's state. `run` returns its exit code."""

    def __init__(self, settings: Settings, slot: int, heartbeats: HeartbeatWriter | None) -> None:
        self._settings = settings
        self._name = f"{settings.instance}-{slot}"
        self._heartbeats = heartbeats
        self._metrics = Metrics(settings.models)
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
        triton = TritonClient(
            settings.triton_url, headers=settings.http_headers, max_connections=settings.concurrency_max + 1
        )
        try:
            surroundings = await self._surroundings(triton)
            if surroundings is not None:
                await self._serve(triton, surroundings)
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            await triton.close()
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
        except (kafka.Unusable, ModelUnusable) as error:
            self.stop(Exit.GAVE_UP, str(error))
            return None

    async def _serve(self, triton: InferenceClient, surroundings: Surroundings) -> None:
        path = self._path = Path(self._settings, self._name, triton, surroundings, self._metrics, self.stop)
        path.start()
        log.info("consuming", extra={"topic": self._settings.kafka_request_topic})
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
        ready = path is not None and path.intake.joined
        stopping = self._reason or ("draining" if self._stopping.is_set() else None)
        heartbeat = Heartbeat(
            ready=ready and stopping is None,
            poll_age_s=time.monotonic() - path.intake.progress_at if path is not None else 0.0,
            stopping=stopping,
            waiting_for=None
            if ready
            else "Kafka's consumer group"
            if path is not None
            else self._waiting_for,
        )
        if self._heartbeats is not None:
            self._heartbeats.write(heartbeat)


class Path:
    """The parts of a request's path, wired. It is also the event loop's side of the intake."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        triton: InferenceClient,
        surroundings: Surroundings,
        metrics: Metrics,
        on_stop: Callable[[Exit, str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_stop = on_stop
        self._drain_begun = asyncio.Event()
        specs = surroundings.specs
        slots = concurrency(settings, specs)

        def batch_size(model: str) -> int:
            return min(specs[model].max_batch_size, settings.batch_max_size or specs[model].max_batch_size)

        self.producer = Producer(kafka.producer_config(settings, name, surroundings.limits.values()))
        self.intake = Intake(
            kafka.consumer_config(settings, name),
            settings.kafka_request_topic,
            positions=Positions(start_at_end=settings.kafka_start == "latest"),
            loop=self,
            metrics=metrics,
            max_records=BATCHES_IN_HAND_PER_SLOT * slots * max(map(batch_size, specs)),
            max_bytes=MAX_BYTES_IN_HAND,
            revoke_s=settings.worker_revoke_s,
        )
        self.replies = Replies(
            cast(ReplyProducer, self.producer),  # narrower than its annotations, which also allow str
            dead_letter_topic=settings.kafka_dead_letter_topic,
            worker=name,
            limits=surroundings.limits,
            metrics=metrics,
            on_settled=self._settled,
            on_stop=lambda reason: on_stop(Exit.FAILED, reason),
            clock=time.monotonic,
            wall_clock=time.time,
        )
        self.dispatcher = Dispatcher(
            admission=Admission(limits_of(settings), specs, settings.models[0]),
            batcher=Batcher(
                batch_size, max_bytes=settings.batch_max_bytes, linger_s=settings.batch_linger_ms / 1000
            ),
            client=triton,
            specs=specs,
            model_version=settings.triton_model_version,
            replies=self.replies,
            intake=self.intake,
            metrics=metrics,
            concurrency=slots,
            timeout_s=settings.triton_timeout_s,
            clock=time.monotonic,
            wall_clock=time.time,
        )
        self._thread = threading.Thread(target=self.intake.run, name="kafka-consumer", daemon=True)

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()

    async def drain(self, budget_s: float) -> bool:
        """Finish what was dispatched, commit, leave the group. False if the budget ran out before all was done."""
        deadline = Deadline(budget_s)
        self.intake.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline.remaining_s()):
                await self._drain_begun.wait()
        idle = await self.dispatcher.idle(deadline.remaining_s())
        acknowledged = await self.replies.all_acknowledged(deadline.remaining_s())
        await self.dispatcher.stop()
        self.intake.finish()
        await asyncio.to_thread(self._thread.join, CLOSE_S + deadline.remaining_s())
        return idle and acknowledged and not self._thread.is_alive()

    def _settled(self, records: list[Record]) -> None:
        self.intake.settled(records)
        if not self.replies.congested:
            self.dispatcher.pump()

    # -- intake.Loop: called on the consumer's thread

    def accept(self, records: list[Record]) -> None:
        """Records to answer."""
        self._loop.call_soon_threadsafe(self.dispatcher.accept, records)

    def release(self, ownerships: Sequence[Ownership]) -> None:
        """These partitions are being taken away."""
        self._loop.call_soon_threadsafe(self.dispatcher.release, ownerships)

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over."""
        self._loop.call_soon_threadsafe(self.dispatcher.forget, ownerships)

    def drain_now(self, ownerships: Sequence[Ownership]) -> None:
        """No more records will come."""

        def begin() -> None:
            self.dispatcher.drain(ownerships)
            self._drain_begun.set()

        self._loop.call_soon_threadsafe(begin)

    def stop(self, reason: str) -> None:
        """The consumer cannot go on."""
        self._loop.call_soon_threadsafe(self._on_stop, Exit.GAVE_UP, reason)


def concurrency(settings: Settings, specs: Mapping[str, ModelSpec]) -> int:
    """Batches in flight at most: enough to keep every instance busy, within the settings' bounds."""
    wanted = CALLS_PER_INSTANCE * sum(spec.instances for spec in specs.values())
    return max(settings.concurrency_min, min(settings.concurrency_max, wanted))


def limits_of(settings: Settings) -> Limits:
    """Admission's part of the settings."""
    return Limits(
        max_bytes=settings.request_max_bytes,
        max_prompt_chars=settings.request_max_prompt_chars,
        default_max_tokens=settings.request_max_tokens,
        default_temperature=settings.request_temperature,
        ignore_unknown_fields=settings.request_unknown_fields == "ignore",
        reply_topic=settings.kafka_reply_topic,
        reply_topics_allowed=settings.reply_topics_allowed,
    )


def main() -> int:
    """Entry point of the process that the supervisor starts."""
    settings = load(Settings)
    slot = int(os.environ.get(SLOT_VARIABLE, "0"))
    logs.configure(settings.log_level, settings.log_format, slot)
    heartbeats = HeartbeatWriter.from_environment()
    try:
        return uvloop.run(Worker(settings, slot, heartbeats).run())
    except Exception:
        log.exception("the worker failed")
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
