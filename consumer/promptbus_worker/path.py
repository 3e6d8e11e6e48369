"""The parts of a request's path, built and wired for one process, and the way they are taken down.

Two threads meet here: the event loop, which owns everything but the consumer, and the consumer's (`intake`), whose
calls are handed to the loop one after the other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from promptbus_worker import kafka, refusals
from promptbus_worker.acknowledged_replies import AcknowledgedReplies, DeliveryError
from promptbus_worker.acknowledged_replies import Producer as ReplyProducer
from promptbus_worker.admission import Admission, Limits
from promptbus_worker.batcher import Batcher
from promptbus_worker.broker_watch import BrokerWatch
from promptbus_worker.deadline import Deadline
from promptbus_worker.dispatcher import Dispatcher
from promptbus_worker.gates import Gates
from promptbus_worker.intake import Intake
from promptbus_worker.lag_report import LagReport
from promptbus_worker.ledger import Ownership
from promptbus_worker.limiter import Limiter
from promptbus_worker.model import InferenceClient, ModelSpec
from promptbus_worker.positions import Positions
from promptbus_worker.record import Pending, Record
from promptbus_worker.replies import Replies
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import Outgoing, ReplyRecords
from promptbus_worker.room import Room
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Surroundings
from promptbus_worker.tracing import OFF, Tracing
from promptbus_worker.transactional_replies import TransactionalReplies
from promptbus_worker.transactions import Producer as TransactionalProducer
from promptbus_worker.transactions import Transactions
from promptbus_worker.triton_load import TritonLoad
from promptbus_worker.worker_process import Exit

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

MAX_BYTES_IN_HAND = 32 << 20
CALLS_PER_INSTANCE = 2
"""Batches in flight per model instance to begin with: one runs while the next one waits at Triton's door."""
CONNECT_S = 2.0
CLOSE_S = 5.0
"""Beyond the drain's own budget: commit, leave the group, end the thread."""


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
        tracing: Tracing = OFF,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_stop = on_stop
        self._drain_begun = asyncio.Event()
        specs = surroundings.specs
        limiters = {name: new_limiter(settings, spec) for name, spec in specs.items()}
        transactional = settings.worker_delivery == "transactional"

        wanted_size = settings.batch_max_size

        def batch_size(model: str) -> int:
            largest = specs[model].max_batch_size
            return largest if wanted_size is None else min(largest, wanted_size)

        room = Room(
            limiters,
            batch_size,
            transactional=transactional,
            answered=lambda: len(self.replies.unacknowledged),
        )
        self.intake = Intake(
            kafka.consumer_config(settings, name),
            settings.kafka_request_topic,
            positions=Positions(start_at_end=settings.kafka_start == "latest"),
            loop=self,
            metrics=metrics,
            max_records=room.records,
            max_bytes=MAX_BYTES_IN_HAND,
            revoke_s=settings.worker_revoke_s,
            lag_report=LagReport.from_environment(),
            make_transactions=partial(self._transactions, settings, name, surroundings.limits)
            if transactional
            else None,
        )
        gates = Gates(specs)
        self._brokers = BrokerWatch(
            self._ask_broker,
            partial(refusals.not_let_in, settings, name),
            settings.kafka_bootstrap,
            time.monotonic,
        )
        self._client: Producer | AdminClient
        parts = ReplyParts(
            records=ReplyRecords(
                surroundings.limits, dead_letter_topic=settings.kafka_dead_letter_topic, worker=name
            ),
            metrics=metrics,
            on_answered=self._answered,
            on_settled=_settled_already if transactional else self.intake.settled,
            on_stop=self._stop,
            tracing=tracing,
            clock=time.monotonic,
            wall_clock=time.time,
        )
        self.replies: Replies
        if transactional:
            self._client = kafka.admin_client(settings, name)
            self.replies = self._transactional_replies = TransactionalReplies(self.intake.write, parts)
        else:
            config = kafka.producer_config(settings, name, surroundings.limits.values())
            # The only place where a fatal error of the producer says that it is one; heard inside poll, on this loop.
            config["error_cb"] = self._producer_error
            self._client = Producer(config)
            self.replies = self._acknowledged_replies = AcknowledgedReplies(
                cast(ReplyProducer, self._client),  # its annotations are wider
                parts,
                must_wait=self._must_wait,
                on_room=self._pump,
            )
        self.dispatcher = Dispatcher(
            admission=Admission(limits_of(settings), specs, settings.models[0]),
            batcher=Batcher(
                batch_size, max_bytes=settings.batch_max_bytes, linger_s=settings.batch_linger_ms / 1000
            ),
            gates=gates,
            client=triton,
            specs=specs,
            model_version=settings.triton_model_version,
            replies=self.replies,
            intake=self.intake,
            metrics=metrics,
            on_stop=lambda reason: self._stop(reason, restart=True),
            limiters=limiters,
            ordered=settings.worker_ordering == "key",
            timeout_s=settings.triton_timeout_s,
            tracing=tracing,
            clock=time.monotonic,
            wall_clock=time.time,
        )
        self._load = TritonLoad(
            triton, settings.triton_model_version, limiters, specs, self.dispatcher.in_flight, time.monotonic
        )
        self._thread = threading.Thread(target=self.intake.run, name="kafka-consumer", daemon=True)

    def _transactions(
        self, settings: Settings, name: str, limits: Mapping[str, int], on_stop: Callable[[str, bool], None]
    ) -> Transactions:
        def stop(reason: str, restart: bool) -> None:
            self._soon(self._transactional_replies.give_up)
            on_stop(reason, restart)

        config = kafka.transactional_config(settings, name, limits.values())
        return Transactions(
            lambda: cast(TransactionalProducer, Producer(config)),  # its annotations are wider
            timeout_s=settings.transaction_timeout_ms / 1000,
            on_stop=stop,
            clock=time.monotonic,
            denied=partial(refusals.denied, settings, name),
        )

    def _producer_error(self, error: DeliveryError) -> None:
        self._acknowledged_replies.client_error(error)
        self._brokers.trouble(error.name(), error.str())

    def _must_wait(self) -> bool:
        return self.dispatcher.must_poll_first()

    def _answered(self, requests: Sequence[Pending], now: float) -> None:
        self.dispatcher.answered(requests, now)

    def _stop(self, reason: str, restart: bool) -> None:
        self._on_stop(Exit.FAILED if restart else Exit.GAVE_UP, reason)

    def connect(self) -> None:
        """Connect the client; blocks, so call it in another thread.

        An idempotent producer asks for its id when metadata arrives; finding no broker connected, as at the first
        answer while the bootstrap connection is being replaced, it looks again after 500 ms. The second finds one.
        """
        with suppress(KafkaException):
            for _ in range(2):
                self._client.list_topics(timeout=CONNECT_S)

    def _ask_broker(self) -> None:
        self._client.list_topics(timeout=CONNECT_S)

    def start(self) -> None:
        """Begin to consume."""
        self._load.start()
        self._thread.start()

    async def drain(self, budget_s: float) -> bool:
        """Finish what was dispatched, commit, leave the group. False if the budget ran out before all was done."""
        deadline = Deadline(budget_s)
        await self._brokers.stop()
        await self._load.stop()
        self.intake.drain()
        begun = await self._begun(deadline)
        idle = begun and await self.dispatcher.idle(deadline.remaining_s())
        acknowledged = begun and await self.replies.all_acknowledged(deadline.remaining_s())
        await self.dispatcher.stop()
        self.intake.finish(deadline.remaining_s())
        await asyncio.to_thread(self._thread.join, CLOSE_S + deadline.remaining_s())
        return idle and acknowledged and not self._thread.is_alive()

    async def _begun(self, deadline: Deadline) -> bool:
        """Wait until the consumer thread has handed over for the drain. False if it cannot any more."""
        while self._thread.is_alive() and not deadline.expired:
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline.remaining_s(at_most=0.1)):
                    await self._drain_begun.wait()
                    return True
        return False

    def _pump(self) -> None:
        self.dispatcher.pump()

    # -- intake.Loop: called on the consumer's thread

    def accept(self, records: list[Record]) -> None:
        """Records to answer."""
        self._soon(self.dispatcher.accept, records)

    def release(self, ownerships: Sequence[Ownership]) -> None:
        """These partitions are being taken away."""
        self._soon(self.dispatcher.release, ownerships)

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over."""
        self._soon(self.dispatcher.forget, ownerships)

    def drain_now(self, ownerships: Sequence[Ownership]) -> None:
        """No more records will come."""

        def begin() -> None:
            self.dispatcher.drain(ownerships)
            self._drain_begun.set()

        self._soon(begin)

    def written(self, records: list[Outgoing]) -> None:
        """A transaction with these is committed."""
        self._soon(self._transactional_replies.written, records)

    def dropped(self, records: list[Outgoing]) -> None:
        """These are somebody else's to write."""
        self._soon(self._transactional_replies.dropped, records)

    def refused(self, records: list[Outgoing], too_large: list[Outgoing]) -> None:
        """Some records do not fit their topics."""
        self._soon(self._transactional_replies.refused, records, too_large)

    def stop(self, reason: str, restart: bool) -> None:
        """The consumer cannot go on."""
        self._soon(self._stop, reason, restart)

    def trouble(self, error: str, text: str) -> None:
        """A Kafka client has an error."""
        self._soon(self._brokers.trouble, error, text)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: this process is past caring
            self._loop.call_soon_threadsafe(call, *arguments)


def _settled_already(_: list[Record]) -> None:
    """With transactions the consumer's thread has settled them before anybody here hears of it."""


def new_limiter(settings: Settings, spec: ModelSpec) -> Limiter:
    """Begins with what Triton says about one server; it finds out by itself when there are more behind the URL."""
    return Limiter(CALLS_PER_INSTANCE * spec.instances, settings.concurrency_min, settings.concurrency_max)


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
