"""Writes replies and dead letters, and settles a record once the broker has acknowledged all that it asks for.

Everything here runs on the event loop, which alone produces and alone serves delivery reports: a timer serves them
every millisecond or so while any is due, so that they arrive in bulk and settle in bulk.

librdkafka tells of failures in two ways. A delivery report names an error, but its flags (fatal, retriable) are
always false. What `produce` and `poll` raise, and what the error callback hears, has true flags. So reports are
judged by name, and the other two decide about fatal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import KafkaException

from promptbus.messages import ErrorCode, Timings, Usage
from promptbus_worker.accounting import count_settled
from promptbus_worker.deadline import Clock
from promptbus_worker.kafka_outcomes import (
    DeliveryAction,
    delivery_verdict,
    needs_operator,
    stop_sentence,
)
from promptbus_worker.model import Row
from promptbus_worker.outcomes import sentence
from promptbus_worker.record import Pending, Phase, Record, Rejection, about
from promptbus_worker.reply_records import SMALLEST_LIMIT, Outgoing, ReplyRecords
from promptbus_worker.tracing import OFF, Tracing

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

RESEND_AFTER_S = 0.5
MOST_REFUSALS = 5
"""A record well below its topic's limit that is refused for its size this often: the limits must be read anew."""
BULK_S = 0.05
"""While more waits, replies are collected for this long: each partition then gets a few large produce requests
instead of many of one record, which cost the broker several times as much."""
_SHORTEST_TICK_S = 0.001
_LONGEST_TICK_S = 0.02


class DeliveryError(Protocol):
    """What is used of confluent_kafka.KafkaError."""

    def name(self) -> str: ...
    def str(self) -> str: ...
    def fatal(self) -> bool: ...
    def retriable(self) -> bool: ...


class Producer(Protocol):
    """What is used of confluent_kafka.Producer.

    `produce` raises BufferError while its queue is full, and KafkaException like `poll`.
    """

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        headers: list[tuple[str, bytes | None]],
        on_delivery: Callable[[DeliveryError | None, object], None],
    ) -> None: ...

    def poll(self, timeout: float) -> int: ...


class Replies:
    """One reply for each record, and a dead letter where the code asks for one."""

    def __init__(
        self,
        producer: Producer,
        records: ReplyRecords,
        *,
        metrics: Metrics,
        on_answered: Callable[[Pending, float], None],
        on_settled: Callable[[list[Record]], None],
        on_stop: Callable[[str, bool], None],
        must_wait: Callable[[], bool],
        tracing: Tracing = OFF,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """`on_answered` hears of each outcome and when; `on_stop`, why the worker cannot go on, and whether a restart
        may mend it. `must_wait`: whether what lay here for a while may not be sent yet, for somebody else may own its
        partition by now. `clock` and `wall_clock` give seconds."""
        self._producer = producer
        self._records = records
        self._metrics = metrics
        self._on_answered = on_answered
        self._on_settled = on_settled
        self._on_stop = on_stop
        self._must_wait = must_wait
        self._tracing = tracing
        self._clock = clock
        self._wall_clock = wall_clock
        self.in_bulk = False
        """Set while requests wait behind those in flight: throughput matters then, and latency is theirs."""
        self._collected: list[Outgoing] = []
        self._unsent: deque[Outgoing] = deque()
        self._due = 0  # records of ours that the broker has not acknowledged
        self.unacknowledged: dict[Pending, None] = {}
        """Requests that are answered and not settled, in that order (a dict, for it is ordered and forgets fast)."""
        self._settled: list[Pending] = []
        self._tick: asyncio.TimerHandle | None = None
        self._tick_s = _SHORTEST_TICK_S
        self._stopped = False
        self._failed_for_good = False
        self._given_up = False
        self._all_acknowledged = asyncio.Event()
        self._all_acknowledged.set()

    @property
    def congested(self) -> bool:
        """Whether the producer's queue is full: dispatch nothing more until it is not."""
        return bool(self._unsent)

    @property
    def due(self) -> int:
        """Records written and not acknowledged yet."""
        return self._due

    async def all_acknowledged(self, timeout_s: float) -> bool:
        """Wait until nothing is due. False if that takes longer than `timeout_s`, or can never be."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_acknowledged.wait()
        except TimeoutError:
            return False
        return not self._due and not self._given_up

    def answer(self, request: Pending, row: Row, model_version: str) -> None:
        """Write the model's answer; an error reply if it is larger than the reply topic takes."""
        request.attempts += 1
        outgoing = self._records.answer(request, row, model_version, self._timings(request))
        if outgoing is None:
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
            return
        request.usage = Usage(row.prompt_tokens, row.completion_tokens, row.total_tokens)
        request.unacknowledged = 1
        self._answered(request, None)
        self._send(outgoing)

    def reject(self, rejection: Rejection) -> None:
        """Answer a record that is no request to run."""
        is_request = not rejection.dead_letter
        self.error(rejection.pending, rejection.code, rejection.message, is_request=is_request)

    def error(
        self, request: Pending, code: ErrorCode, message: str | None = None, *, is_request: bool = True
    ) -> None:
        """Write an error reply, and a dead letter if the code says so or the record is no request at all."""
        self._tracing.begin((request,))
        outgoing = [self._records.error(request, code, message or sentence(code), self._timings(request))]
        if code.dead_lettered or not is_request:
            outgoing.append(self._records.dead_letter(request, code))
            self._metrics.dead_letters_total[code].inc()
            extra = {"code": str(code), "attempts": request.attempts, **about(request)}
            log.warning("a request goes to the dead letters", extra=extra)
        request.usage = None
        request.unacknowledged = len(outgoing)
        self._answered(request, code)
        for record in outgoing:
            self._send(record)

    def _answered(self, request: Pending, code: ErrorCode | None) -> None:
        request.phase = Phase.ANSWERED
        self.unacknowledged[request] = None
        request.code = code
        request.answered_at = now = self._clock()
        self._on_answered(request, now)

    def _timings(self, request: Pending) -> Timings:
        record = request.record
        queued_until = request.dispatched_at if request.dispatched_at is not None else self._clock()
        total_ms = self._wall_clock() * 1000 - record.timestamp_ms if record.timestamp_ms >= 0 else 0.0
        return Timings(
            max(0.0, queued_until - record.polled_at) * 1000,
            max(0.0, request.inference_s) * 1000,
            max(0.0, total_ms),
        )

    # -- producing

    def _send(self, outgoing: Outgoing) -> None:
        self._due += 1
        self._all_acknowledged.clear()
        if self.in_bulk:
            self._collect(outgoing)
        else:
            self._produce(outgoing)
        if self._tick is None:
            self._tick_s = _SHORTEST_TICK_S
            self._tick = asyncio.get_running_loop().call_later(self._tick_s, self._serve)

    def _collect(self, outgoing: Outgoing) -> None:
        if not self._collected:
            asyncio.get_running_loop().call_later(BULK_S, self._produce_collected)
        self._collected.append(outgoing)

    def _produce_collected(self) -> None:
        if self._must_wait():
            asyncio.get_running_loop().call_later(BULK_S, self._produce_collected)
            return
        collected, self._collected = self._collected, []
        for outgoing in collected:
            self._produce(outgoing)

    def _produce(self, outgoing: Outgoing) -> None:
        if not outgoing.pending.record.ownership.live:
            self._drop(outgoing)  # the next owner answers it
            return
        if self._unsent:  # behind those, or replies of one key would change their order
            self._unsent.append(outgoing)
            return
        self._try_to_produce(outgoing)

    def _try_to_produce(self, outgoing: Outgoing) -> bool:
        """False: the producer's queue is full, and this record first in the line of the unsent."""
        try:
            self._producer.produce(
                outgoing.topic,
                outgoing.value,
                outgoing.key,
                headers=outgoing.headers,
                on_delivery=partial(self._delivered, outgoing),
            )
        except BufferError:
            self._unsent.appendleft(outgoing)
            return False
        except KafkaException as error:
            self._failed(outgoing, error.args[0])
        return True

    def _serve(self) -> None:
        """Serve delivery reports, try again what did not fit into the producer's queue, settle."""
        served = 0
        try:
            served = self._producer.poll(0)
            if self._unsent and not self._must_wait():
                self._produce_unsent()
            self._settle()
        except KafkaException as error:
            self.client_error(error.args[0])
        except Exception:
            log.exception("serving delivery reports failed by a defect of the worker")
        finally:
            self._tick = None
            if self._failed_for_good or not self._due:
                self._all_acknowledged.set()
            else:
                shortest = BULK_S / 2 if self.in_bulk else _SHORTEST_TICK_S
                self._tick_s = shortest if served else min(_LONGEST_TICK_S, self._tick_s * 1.5)
                self._tick = asyncio.get_running_loop().call_later(self._tick_s, self._serve)

    def _produce_unsent(self) -> None:
        while self._unsent:
            outgoing = self._unsent.popleft()
            if not outgoing.pending.record.ownership.live:
                self._drop(outgoing)
            elif not self._try_to_produce(outgoing):
                return

    def client_error(self, error: DeliveryError) -> None:
        """An error of the client as a whole, raised or from its error callback: only a fatal one matters."""
        if error.fatal():
            self._failed_for_good = True
            self._stop_for(error, "The Kafka producer failed for good.")

    def _stop_for(self, error: DeliveryError, what: str) -> None:
        name = error.name()
        self._stop(f"{what} {stop_sentence(name, error.str())}", restart=not needs_operator(name))

    def _stop(self, reason: str, *, restart: bool) -> None:
        if not self._stopped:
            self._stopped = True
            self._on_stop(reason, restart)

    # -- delivery reports

    def _delivered(self, outgoing: Outgoing, error: DeliveryError | None, _: object) -> None:
        if error is not None:
            self._failed(outgoing, error)
            return
        self._due -= 1
        request = outgoing.pending
        request.unacknowledged -= 1
        if request.unacknowledged == 0:
            self.unacknowledged.pop(request, None)
            self._settled.append(request)

    def _failed(self, outgoing: Outgoing, error: DeliveryError) -> None:
        name = error.name()
        action = delivery_verdict(name, fatal=error.fatal(), retriable=error.retriable())
        if not outgoing.pending.record.ownership.live:
            action = DeliveryAction.DROPPED  # the next owner answers it
        match action:
            case DeliveryAction.RESEND:
                extra = {**about(outgoing.pending), "written_to": outgoing.topic, "error": name}
                log.warning("a record was not written, trying again", extra=extra)
                self._resend(outgoing)
            case DeliveryAction.TOO_LARGE:
                self._refused_for_size(outgoing)
            case DeliveryAction.STOP:
                self._drop(outgoing)  # it stays unsettled; what else is due may still be acknowledged
                self._given_up = True
                self._stop_for(error, f"Writing to {outgoing.topic} failed for good.")
            case DeliveryAction.DROPPED:
                self._drop(outgoing)

    def _drop(self, outgoing: Outgoing) -> None:
        self._due -= 1
        self.unacknowledged.pop(outgoing.pending, None)

    def _resend(self, outgoing: Outgoing) -> None:
        asyncio.get_running_loop().call_later(RESEND_AFTER_S, self._collect, outgoing)

    def _refused_for_size(self, outgoing: Outgoing) -> None:
        """The topic takes less than it said at start, or less than this record beside others in one batch."""
        size, request = outgoing.size, outgoing.pending
        if size < self._records.limit(outgoing.topic) // 2 and outgoing.refusals < MOST_REFUSALS:
            self._resend(outgoing._replace(refusals=outgoing.refusals + 1))
            return
        if size <= SMALLEST_LIMIT:
            why = f"{outgoing.topic} takes no record of {size} bytes. Raise its max.message.bytes."
            self._stop(why, restart=True)  # which reads the limits anew
            return
        # A dead letter is cut to the limit: by a byte at a time it would be refused thousands of times.
        fits = max(SMALLEST_LIMIT, size * 3 // 4) if outgoing.is_dead_letter else size - 1
        self._records.lower_limit(outgoing.topic, fits)
        self._due -= 1
        if outgoing.is_dead_letter:
            self._send(self._records.dead_letter(request, request.code or ErrorCode.INTERNAL))
        elif request.code is None:
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
        else:
            message, timings = sentence(request.code), self._timings(request)
            self._send(self._records.error(request, request.code, message, timings))

    # -- settling

    def _settle(self) -> None:
        if self._settled:
            settled, self._settled = self._settled, []
            self._tracing.settled(settled)
            count_settled(self._metrics, settled, now=self._clock(), wall_ms=self._wall_clock() * 1000)
            self._on_settled([request.record for request in settled])
