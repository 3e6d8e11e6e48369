"""Runs one batch until each of its requests is answered or waits again.

A failed call narrows, never repeats: a model error is bisected, a batch that is too large is split, and everything
that is Triton's state or ours puts the requests back. What a failure means is `outcomes.VERDICTS`; `blame` decides
about those with whom it cannot be narrowed any further (DESIGN rules 8 to 10).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from promptbus.messages import ErrorCode
from promptbus_worker.batcher import Batch
from promptbus_worker.blame import Blame, Suspect
from promptbus_worker.blame import Traffic as BlameTraffic
from promptbus_worker.breaker import Breaker
from promptbus_worker.calls import Call, Calls
from promptbus_worker.deadline import Clock
from promptbus_worker.in_flight_file import InFlightFile
from promptbus_worker.limiter import Limiter
from promptbus_worker.model import BadRow, Row
from promptbus_worker.outcomes import VERDICTS, Action, CallError, CallFailure
from promptbus_worker.record import ANSWERED, IN_FLIGHT, Pending, about
from promptbus_worker.redaction import ServerText
from promptbus_worker.replies import Replies

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)


class Traffic(BlameTraffic, Protocol):
    """What a batch in flight asks of the dispatcher."""

    def take_one(self, model: str) -> Pending | None:
        """The request that waits longest for this model, now in flight."""
        ...

    def in_flight(self, model: str) -> int:
        """Batches of this model in flight, the asking one included."""
        ...

    def must_poll_first(self) -> bool:
        """Whether the process stood still and the consumer has not polled since."""
        ...

    async def polled_since_freeze(self) -> None:
        """Wait until it has."""
        ...


class Runner:
    """Everything between a batch and its requests' outcomes."""

    def __init__(
        self,
        *,
        calls: Calls,
        blame: Blame,
        breakers: Mapping[str, Breaker],
        limiters: Mapping[str, Limiter],
        in_flight_file: InFlightFile,
        replies: Replies,
        traffic: Traffic,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._calls = calls
        self._blame = blame
        self._breakers = breakers
        self._limiters = limiters
        self._in_flight_file = in_flight_file
        self._replies = replies
        self._traffic = traffic
        self._metrics = metrics
        self._clock = clock

    async def run(self, batch: Batch) -> None:
        """Never raises but when cancelled; a defect of ours is answered `internal`."""
        try:
            await self._narrow(batch.model, batch.requests)
        except Exception:
            log.exception("a batch failed by a defect of the worker", extra={"model": batch.model})
            for request in unanswered(batch.requests):
                self._replies.error(request, ErrorCode.INTERNAL)

    async def probe(self, batch: Batch) -> None:
        """A real inference that finds out whether the model works again.

        First our own; if the model runs but refuses that one, a waiting request, which joins `batch`.
        """
        model, breaker, began = batch.model, self._breakers[batch.model], self._clock()
        works = False
        try:
            works = await self._works(batch)
        except Exception:
            log.exception("a probe failed by a defect of the worker", extra={"model": model})
        finally:
            answered = any(request.phase is ANSWERED for request in batch.requests)
            self._traffic.put_back(unanswered(batch.requests))
            if works:
                breaker.probe_succeeded(began, by_request=answered)
                self._limiters[model].restart(self._clock())
            else:
                breaker.probe_failed(self._clock())

    async def _works(self, batch: Batch) -> bool:
        model = batch.model
        if not await self._calls.reread(model):
            return False
        try:
            await self._calls.ask_canary(model)
        except CallError as error:
            if VERDICTS[error.failure].action not in (Action.BISECT, Action.SPLIT):
                return False
        else:
            return True
        # The model runs but refuses our prompt, which proves nothing: it may take a user's. If nobody waits, nothing
        # speaks against trying again, and only an open breaker would keep users from coming.
        request = self._traffic.take_one(model)
        if request is None:
            return True
        batch.requests.append(request)
        noted = self._in_flight_file.begin([request.record])
        try:
            call = self._calls.begin(batch.requests)
            try:
                version, rows = await self._calls.run(model, batch.requests, call)
            except CallError as error:
                request.waiting_since = self._clock()  # at the end of the queue: the next probe takes another
                narrows = VERDICTS[error.failure].action in (Action.BISECT, Action.SPLIT)
                return narrows and not self._traffic.others(model)  # and if there is none, let others come
            await self._traffic.polled_since_freeze()
            self._answer(batch.requests, version, rows)
        finally:
            self._in_flight_file.end(noted)
        return True

    async def _narrow(self, model: str, requests: list[Pending]) -> None:
        """Call with all; after a failure that one of them caused, with ever smaller parts: at most 2n calls."""
        breaker = self._breakers[model]
        parts, suspects = [requests], list[Suspect]()
        while parts:
            part = unanswered(parts.pop())
            if not part:
                continue
            if breaker.is_open or breaker.is_told_to_wait(self._clock()):
                self._traffic.put_back(part)
                continue
            noted = self._in_flight_file.begin([request.record for request in part])
            try:
                smaller, suspect = await self._try(model, part)
            finally:
                self._in_flight_file.end(noted)
            parts += smaller
            suspects += suspect
        if suspects:
            self._blame.judge(model, [suspect for suspect in suspects if unanswered([suspect.request])])

    async def _try(self, model: str, part: list[Pending]) -> tuple[list[list[Pending]], list[Suspect]]:
        """Call and answer. After a failure, what `_failed` says is left of it."""
        call = self._calls.begin(part)
        self._limiters[model].note(call.began, self._traffic.in_flight(model))
        outcome = await self._call(model, part, call)
        if isinstance(outcome, CallError):
            await self._traffic.polled_since_freeze()
            part = unanswered(part)
            return await self._failed(model, part, call, outcome) if part else ([], [])
        self._breakers[model].succeeded(call.began)
        self._limiters[model].succeeded(call.began, self._clock())
        if self._traffic.must_poll_first():
            await self._traffic.polled_since_freeze()
        version, rows = outcome
        self._answer(part, version, rows)
        return [], []

    async def _call(
        self, model: str, part: list[Pending], call: Call
    ) -> tuple[str, list[Row | BadRow]] | CallError:
        # The error is returned, for nothing may wait inside an `except`: compiled code that waits there leaves its
        # exception to whatever runs meanwhile, which takes it for the cause of its own.
        try:
            return await self._calls.run(model, part, call)
        except CallError as error:
            return error

    async def _failed(
        self, model: str, part: list[Pending], call: Call, error: CallError
    ) -> tuple[list[list[Pending]], list[Suspect]]:
        """What becomes of a failed part: smaller parts to call with, or a suspect, or nothing more to do."""
        verdict = VERDICTS[error.failure]
        self._log_failure(model, part, error)
        if verdict.action is Action.REREAD or (verdict.action is Action.SPLIT and len(part) > 1):
            await self._calls.reread(model)
            part = unanswered(part)
        if verdict.action not in (Action.BISECT, Action.SPLIT):
            self._blame.not_theirs(model, part, call, error.failure)
            return [], []
        if len(part) > 1:
            self._metrics.retries_total["bisect"].inc(len(part))
            middle = len(part) // 2
            return [part[middle:], part[:middle]], []
        return [], [Suspect(request, verdict.final_code, self._clock()) for request in part]

    # -- outcomes

    def _answer(self, part: Sequence[Pending], version: str, rows: Sequence[Row | BadRow]) -> None:
        answered: list[Pending] = []
        answers: list[Row] = []
        for request, row in zip(part, rows, strict=True):
            if request.phase is not IN_FLIGHT or not request.record.ownership.live:
                continue  # answered at its deadline, or somebody else's by now
            if isinstance(row, BadRow):
                log.warning("an output cannot be read", extra={**about(request), "why": row.reason})
                self._blame.finish(request, ErrorCode.BAD_MODEL_OUTPUT)
            else:
                answered.append(request)
                answers.append(row)
        for request in self._replies.answer(answered, answers, version):
            self._blame.finish(request, ErrorCode.INTERNAL)

    def _log_failure(self, model: str, part: Sequence[Pending], error: CallError) -> None:
        level = logging.DEBUG if error.failure is CallFailure.REFUSED else logging.WARNING
        # The kind of failure is part of the template: a flood of one must not hide another. The first request stands
        # for its batch.
        detail = ServerText(error.detail, [request.inputs.get("prompt") for request in part])
        extra = {"model": model, "requests": len(part), **about(part[0]), "detail": detail}
        log.log(level, "a call failed: " + error.failure, extra=extra)


def unanswered(requests: Sequence[Pending]) -> list[Pending]:
    """Those still in flight whose partition is still ours."""
    return [r for r in requests if r.phase is IN_FLIGHT and r.record.ownership.live]
