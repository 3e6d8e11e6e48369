"""Writes replies and dead letters, and settles a record once the broker has acknowledged all that it asks for.

Everything here runs on the event loop, which alone produces and alone serves delivery reports: a timer serves them
every millisecond or so while any is due, so that they arrive in bulk and settle in bulk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from promptbus.messages import (
    ErrorCode,
    Headers,
    Timings,
    Usage,
    dead_letter_headers,
    encode_answer,
    encode_error,
    fit_dead_letter,
    message_bytes,
    reply_headers,
)
from promptbus_worker.deadline import Clock
from promptbus_worker.kafka_outcomes import DeliveryAction, delivery_verdict, stop_sentence
from promptbus_worker.model import Row
from promptbus_worker.outcomes import sentence
from promptbus_worker.record import Pending, Phase, Record, Rejection
from promptbus_worker.vocabulary import UNKNOWN_MODEL

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

RESEND_AFTER_S = 0.5
SMALLEST_LIMIT = 2_048
"""A topic that takes no record of this size cannot hold an error reply."""
_SHORTEST_TICK_S = 0.001
_LONGEST_TICK_S = 0.02


class DeliveryError(Protocol):
    """What is used of confluent_kafka.KafkaError."""

    def name(self) -> str: ...
    def str(self) -> str: ...
    def fatal(self) -> bool: ...
    def retriable(self) -> bool: ...


class Producer(Protocol):
    """What is used of confluent_kafka.Producer. `produce` raises BufferError while its queue is full."""

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


class _Outgoing(NamedTuple):
    pending: Pending
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    is_dead_letter: bool
    sent_at: float


class Replies:
    """One reply for each record, and a dead letter where the code asks for one."""

    def __init__(
        self,
        producer: Producer,
        *,
        dead_letter_topic: str,
        worker: str,
        limits: Mapping[str, int],
        metrics: Metrics,
        on_settled: Callable[[list[Record]], None],
        on_stop: Callable[[str], None],
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """`limits`: each topic's `max.message.bytes`. `clock` and `wall_clock` give seconds."""
        self._producer = producer
        self._dead_letter_topic = dead_letter_topic
        self._worker = worker
        self._limits = dict(limits)
        self._metrics = metrics
        self._on_settled = on_settled
        self._on_stop = on_stop
        self._clock = clock
        self._wall_clock = wall_clock
        self._unsent: deque[_Outgoing] = deque()
        self._due = 0  # records of ours that the broker has not acknowledged
        self._settled: list[Pending] = []
        self._tick: asyncio.TimerHandle | None = None
        self._tick_s = _SHORTEST_TICK_S
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
        """Wait until nothing is due. False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_acknowledged.wait()
        except TimeoutError:
            return False
        return True

    def answer(self, request: Pending, row: Row, model_version: str) -> None:
        """Write the model's answer."""
        usage = Usage(row.prompt_tokens, row.completion_tokens, row.total_tokens)
        request.attempts += 1
        value = encode_answer(
            request_id=request.request_id,
            reply_id=request.reply_id,
            response=row.response,
            finish_reason=row.finish_reason,
            usage=usage,
            model=request.model or "",
            model_version=model_version,
            metadata=request.metadata,
            timings=self._timings(request),
            attempts=request.attempts,
        )
        outgoing = self._reply(request, "ok", value)
        if not self._fits(outgoing):
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
            return
        request.usage = usage
        self._answered(request, None)
        request.unacknowledged = 1
        self._send(outgoing)

    def reject(self, rejection: Rejection) -> None:
        """Answer a record that is no request to run."""
        self.error(rejection.pending, rejection.code, rejection.message, is_request=not rejection.dead_letter)

    def error(
        self, request: Pending, code: ErrorCode, message: str | None = None, *, is_request: bool = True
    ) -> None:
        """Write an error reply, and a dead letter if the code says so or the record is no request at all."""
        dead_letter = code.dead_lettered or not is_request
        self._answered(request, code)
        request.usage = None
        request.unacknowledged = 2 if dead_letter else 1
        self._send(self._error_reply(request, code, message or sentence(code)))
        if dead_letter:
            self._metrics.dead_letters_total[code].inc()
            self._send(self._dead_letter(request, code))

    def _answered(self, request: Pending, code: ErrorCode | None) -> None:
        request.phase = Phase.ANSWERED
        request.code = code
        request.answered_at = self._clock()
        ownership = request.record.ownership
        ownership.highest_answered = max(ownership.highest_answered, request.record.offset)

    def _timings(self, request: Pending) -> Timings:
        record = request.record
        dispatched_at = request.dispatched_at
        queued_until = dispatched_at if dispatched_at is not None else self._clock()
        total_ms = self._wall_clock() * 1000 - record.timestamp_ms if record.timestamp_ms >= 0 else 0.0
        return Timings(
            max(0.0, queued_until - record.polled_at) * 1000,
            max(0.0, request.inference_s) * 1000,
            max(0.0, total_ms),
        )

    def _reply(self, request: Pending, status: str, value: bytes) -> _Outgoing:
        key = request.record.key
        headers: list[tuple[str, bytes | None]] = [
            *reply_headers(
                request_id=request.request_id,
                reply_id=request.reply_id,
                status=status,
                correlation_id=request.correlation_id,
                traceparent=request.traceparent,
                tracestate=request.tracestate,
            )
        ]
        return _Outgoing(
            request,
            request.reply_topic,
            key if key is not None else request.request_id.encode(),
            value,
            headers,
            False,
            self._clock(),
        )

    def _error_reply(self, request: Pending, code: ErrorCode, message: str) -> _Outgoing:
        """The fullest error reply that fits: what is the sender's own goes first, the code and ids never."""
        for metadata in (request.metadata, {}):
            value = encode_error(
                request_id=request.request_id,
                reply_id=request.reply_id,
                code=code,
                message=message,
                metadata=metadata,
                model=request.model,
                timings=self._timings(request),
                attempts=request.attempts,
            )
            outgoing = self._reply(request, "error", value)
            if self._fits(outgoing):
                return outgoing
        bare = reply_headers(request_id=request.request_id, reply_id=request.reply_id, status="error")
        return outgoing._replace(key=request.request_id.encode(), headers=[*bare])

    def _dead_letter(self, request: Pending, code: ErrorCode) -> _Outgoing:
        record = request.record
        headers: Headers = dead_letter_headers(
            record.headers,
            code=code,
            topic=record.ownership.topic,
            partition=record.ownership.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            attempts=request.attempts,
            worker=self._worker,
        )
        limit = self._limits[self._dead_letter_topic]
        value, fitted = fit_dead_letter(record.value, headers, key=record.key, max_bytes=limit)
        key = record.key
        if message_bytes(key, value, fitted) > limit:
            key = None
        return _Outgoing(request, self._dead_letter_topic, key, value, fitted, True, self._clock())

    def _fits(self, outgoing: _Outgoing) -> bool:
        return _size(outgoing) <= self._limits[outgoing.topic]

    def _send(self, outgoing: _Outgoing) -> None:
        self._due += 1
        self._all_acknowledged.clear()
        self._produce(outgoing)
        if self._tick is None:
            self._tick_s = _SHORTEST_TICK_S
            self._tick = asyncio.get_running_loop().call_later(self._tick_s, self._serve)

    def _produce(self, outgoing: _Outgoing) -> None:
        try:
            self._producer.produce(
                outgoing.topic,
                outgoing.value,
                outgoing.key,
                headers=outgoing.headers,
                on_delivery=partial(self._delivered, outgoing),
            )
        except BufferError:
            self._unsent.append(outgoing)

    def _serve(self) -> None:
        """Serve delivery reports, try again what did not fit into the producer's queue, settle."""
        served = self._producer.poll(0)
        for _ in range(len(self._unsent)):
            if self._unsent:
                self._produce(self._unsent.popleft())
        if self._settled:
            settled, self._settled = self._settled, []
            self._account(settled)
            self._on_settled([request.record for request in settled])
        if self._due:
            self._tick_s = _SHORTEST_TICK_S if served else min(_LONGEST_TICK_S, self._tick_s * 1.5)
            self._tick = asyncio.get_running_loop().call_later(self._tick_s, self._serve)
        else:
            self._tick = None
            self._all_acknowledged.set()

    def _delivered(self, outgoing: _Outgoing, error: DeliveryError | None, _: object) -> None:
        if error is not None:
            self._failed(outgoing, error)
            return
        self._due -= 1
        request = outgoing.pending
        request.unacknowledged -= 1
        if request.unacknowledged == 0:
            self._settled.append(request)

    def _failed(self, outgoing: _Outgoing, error: DeliveryError) -> None:
        name = error.name()
        action = delivery_verdict(name, fatal=error.fatal(), retriable=error.retriable())
        if not outgoing.pending.record.ownership.live:
            action = DeliveryAction.DROPPED  # the next owner answers it
        match action:
            case DeliveryAction.RESEND:
                log.warning(
                    "a record was not written, trying again", extra={"topic": outgoing.topic, "error": name}
                )
                asyncio.get_running_loop().call_later(RESEND_AFTER_S, self._produce, outgoing)
            case DeliveryAction.TOO_LARGE:
                self._refused_for_size(outgoing)
            case DeliveryAction.STOP:
                self._on_stop(
                    f"Writing to {outgoing.topic} failed for good ({name}). {stop_sentence(name, error.str())}"
                )
            case DeliveryAction.DROPPED:
                self._due -= 1

    def _refused_for_size(self, outgoing: _Outgoing) -> None:
        """The topic takes less than it said at start, or less than this record beside others in one batch."""
        limit, size = self._limits[outgoing.topic], _size(outgoing)
        if size < limit // 2:
            asyncio.get_running_loop().call_later(RESEND_AFTER_S, self._produce, outgoing)
            return
        if size <= SMALLEST_LIMIT:
            self._on_stop(f"{outgoing.topic} takes no record of {size} bytes. Raise its max.message.bytes.")
            return
        self._limits[outgoing.topic] = size - 1
        self._due -= 1
        request = outgoing.pending
        if outgoing.is_dead_letter:
            self._send(self._dead_letter(request, request.code or ErrorCode.INTERNAL))
        elif request.code is None:
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
        else:
            self._send(self._error_reply(request, request.code, sentence(request.code)))

    def _account(self, settled: list[Pending]) -> None:
        now, wall_ms = self._clock(), self._wall_clock() * 1000
        by_model: dict[str, list[Pending]] = {}
        for request in settled:
            by_model.setdefault(request.model or UNKNOWN_MODEL, []).append(request)
        metrics = self._metrics
        for model, requests in by_model.items():
            for code, count in Counter(request.code or "ok" for request in requests).items():
                metrics.requests_total[model, code].inc(count)
            metrics.reply_duration_seconds[model].observe_many(now - r.answered_at for r in requests)
            metrics.queue_duration_seconds[model].observe_many(
                r.dispatched_at - r.record.polled_at for r in requests if r.dispatched_at is not None
            )
            metrics.response_duration_seconds[model].observe_many(
                max(0.0, wall_ms - r.record.timestamp_ms) / 1000
                for r in requests
                if r.record.timestamp_ms >= 0
            )
            usages = [request.usage for request in requests if request.usage is not None]
            for kind, index in (("prompt", 0), ("completion", 1), ("total", 2)):
                counts = [usage[index] or 0 for usage in usages if usage[index] is not None]
                if counts:
                    metrics.tokens_total[model, kind].inc(sum(counts))
                    metrics.request_tokens[model, kind].observe_many(counts)


def _size(outgoing: _Outgoing) -> int:
    return message_bytes(outgoing.key, outgoing.value, outgoing.headers)
