"""Runs batches: call, narrow what failed, put back what nobody is to blame for, give each request its outcome.

Runs on the event loop, one task per batch in flight. A batch keeps its slot while it is narrowed, so bisecting
never adds load. What to do after a failure is `outcomes.VERDICTS`; whether to call at all is `breaker`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from promptbus.messages import ErrorCode
from promptbus_worker.admission import Admission
from promptbus_worker.batcher import LAST_ATTEMPT, Batch, Batcher
from promptbus_worker.breaker import Breaker
from promptbus_worker.deadline import Clock
from promptbus_worker.expiry import Expiry
from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.ledger import Ownership
from promptbus_worker.model import BadRow, InferenceClient, Inputs, ModelSpec, Row, TensorValue
from promptbus_worker.outcomes import VERDICTS, Action, CallError, CallFailure, ModelUnusable, Verdict
from promptbus_worker.record import Pending, Phase, Record, Rejection
from promptbus_worker.replies import Replies

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

FAILURES_ALONE = 3
"""Model errors of a request alone, with no other traffic, after which it is charged (DESIGN rule 9)."""
_UNFREEZE_S = 0.01
_CANARY: dict[str, TensorValue] = {"prompt": b"ping", "max_tokens": 1, "temperature": 0.0}
_UNREACHABLE = frozenset(
    failure for failure, verdict in VERDICTS.items() if verdict.final_code is ErrorCode.UNAVAILABLE
)


class Intake(Protocol):
    """What the dispatcher tells the consumer thread, and asks of it."""

    @property
    def polled_at(self) -> float:
        """When the last finished poll began, monotonic seconds."""
        ...

    def released(self, records: list[Record]) -> None:
        """These records will not be answered in this epoch."""
        ...

    def hold(self, held: bool) -> None:
        """Pause the partitions, or let them go on."""
        ...

    def poll_soon(self) -> None:
        """Poll once even if there is no room."""
        ...


class Dispatcher:
    """Everything between admission and the reply."""

    def __init__(
        self,
        *,
        admission: Admission,
        batcher: Batcher,
        client: InferenceClient,
        specs: dict[str, ModelSpec],
        model_version: str | None = None,
        replies: Replies,
        intake: Intake,
        metrics: Metrics,
        concurrency: int,
        timeout_s: float,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """`specs` is written here when a model was read again. `concurrency`: batches in flight at most."""
        self._admission = admission
        self._batcher = batcher
        self._client = client
        self._specs = specs
        self._model_version = model_version
        self._replies = replies
        self._intake = intake
        self._metrics = metrics
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._breakers = {model: Breaker() for model in specs}
        self._expiry = Expiry(self._expired, clock)
        self.freeze = FreezeGuard(clock())
        self._in_flight: dict[asyncio.Task[None], Batch] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._leaving: set[Ownership] = set()
        self._draining = False
        self._held = False
        self._wake: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # -- from the consumer thread, by way of call_soon_threadsafe

    def accept(self, records: Sequence[Record]) -> None:
        """Records just polled: answer what is no request, let the rest wait, start what may start."""
        now, wall_ms = self._clock(), self._wall_clock() * 1000
        for record in records:
            if not record.ownership.live:
                continue
            try:
                request = self._admission.admit(record, now=now, wall_ms=wall_ms)
            except Exception:
                # Our own defect must not take the worker down with the same record again and again.
                log.exception("a record could not be admitted", extra=_where(record))
                self._replies.error(self._admission.bare(record), ErrorCode.INTERNAL)
                continue
            if isinstance(request, Rejection):
                self._replies.reject(request)
            else:
                self._batcher.offer(request, now)
                self._expiry.watch(request)
        self.pump()

    def release(self, ownerships: Sequence[Ownership]) -> None:
        """These partitions are about to go: drop what waits, for the next owner to answer.

        A waiting request below an offset that is dispatched or answered is kept and finished: left behind, it would
        hold the watermark back, and the next owner would answer the ones above it a second time.
        """
        self._leaving.update(ownerships)
        floors = {ownership: ownership.highest_answered for ownership in ownerships}
        for batch in self._in_flight.values():
            for request in batch.requests:
                ownership = request.record.ownership
                if ownership in floors:
                    floors[ownership] = max(floors[ownership], request.record.offset)
        reachable = {model for model, breaker in self._breakers.items() if not breaker.is_open}

        def leaves(request: Pending) -> bool:
            floor = floors.get(request.record.ownership)
            return floor is not None and (request.record.offset > floor or request.model not in reachable)

        self._give_back(self._batcher.drop(leaves))
        self.pump()
        self._note_idle()

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over: nothing of them is to be answered any more."""
        self._leaving.difference_update(ownerships)
        self._batcher.drop(lambda request: not request.record.ownership.live)
        self._note_idle()

    def drain(self, ownerships: Sequence[Ownership]) -> None:
        """As `release`, and start nothing new for good."""
        self._draining = True
        self.release(ownerships)

    # -- the worker's main task

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is in flight. False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Give up what is still in flight."""
        tasks = [*self._in_flight, *self._probes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._wake is not None:
            self._wake.cancel()

    def update_gauges(self) -> None:
        """Write the gauges; called about twice a second."""
        metrics = self._metrics
        metrics.in_flight_batches.set(len(self._in_flight))
        metrics.in_flight_requests.set(sum(len(batch.requests) for batch in self._in_flight.values()))
        metrics.waiting_requests.set(len(self._batcher))
        metrics.concurrency_limit.set(self._concurrency)
        metrics.breaker_open.set(sum(breaker.is_open for breaker in self._breakers.values()))

    # -- starting batches

    def pump(self) -> None:
        """Start whatever may start now, and wake up again when more may."""
        now = self._clock()
        blocked = [model for model, breaker in self._breakers.items() if not breaker.may_call(now)]
        while len(self._in_flight) < self._concurrency and not self._replies.congested and len(self._batcher):
            batch = self._batcher.take(now, draining=self._draining, blocked=blocked)
            if batch is None:
                break
            self._metrics.batches_total[batch.model, batch.closed_by].inc()
            self._metrics.batch_size[batch.model].observe(len(batch.requests))
            for request in batch.requests:
                request.dispatched_at = now
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._in_flight[task] = batch
            task.add_done_callback(self._ran)
        for model, breaker in self._breakers.items():
            if breaker.may_probe(now) and not self._draining:
                breaker.probe()
                task = asyncio.get_running_loop().create_task(self._probe(model, breaker))
                self._probes.add(task)
                task.add_done_callback(self._ran)
        self._hold_if_all_open()
        self._note_idle()
        self._set_wake(now)

    def _set_wake(self, now: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        times = [breaker.resumes_in(now) for breaker in self._breakers.values()]
        if len(self._in_flight) < self._concurrency:
            times.append(self._batcher.next_due(now))
        due = [time for time in times if time is not None]
        if due:
            self._wake = asyncio.get_running_loop().call_later(max(min(due), 0.001), self.pump)

    def _hold_if_all_open(self) -> None:
        held = all(breaker.is_open for breaker in self._breakers.values())
        if held != self._held:
            self._held = held
            self._intake.hold(held)
            if held:
                log.warning("Triton does not answer: paused, trying again until it does")
            else:
                log.info("Triton answers again")

    def _note_idle(self) -> None:
        if self._in_flight or len(self._batcher):
            self._idle.clear()
        else:
            self._idle.set()

    # -- one batch

    async def _run(self, batch: Batch) -> None:
        try:
            await self._narrow(batch.model, batch.requests)
        except Exception:
            log.exception("a batch failed by a defect of the worker", extra={"model": batch.model})
            for request in self._unanswered(batch.requests):
                self._replies.error(request, ErrorCode.INTERNAL)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._in_flight.pop(task, None)
        self._probes.discard(task)
        if not task.cancelled():
            self.pump()

    async def _narrow(self, model: str, requests: list[Pending]) -> None:
        """Call with all; after a failure that one of them caused, with ever smaller parts."""
        breaker, began = self._breakers[model], self._clock()
        parts, suspects = [requests], list[Pending]()
        while parts:
            part = self._unanswered(parts.pop())
            if not part:
                continue
            if breaker.is_open:
                self._put_back(part)
                continue
            call_began = self._clock()
            try:
                version, rows = await self._call(model, part)
            except CallError as error:
                verdict = VERDICTS[error.failure]
                await self._polled_since_freeze()
                part = self._unanswered(part)
                self._log_failure(model, part, error)
                for request in part:
                    request.last_failure = error.failure
                if verdict.action is Action.REREAD or (verdict.action is Action.SPLIT and len(part) > 1):
                    await self._reread(model)
                if verdict.action in (Action.BISECT, Action.SPLIT):
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                        self._metrics.retries_total["bisect"].inc(len(part))
                    elif verdict.final_code is ErrorCode.BAD_MODEL_OUTPUT:
                        self._finish(part, verdict.final_code)
                    else:
                        suspects += part
                else:
                    self._not_their_fault(part, verdict, breaker, call_began)
            else:
                breaker.succeeded(call_began)
                await self._polled_since_freeze()
                self._answer(part, version, rows)
        self._judge(self._unanswered(suspects), breaker, began, bisected=len(requests) > 1)

    async def _call(self, model: str, part: list[Pending]) -> tuple[str, list[Row | BadRow]]:
        deadlines = [request.expires_at for request in part if request.expires_at is not None]
        began = self._clock()
        timeout_s = self._timeout_s
        if len(deadlines) == len(part):
            timeout_s = min(timeout_s, max(0.001, max(deadlines) - began))
        version, rows = await self._infer(model, [request.inputs for request in part], timeout_s)
        elapsed = self._clock() - began
        for request in part:
            request.inference_s = elapsed
        return version, rows

    async def _infer(
        self, model: str, inputs: list[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        began, calls = self._clock(), self._metrics.inference_calls_total
        try:
            answer = await self._client.infer(self._specs[model], inputs, timeout_s)
        except CallError as error:
            calls[model, VERDICTS[error.failure].call_result].inc()
            raise
        finally:
            now = self._clock()
            self.freeze.tick(now)
            self._metrics.inference_duration_seconds[model].observe(now - began)
        calls[model, "ok"].inc()
        return answer

    def _answer(self, part: list[Pending], version: str, rows: list[Row | BadRow]) -> None:
        for request, row in zip(part, rows, strict=True):
            if request.phase is not Phase.IN_FLIGHT or not request.record.ownership.live:
                continue  # answered at its deadline, or somebody else's by now
            if isinstance(row, BadRow):
                log.warning(
                    "the model's output cannot be read", extra={**_where(request.record), "why": row.reason}
                )
                self._finish([request], ErrorCode.BAD_MODEL_OUTPUT)
            else:
                self._replies.answer(request, row, version)

    def _not_their_fault(self, part: list[Pending], verdict: Verdict, breaker: Breaker, began: float) -> None:
        """Back to waiting; for good only after the last attempt."""
        now = self._clock()
        frozen = self.freeze.since(began)
        if not frozen:
            breaker.failed(now, gone=verdict.trips_breaker)
        if verdict.counts_attempt and not frozen:
            for request in part:
                request.attempts += 1
        final = [request for request in part if request.attempts >= LAST_ATTEMPT]
        self._finish(final, verdict.final_code)
        again = self._unanswered(part)
        if verdict.retry_reason is not None and again:
            self._metrics.retries_total[verdict.retry_reason].inc(len(again))
        self._put_back(again)

    def _judge(self, suspects: list[Pending], breaker: Breaker, began: float, *, bisected: bool) -> None:
        """Charge a model error to requests that failed alone, if the model answered others meanwhile."""
        now = self._clock()
        unclear = []
        for request in suspects:
            # In a bisection its neighbours are the witnesses; a request that was alone needs one from now on.
            since = request.suspect_since if request.suspect_since is not None else began if bisected else now
            request.suspect_since = since
            others = len(self._batcher) > 0 or len(self._in_flight) > 1 or len(suspects) > 1
            request.failures_alone = 0 if others else request.failures_alone + 1
            if (
                since is not None and breaker.answered_since(since)
            ) or request.failures_alone >= FAILURES_ALONE:
                self._finish([request], ErrorCode.MODEL_ERROR)
            else:
                breaker.single_model_error(now)
                unclear.append(request)
        if unclear:
            self._metrics.retries_total["bisect"].inc(len(unclear))
        self._put_back(unclear)

    def _finish(self, requests: list[Pending], code: ErrorCode) -> None:
        for request in requests:
            if code is not ErrorCode.INFERENCE_TIMEOUT:
                request.attempts += 1
            self._replies.error(request, code)

    def _put_back(self, requests: list[Pending]) -> None:
        leaving = [r for r in requests if self._draining or r.record.ownership in self._leaving]
        for request in leaving:
            request.phase = Phase.DROPPED
        self._give_back(leaving)
        self._batcher.put_back(request for request in requests if request.phase is not Phase.DROPPED)

    def _give_back(self, dropped: list[Pending]) -> None:
        if dropped:
            self._intake.released([request.record for request in dropped])

    def _unanswered(self, requests: Sequence[Pending]) -> list[Pending]:
        return [r for r in requests if r.phase is Phase.IN_FLIGHT and r.record.ownership.live]

    def _expired(self, request: Pending) -> None:
        if request.phase not in (Phase.WAITING, Phase.IN_FLIGHT) or not request.record.ownership.live:
            return
        self.freeze.tick(self._clock())
        if self._must_poll_first():
            asyncio.get_running_loop().call_later(_UNFREEZE_S, self._expired, request)
            return
        if request.phase is Phase.WAITING:
            self._batcher.discard(request)
        unreachable = request.last_failure in _UNREACHABLE or self._breakers[request.model or ""].is_open
        self._replies.error(request, ErrorCode.UNAVAILABLE if unreachable else ErrorCode.EXPIRED)

    async def _polled_since_freeze(self) -> None:
        """After the process stood still, somebody else may own our partitions: polling Kafka tells."""
        while self._must_poll_first():  # noqa: ASYNC110 - so rare that a wake-up from the other thread is not worth it
            await asyncio.sleep(_UNFREEZE_S)

    def _must_poll_first(self) -> bool:
        if self._intake.polled_at >= self.freeze.woke_at:
            return False
        self._intake.poll_soon()
        return True

    # -- when the model does not answer

    async def _probe(self, model: str, breaker: Breaker) -> None:
        """A real inference that finds out whether the model works again: ours, or if it fails, a waiting request."""
        began, works = self._clock(), False
        try:
            works = await self._works(model)
        except Exception:
            log.exception("a probe failed by a defect of the worker", extra={"model": model})
        finally:
            if works:
                breaker.probe_succeeded(began)
            else:
                breaker.probe_failed(self._clock())

    async def _works(self, model: str) -> bool:
        if not await self._reread(model):
            return False
        canary = {name: value for name, value in _CANARY.items() if name in self._specs[model].inputs}
        try:
            await self._infer(model, [canary], self._timeout_s)
        except CallError as error:
            if VERDICTS[error.failure].action not in (Action.BISECT, Action.SPLIT):
                return False
        else:
            return True
        # The model runs but refuses our prompt, which proves nothing: it may take a user's.
        request = self._batcher.take_one(model)
        if request is None:
            return False
        try:
            version, rows = await self._call(model, [request])
        except CallError:
            if self._unanswered([request]):
                self._batcher.offer(request, self._clock())  # at the end: the next probe takes another
            return False
        self._answer([request], version, rows)
        return True

    async def _reread(self, model: str) -> bool:
        """Read the model's metadata again: it may have been restarted with another configuration."""
        try:
            self._specs[model] = await self._client.read_spec(model, self._model_version)
        except (CallError, ModelUnusable) as error:
            log.debug("metadata cannot be read", extra={"model": model, "error": str(error)})
            return False
        return True

    def _log_failure(self, model: str, part: list[Pending], error: CallError) -> None:
        level = logging.DEBUG if error.failure is CallFailure.REFUSED else logging.WARNING
        first = _where(part[0].record) if part else {}
        log.log(
            level,
            "a call failed",
            extra={
                "model": model,
                "requests": len(part),
                "failure": str(error.failure),
                "detail": error.detail,
                **first,
            },
        )


def _where(record: Record) -> dict[str, object]:
    owner = record.ownership
    return {"topic": owner.topic, "partition": owner.partition, "offset": record.offset, "epoch": owner.epoch}
