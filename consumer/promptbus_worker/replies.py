"""What a request is answered with: exactly one reply, and a dead letter where the code asks for one.

How they get to the broker is a matter of its own: `acknowledged_replies` writes each at once and settles it when the
broker has acknowledged it; `transactional_replies` leaves them to transactions. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

from promptbus.messages import ErrorCode, Usage
from promptbus_worker.accounting import count_settled
from promptbus_worker.model import Row
from promptbus_worker.outcomes import sentence
from promptbus_worker.record import ANSWERED, Pending, Rejection, about
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import SMALLEST_LIMIT, Outgoing

log = logging.getLogger(__name__)

MOST_REFUSALS = 5
"""A record well below its topic's limit that is refused for its size this often: the limits must be read anew."""


class Replies(ABC):
    """One reply for each record, and a dead letter where the code asks for one."""

    def __init__(self, parts: ReplyParts) -> None:
        self._records = parts.records
        self._metrics = parts.metrics
        self._on_answered = parts.on_answered
        self._on_settled = parts.on_settled
        self._on_stop = parts.on_stop
        self._tracing = parts.tracing
        self._clock = parts.clock
        self._wall_clock = parts.wall_clock
        self.in_bulk = False
        self._due = 0  # records of ours that are not on the broker
        self.unacknowledged: dict[Pending, None] = {}
        """Requests that are answered and not settled, in that order (a dict, for it is ordered and forgets fast)."""
        self._stopped = False
        self._given_up = False
        self._all_acknowledged = asyncio.Event()
        self._all_acknowledged.set()

    @property
    @abstractmethod
    def congested(self) -> bool:
        """Whether no more can be taken: dispatch nothing until it is not."""

    def write_in_bulk(self, in_bulk: bool) -> None:
        """Whether many requests wait behind those in flight: throughput matters then, and latency is theirs."""
        self.in_bulk = in_bulk

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

    def answer(self, requests: Sequence[Pending], rows: Sequence[Row], model_version: str) -> list[Pending]:
        """Write the model's answers, one row for each request; an error reply if it is larger than the reply topic takes.

        Returns the requests whose answer could not be made, by a defect of ours that the log tells.
        """
        answered: list[Pending] = []
        outgoing: list[Outgoing] = []
        too_large: list[Pending] = []
        failed: list[Pending] = []
        wall_ms = self._wall_clock() * 1000
        for request, row in zip(requests, rows, strict=True):
            request.attempts += 1
            _, total, prompt, completion, _ = row
            # Usage(...) is a function in Python and would cost 0.3 µs more.
            request.usage = usage = tuple.__new__(Usage, (prompt, completion, total))
            try:
                timings = self._timings(request, wall_ms)
                record = self._records.answer(request, row, usage, model_version, timings)
            except Exception:  # its neighbours have answers to be written
                log.exception("an answer could not be written", extra=about(request))
                request.attempts -= 1
                failed.append(request)
                continue
            if record is None:
                too_large.append(request)
            else:
                request.unacknowledged = 1
                answered.append(request)
                outgoing.append(record)
        self._answered(answered, None)
        self._send(outgoing)
        for request in too_large:
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
        return failed

    def reject(self, rejection: Rejection) -> None:
        """Answer a record that is no request to run."""
        is_request = not rejection.dead_letter
        self.error(rejection.pending, rejection.code, rejection.message, is_request=is_request)

    def error(
        self, request: Pending, code: ErrorCode, message: str | None = None, *, is_request: bool = True
    ) -> None:
        """Write an error reply, and a dead letter if the code says so or the record is no request at all."""
        self._tracing.begin((request,))
        timings = self._timings(request, self._wall_clock() * 1000)
        outgoing = [self._records.error(request, code, message or sentence(code), timings)]
        if code.dead_lettered or not is_request:
            outgoing.append(self._records.dead_letter(request, code))
            self._metrics.dead_letters_total[code].inc()
            extra = {"code": str(code), "attempts": request.attempts, **about(request)}
            log.warning("a request goes to the dead letters", extra=extra)
        request.usage = None
        request.unacknowledged = len(outgoing)
        self._answered([request], code)
        self._send(outgoing)

    def _answered(self, requests: Sequence[Pending], code: ErrorCode | None) -> None:
        if not requests:
            return
        now = self._clock()
        for request in requests:
            request.phase = ANSWERED
            request.code = code
            request.answered_at = now
            self.unacknowledged[request] = None
        self._on_answered(requests, now)

    def _timings(self, request: Pending, wall_ms: float) -> tuple[float, float, float]:
        """What becomes the reply's `Timings`."""
        record = request.record
        queued_until = request.dispatched_at
        if queued_until is None:
            queued_until = self._clock()
        total_ms = wall_ms - record.timestamp_ms if record.timestamp_ms >= 0 else 0.0
        return (queued_until - record.polled_at) * 1000, request.inference_s * 1000, total_ms

    @abstractmethod
    def _send(self, records: Sequence[Outgoing]) -> None:
        """Write these records. All of one request are sent in one turn of the loop."""

    @abstractmethod
    def _resend(self, outgoing: Outgoing) -> None:
        """Write one again that was sent before."""

    def _refused_for_size(self, outgoing: Outgoing) -> None:
        """The topic takes less than it said at start, or less than this record beside others in one batch."""
        size, request = outgoing.size, outgoing.pending
        if size < self._records.limit(outgoing.topic) // 2 and outgoing.refusals < MOST_REFUSALS:
            outgoing.refusals += 1
            self._resend(outgoing)
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
            self._send([self._records.dead_letter(request, request.code or ErrorCode.INTERNAL)])
        elif request.code is None:
            self.error(request, ErrorCode.REPLY_TOO_LARGE)
        else:
            message, timings = sentence(request.code), self._timings(request, self._wall_clock() * 1000)
            self._send([self._records.error(request, request.code, message, timings)])

    def _settle(self, settled: Sequence[Pending]) -> None:
        """Their outcomes are on the broker."""
        self._tracing.settled(settled)
        count_settled(self._metrics, settled, now=self._clock(), wall_ms=self._wall_clock() * 1000)
        self._on_settled([request.record for request in settled])

    def _stop(self, reason: str, *, restart: bool) -> None:
        if not self._stopped:
            self._stopped = True
            self._on_stop(reason, restart)
