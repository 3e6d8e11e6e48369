"""Decides when which batch goes out: admits records, keeps the waiting queue, fills the call slots, hands over.

Runs on the event loop, one task per batch in flight (`slots`, `runner`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol

from promptbus.messages import ErrorCode
from promptbus_worker.admission import Admission
from promptbus_worker.batcher import Batch, Batcher, ClosedBy
from promptbus_worker.blame import Blame
from promptbus_worker.calls import Calls
from promptbus_worker.deadline import Clock
from promptbus_worker.expiry import Expiry
from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.gates import Gates
from promptbus_worker.in_flight_file import InFlightFile
from promptbus_worker.ledger import Ownership
from promptbus_worker.limiter import Limiter
from promptbus_worker.model import InferenceClient, ModelSpec
from promptbus_worker.outage import Outage
from promptbus_worker.outcomes import VERDICTS
from promptbus_worker.reception import Reception
from promptbus_worker.record import Pending, Phase, Record
from promptbus_worker.replies import Replies
from promptbus_worker.runner import Runner
from promptbus_worker.slots import Slots
from promptbus_worker.tracing import OFF, Tracing

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

_UNFREEZE_S = 0.01
WAITING_IN_BULK = 16
"""Requests that wait per call slot, from which on replies are written in bulk: the next ones wait longer than that takes."""
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
    """Between the waiting queue and the call slots. It is also the runner's `Traffic`."""

    def __init__(
        self,
        *,
        admission: Admission,
        batcher: Batcher,
        gates: Gates,
        client: InferenceClient,
        specs: dict[str, ModelSpec],
        model_version: str | None = None,
        replies: Replies,
        intake: Intake,
        metrics: Metrics,
        on_stop: Callable[[str], None],
        limiters: Mapping[str, Limiter],
        ordered: bool = False,
        timeout_s: float,
        tracing: Tracing = OFF,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """`on_stop` hears why only a restart helps. `limiters`: one per model; `timeout_s`: the longest a call may take."""
        self._batcher = batcher
        self._replies = replies
        self._intake = intake
        self._metrics = metrics
        self._tracing = tracing
        self._slots = Slots(limiters, self._ended)
        self._clock = clock
        self._gates = gates
        # A row for each call and probe, and one for what is being admitted.
        rows = sum(limiter.maximum + 1 for limiter in limiters.values()) + 1
        in_flight_file = InFlightFile.from_environment(rows)
        self._reception = Reception(
            admission=admission,
            batcher=batcher,
            replies=replies,
            expiry=Expiry(self._expired, clock),
            in_flight_file=in_flight_file,
            pump=self.pump,
            ordered=ordered,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._outages = {model: Outage(log, f"Triton's model {model}") for model in specs}
        self.freeze = FreezeGuard(clock())
        self._calls = Calls(
            client=client,
            specs=specs,
            model_version=model_version,
            breakers=gates.breakers,
            freeze=self.freeze,
            metrics=metrics,
            on_stop=on_stop,
            timeout_s=timeout_s,
            tracing=tracing,
            clock=clock,
        )
        blame = Blame(
            breakers=gates.breakers,
            limiters=limiters,
            freeze=self.freeze,
            replies=replies,
            traffic=self,
            metrics=metrics,
            timeout_s=timeout_s,
            clock=clock,
        )
        self._runner = Runner(
            calls=self._calls,
            blame=blame,
            breakers=gates.breakers,
            limiters=limiters,
            in_flight_file=in_flight_file,
            replies=replies,
            traffic=self,
            metrics=metrics,
            clock=clock,
        )
        self._leaving: set[Ownership] = set()
        self._draining = False
        self._stopped = False
        self._held = False
        self._was_calm = False
        self._wake: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # -- from the consumer thread, by way of call_soon_threadsafe

    def accept(self, records: Sequence[Record]) -> None:
        """Records just polled: answer what is no request, let the rest wait, start what may start."""
        self._reception.accept(records)

    def answered(self, requests: Sequence[Pending], now: float) -> None:
        """Requests of one model have the same outcome, `request.code`, and their replies are being handed over."""
        self._gates.answered(requests, now)
        self._reception.answered(requests)

    def release(self, ownerships: Sequence[Ownership]) -> None:
        """These partitions are about to go: give back what waits, for the next owner to answer."""
        self._leaving.update(ownerships)
        self._give_back(self._reception.drop(lambda ownership: ownership in self._leaving))
        self._give_back(self._batcher.drop(lambda request: request.record.ownership in self._leaving))
        self.pump()

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over: nothing of them is to be answered any more."""
        self._leaving.difference_update(ownerships)
        self._batcher.drop(lambda request: not request.record.ownership.live)
        self._reception.forget(ownerships)
        self._tracing.forget()
        self._note_idle()

    def drain(self, ownerships: Sequence[Ownership]) -> None:
        """As `release`, and for good: requests that fail now are given back too."""
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
        """Give up and give back what still waits or is in flight; nothing goes out any more."""
        self._stopped = True
        if self._wake is not None:
            self._wake.cancel()
        in_flight = await self._slots.cancel()
        waiting = [*self._reception.drop(lambda _: True), *self._batcher.drop(lambda _: True)]
        self._give_back([*waiting, *in_flight])
        self._metrics.later.write()

    def oldest_call_s(self, now: float) -> float:
        """For how long the inference call that began first has been running; 0 if none does."""
        began = self._calls.oldest_began
        return 0.0 if began is None else now - began

    def update_gauges(self) -> None:
        """Write the gauges, and what was counted for later; called about twice a second."""
        metrics = self._metrics
        metrics.later.write()
        metrics.in_flight_batches.set(sum(1 for batch in self._slots.batches.values() if batch.requests))
        called = list(self._slots.unanswered())
        unacknowledged = self._replies.unacknowledged
        metrics.in_flight_requests.set(len(called) + len(unacknowledged))
        began = [request.dispatched_at for request in called if request.dispatched_at is not None]
        for first in islice(unacknowledged, 1):  # they are acknowledged about in their order
            began.append(first.answered_at if first.dispatched_at is None else first.dispatched_at)
        now = self._clock()
        metrics.oldest_in_flight_seconds.set(max(0.0, now - min(began, default=now)))
        metrics.waiting_requests.set(len(self._batcher) + len(self._reception))
        metrics.concurrency_limit.set(self._slots.limit)
        metrics.breaker_open.set(self._gates.breaker_open)
        metrics.dead_letter_budget_exhausted.set(self._gates.budget_exhausted)

    # -- starting batches

    def pump(self) -> None:
        """Start whatever may start now, and wake up again when more may."""
        if self._stopped:
            return
        now, batcher, slots = self._clock(), self._batcher, self._slots
        calm = self._gates.calm(now)
        blocked = slots.with_full([] if calm else self._gates.blocked(now), batcher.fills_batch)
        while len(blocked) < len(slots.taken) and len(batcher) and self._may_start():
            batch = batcher.take(
                now,
                blocked=blocked,
                alone_in_flight=slots.last_attempts() if batcher.any_alone else (),
                idle=not slots.batches,
                usual_call_s=self._calls.usual_s,
            )
            if batch is None:
                break
            self._metrics.later.batches.append((batch.model, batch.closed_by, len(batch.requests)))
            slots.start(self._runner.run, batch)
            self._gates.starts(batch)
            blocked = slots.with_full([] if calm else self._gates.blocked(now), batcher.fills_batch)
        in_bulk = len(batcher) > WAITING_IN_BULK * slots.limit
        if in_bulk != self._replies.in_bulk:
            self._replies.write_in_bulk(in_bulk)
        if not (calm and self._was_calm):
            self._look_after_gates(now)
        self._was_calm = calm
        self._note_idle()
        self._set_wake(now, blocked)

    def _look_after_gates(self, now: float) -> None:
        """Send the probes that are due, and tell the log and the consumer's thread what has changed."""
        for model, breaker in self._gates.breakers.items():
            if breaker.may_probe(now) and not self._draining:
                breaker.probe()
                batch = Batch(model, [], ClosedBy.SLOT)
                self._slots.start(self._runner.probe, batch)
        for model, breaker in self._gates.breakers.items():
            self._outages[model].look(breaker.is_down, now, self._calls.last_failure.get(model))
        self._hold_if_all_closed(now)

    def _may_start(self) -> bool:
        return self._slots.exclusive is None and not self._replies.congested

    def _ended(self, batch: Batch) -> None:
        self._gates.ended(batch, self._clock())
        self.pump()

    def _set_wake(self, now: float, blocked: Sequence[str]) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        starts = self._batcher.next_due(now, blocked) if self._may_start() else None
        resumes = None if self._was_calm else self._gates.resumes_in(now)
        due = [seconds for seconds in (starts, resumes) if seconds is not None]
        if due:
            self._wake = asyncio.get_running_loop().call_later(max(min(due), 0.001), self.pump)

    def _hold_if_all_closed(self, now: float) -> None:
        held = self._gates.all_closed(self._batcher.has, now)
        if held != self._held:
            self._held = held
            self._intake.hold(held)
            if held:
                log.info("no model can be called: partitions are paused until one answers")
            else:
                log.info("partitions resume")

    def _note_idle(self) -> None:
        waiting = len(self._batcher) or len(self._reception)
        if waiting or any(batch.requests for batch in self._slots.batches.values()):
            self._idle.clear()
        else:
            self._idle.set()

    # -- runner.Traffic

    def put_back(self, requests: list[Pending]) -> None:
        """They wait again, or are given back if their partition is about to go."""
        leaving = [r for r in requests if self._draining or r.record.ownership in self._leaving]
        self._give_back(leaving)
        self._batcher.put_back(request for request in requests if request.phase is not Phase.DROPPED)

    def expire(self, requests: list[Pending]) -> None:
        """Their deadlines have passed."""
        for request in requests:
            self._expired(request)

    def take_one(self, model: str) -> Pending | None:
        """The request that waits longest for this model, now in flight."""
        return self._batcher.take_one(model, self._clock())

    def in_flight(self, model: str) -> int:
        """Batches of this model in flight, the asking one included."""
        return self._slots.taken[model]

    def others(self, model: str) -> bool:
        """Whether anything of this model waits, or is in flight beside the asking batch."""
        return self._slots.taken[model] > 1 or any(request.model == model for request in self._batcher)

    def unsuspected(self, model: str) -> bool:
        """Whether any request of this model waits or is in flight that never failed alone."""
        every = chain(self._batcher, self._slots.unanswered())
        return any(request.model == model and request.suspect_since is None for request in every)

    async def polled_since_freeze(self) -> None:
        """After the process stood still, somebody else may own our partitions: polling Kafka tells."""
        while self.must_poll_first():  # noqa: ASYNC110 - too rare for a wake-up from the other thread
            await asyncio.sleep(_UNFREEZE_S)

    def must_poll_first(self) -> bool:
        """Whether this process stood still and has not polled since; then it is told to."""
        self.freeze.tick(self._clock())
        if self._intake.polled_at >= self.freeze.woke_at:
            return False
        self._intake.poll_soon()
        return True

    def _give_back(self, requests: Sequence[Pending]) -> None:
        for request in requests:
            request.phase = Phase.DROPPED
        if requests:
            self._tracing.given_back(requests)
            self._intake.released([request.record for request in requests])

    def _expired(self, request: Pending) -> None:
        if request.phase not in (Phase.WAITING, Phase.IN_FLIGHT) or not request.record.ownership.live:
            return
        if self.must_poll_first():
            asyncio.get_running_loop().call_later(_UNFREEZE_S, self._expired, request)
            return
        if request.phase is Phase.WAITING and not self._reception.holds_back(request):
            self._batcher.discard(request)
        unreachable = (
            request.last_failure in _UNREACHABLE or self._gates.breakers[request.model or ""].is_open
        )
        self._replies.error(request, ErrorCode.UNAVAILABLE if unreachable else ErrorCode.EXPIRED)
        self._note_idle()
