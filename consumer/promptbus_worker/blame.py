"""Who is to blame for a failed call: nobody yet, Triton, or one of its requests (DESIGN rules 8 to 10).

The breaker is the witness. A request that failed alone is charged only if the model has answered others since; a last
attempt that timed out is final only if the model has worked since the first. Whoever is not charged waits again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from promptbus.messages import ErrorCode
from promptbus_worker.batcher import LAST_ATTEMPT
from promptbus_worker.breaker import Breaker
from promptbus_worker.calls import Call, time_left_s
from promptbus_worker.deadline import Clock
from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.limiter import Limiter
from promptbus_worker.outcomes import VERDICTS, CallFailure, Verdict
from promptbus_worker.record import Pending
from promptbus_worker.replies import Replies

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

FAILURES_ALONE = 3
"""Failures of a request alone, with no other traffic, after which it is charged (DESIGN rule 9)."""
_LAST_MOMENT_S = 0.02


class Traffic(Protocol):
    """What has to be known of the other requests, and where those go that are not charged."""

    def put_back(self, requests: list[Pending]) -> None:
        """They wait again, or are given back if their partition is about to go."""
        ...

    def expire(self, requests: list[Pending]) -> None:
        """Their deadlines have passed."""
        ...

    def others(self, model: str) -> bool:
        """Whether anything of this model waits, or is in flight beside the asking batch."""
        ...

    def unsuspected(self, model: str) -> bool:
        """Whether any request of this model waits or is in flight that never failed alone."""
        ...


class Suspect(NamedTuple):
    """A request that failed alone, then; `code`: what it is answered if it is to blame."""

    request: Pending
    code: ErrorCode
    failed_at: float


class Blame:
    """What becomes of requests whose call failed, once it cannot be made with fewer of them."""

    def __init__(
        self,
        *,
        breakers: Mapping[str, Breaker],
        limiters: Mapping[str, Limiter],
        freeze: FreezeGuard,
        replies: Replies,
        traffic: Traffic,
        metrics: Metrics,
        timeout_s: float,
        clock: Clock,
    ) -> None:
        """`timeout_s`: the longest a call may take."""
        self._breakers = breakers
        self._limiters = limiters
        self._freeze = freeze
        self._replies = replies
        self._traffic = traffic
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._clock = clock

    def not_theirs(self, model: str, part: list[Pending], call: Call, failure: CallFailure) -> None:
        """Back to waiting; for good only after the last attempt, and if the model worked for somebody meanwhile."""
        verdict = VERDICTS[failure]
        if self._freeze.since(call.began):
            self._count_retries(verdict, len(part))
            self._traffic.put_back(part)  # we stood still, not Triton
            return
        now, breaker = self._clock(), self._breakers[model]
        if call.cut and failure is CallFailure.TIMEOUT and time_left_s(part, now) <= _LAST_MOMENT_S:
            self._traffic.expire(part)  # all had deadlines, and the last one has passed
            return
        breaker.failed(now, gone=verdict.trips_breaker)
        if verdict.lowers_limit and not (call.cut and failure is CallFailure.TIMEOUT):
            self._limiters[model].overloaded(call.began, now)
        again = []
        for request in part:
            request.last_failure = failure
            if verdict.counts_attempt:
                if request.failed_since is None:
                    request.failed_since = call.began
                else:
                    # Twice is no accident. Triton goes on with what we have given up, so before anybody's next
                    # attempt can mean anything, a probe has to come through.
                    breaker.failed(now, gone=True)
                # A connection can break three times within a second, without anybody's guilt.
                may_be_final_at = request.failed_since + self._timeout_s
                if request.attempts + 1 < LAST_ATTEMPT or (
                    now >= may_be_final_at and breaker.worked_since(request.failed_since)
                ):
                    request.attempts += 1
                else:
                    request.held_until = min(may_be_final_at, self._at_latest(request, now))
            if request.attempts >= LAST_ATTEMPT:
                self._replies.error(request, verdict.final_code)
            else:
                again.append(request)
        self._count_retries(verdict, len(again))
        self._traffic.put_back(again)

    def judge(self, model: str, suspects: list[Suspect]) -> None:
        """Charge requests that failed alone, if the model answered others since; if that is unclear, try again."""
        breaker, now = self._breakers[model], self._clock()
        for request, _, failed_at in suspects:
            if request.suspect_since is None:
                request.suspect_since = failed_at
        alone = len(suspects) == 1 and not self._traffic.others(model)
        among_suspects = not self._traffic.unsuspected(model)
        unclear = []
        for request, code, _ in suspects:
            assert request.suspect_since is not None, "set above"
            request.failures_alone += among_suspects
            # With nobody else to be a witness, three failures must do; if others fail as well, our own probe must
            # have worked in between, or it is the model that is broken.
            enough = request.failures_alone >= FAILURES_ALONE
            if breaker.answered_since(request.suspect_since) or (
                enough and (alone or breaker.worked_since(request.suspect_since))
            ):
                self.finish(request, code)
            else:
                breaker.single_error(now)
                # To the end of the queue: others shall have their turn, and be witnesses.
                request.waiting_since = now
                unclear.append(request)
        if unclear:
            self._metrics.retries_total["bisect"].inc(len(unclear))
            self._traffic.put_back(unclear)

    def finish(self, request: Pending, code: ErrorCode) -> None:
        """This attempt was its last one: answer it so."""
        request.attempts += 1
        self._replies.error(request, code)

    @staticmethod
    def _at_latest(request: Pending, now: float) -> float:
        """When its next call has to be made for its deadline's sake."""
        return float("inf") if request.expires_at is None else now + max(1.0, (request.expires_at - now) / 2)

    def _count_retries(self, verdict: Verdict, requests: int) -> None:
        if verdict.retry_reason is not None and requests:
            self._metrics.retries_total[verdict.retry_reason].inc(requests)
