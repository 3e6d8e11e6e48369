"""The waiting queue against a model of it: each request is in one place, and no batch holds what it may not hold."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from promptbus_worker.batcher import LAST_ATTEMPT, Batch, Batcher, ClosedBy
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Pending, Phase, Record

MAX_SIZE = {"large": 4, "small": 2}
MAX_BYTES = 100
CALL_S = 2.0
"""How long a call takes."""
MODELS = sorted(MAX_SIZE)
PARTITIONS = [Ownership("requests", partition, 1) for partition in range(2)]


def pending(
    offset: int,
    *,
    model: str = "large",
    signature: tuple[str, ...] = (),
    size: int = 1,
    attempts: int = 0,
    ownership: Ownership = PARTITIONS[0],
) -> Pending:
    record = Record(ownership, offset, 0, None, b"{}", None, size, 0.0)
    request = Pending(record, f"r{offset}", "reply", "results")
    request.model, request.signature, request.size, request.attempts = model, signature, size, attempts
    return request


def batcher(*, linger_s: float = 0.0) -> Batcher:
    return Batcher(MAX_SIZE.__getitem__, max_bytes=MAX_BYTES, linger_s=linger_s)


def offsets(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [request.record.offset for request in batch.requests]


Group = tuple[str, tuple[str, ...]]


class BatcherMachine(RuleBasedStateMachine):
    """Any interleaving of what the dispatcher does with it; time moves on at every offer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.offset = 0
        self.groups: defaultdict[Group, list[Pending]] = defaultdict(list)  # in the order in which they leave
        self.alone: list[Pending] = []
        self.in_flight: list[Batch] = []
        self.gone: list[Pending] = []

    @initialize(linger_s=st.sampled_from([0.0, 3.0]))
    def make(self, linger_s: float) -> None:
        self.linger_s = linger_s
        self.batcher = batcher(linger_s=linger_s)

    @rule(
        model=st.sampled_from(MODELS),
        signature=st.sampled_from([(), ("top_p",)]),
        size=st.one_of(st.integers(1, 60), st.integers(95, 130)),
        ownership=st.sampled_from(PARTITIONS),
        patience_s=st.one_of(st.none(), st.floats(0.0, 9.0)),
    )
    def offer(
        self,
        model: str,
        signature: tuple[str, ...],
        size: int,
        ownership: Ownership,
        patience_s: float | None,
    ) -> None:
        self.now += 1
        self.offset += 1
        request = pending(self.offset, model=model, signature=signature, size=size, ownership=ownership)
        request.expires_at = None if patience_s is None else self.now + patience_s
        self.batcher.offer(request, self.now)
        assert request.waiting_since == self.now
        self.groups[model, signature].append(request)

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(blocked=st.sets(st.sampled_from(MODELS), max_size=2))
    def take(self, blocked: set[str]) -> None:
        batch = self.batcher.take(self.now, blocked=blocked, usual_call_s=lambda _: CALL_S)
        due = [g for g in self.groups.values() if g and g[0].model not in blocked and self._due(g)]
        may_go_alone = [r for r in self.alone if r.model not in blocked and r.held_until <= self.now]
        if batch is None:
            assert not due, "a batch was held back although it was due"
            assert not may_go_alone, "a request on its last attempt was held back"
            wakes = self.batcher.next_due(self.now, blocked)
            held = [r.held_until - self.now for r in self.alone if r.model not in blocked]
            assert not held or (wakes is not None and wakes <= min(held)), "nobody would come for it"
            return
        assert batch.requests
        assert batch.model not in blocked
        assert {request.model for request in batch.requests} == {batch.model}
        assert len({request.signature for request in batch.requests}) == 1
        assert len(batch.requests) <= MAX_SIZE[batch.model]
        assert sum(r.size for r in batch.requests) <= MAX_BYTES or len(batch.requests) == 1
        if may_go_alone:
            assert batch.requests == may_go_alone[:1], "a last attempt goes alone, in order"
            self.alone.remove(batch.requests[0])
            assert batch.closed_by is ClosedBy.SIZE
        else:
            group = min(due, key=lambda waiting: waiting[0].waiting_since)
            count = len(batch.requests)
            order = sorted(group, key=self._too_late)
            assert batch.requests == order[:count], "who waits longest and can be in time leaves first"
            group[:] = [request for request in group if request not in batch.requests]
            self._check_why_it_closed(batch, order[count:])
        self.in_flight.append(batch)

    def _too_late(self, request: Pending) -> bool:
        return request.expires_at is not None and request.expires_at < self.now + CALL_S

    def _due(self, group: list[Pending]) -> bool:
        full = len(group) >= MAX_SIZE[group[0].model or ""] or sum(r.size for r in group) > MAX_BYTES
        return full or self.now >= group[0].waiting_since + self.linger_s

    def _check_why_it_closed(self, batch: Batch, rest: list[Pending]) -> None:
        match batch.closed_by:
            case ClosedBy.SIZE:
                assert len(batch.requests) == MAX_SIZE[batch.model]
            case ClosedBy.BYTES:
                assert len(batch.requests) < MAX_SIZE[batch.model]
                assert rest, "somebody was left behind"
                assert sum(r.size for r in batch.requests) + rest[0].size > MAX_BYTES
            case closed_by:
                assert not rest, "more would have fitted"
                assert len(batch.requests) < MAX_SIZE[batch.model]
                assert closed_by is (ClosedBy.LINGER if self.linger_s else ClosedBy.SLOT)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), attempted=st.booleans(), held_s=st.integers(0, 4))
    def put_back(self, data: st.DataObject, attempted: bool, held_s: int) -> None:
        """A batch fails: a part of it comes back, the rest was answered."""
        batch = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        again = data.draw(st.lists(st.sampled_from(batch.requests), unique_by=id))
        self.gone += [request for request in batch.requests if request not in again]
        for request in again:
            request.attempts = min(LAST_ATTEMPT - 1, request.attempts + attempted)
            request.held_until = self.now + held_s if request.attempts == LAST_ATTEMPT - 1 else 0
        before = {id(request): request.waiting_since for request in again}
        self.batcher.put_back(again)
        assert {id(request): request.waiting_since for request in again} == before, "their wait goes on"
        last = [request for request in again if request.attempts == LAST_ATTEMPT - 1]
        self.alone = sorted(self.alone + last, key=lambda request: request.waiting_since)
        rest = [request for request in again if request not in last]
        if rest:
            group = self.groups[rest[0].model or "", rest[0].signature]
            group[:] = sorted(group + rest, key=lambda request: request.waiting_since)

    @rule(model=st.sampled_from(MODELS))
    def take_one(self, model: str) -> None:
        alone = [r for r in self.alone if r.model == model and r.held_until <= self.now]
        groups = [group for (name, _), group in self.groups.items() if name == model]
        request = self.batcher.take_one(model, self.now)
        if request is None:
            assert not alone
            assert not any(groups)
            return
        heads = [waiting[0] for waiting in [alone, *groups] if waiting]
        assert request in heads
        assert request.model == model
        self._remove(request)
        self.in_flight.append(Batch(model, [request], ClosedBy.SIZE))

    @precondition(lambda self: self._waiting())
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self._waiting()))
        self.batcher.discard(request)
        self._remove(request)
        self.gone.append(request)
        request.phase = Phase.ANSWERED

    @rule(ownership=st.sampled_from(PARTITIONS), floor=st.integers(0, 40))
    def drop(self, ownership: Ownership, floor: int) -> None:
        expected = [r for r in self._waiting() if r.record.ownership is ownership and r.record.offset > floor]
        dropped = self.batcher.drop(
            lambda request: request.record.ownership is ownership and request.record.offset > floor
        )
        assert set(dropped) == set(expected)
        assert len(dropped) == len(expected)
        for request in dropped:
            assert request.phase is Phase.DROPPED
            self._remove(request)
            self.gone.append(request)

    def _waiting(self) -> list[Pending]:
        return [*self.alone, *(request for group in self.groups.values() for request in group)]

    def _remove(self, request: Pending) -> None:
        for place in (self.alone, *self.groups.values()):
            if request in place:
                place.remove(request)

    @invariant()
    def each_request_is_in_one_place(self) -> None:
        if not hasattr(self, "batcher"):
            return
        waiting = list(self.batcher)
        assert len(waiting) == len(set(waiting)) == len(self.batcher)
        assert set(waiting) == set(self._waiting())
        assert all(request.phase is Phase.WAITING for request in waiting)
        flying = [request for batch in self.in_flight for request in batch.requests]
        assert all(request.phase is Phase.IN_FLIGHT for request in flying)
        assert len(waiting) + len(flying) + len(self.gone) == self.offset, "a request was lost or doubled"


BatcherMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=35, deadline=None)
TestBatcher = BatcherMachine.TestCase


def test_an_oversized_request_goes_alone() -> None:
    waiting = batcher()
    for offset, size in enumerate((10, MAX_BYTES + 1, 10)):
        waiting.offer(pending(offset, size=size), 0.0)
    batches = [waiting.take(0.0) for _ in range(3)]
    assert [offsets(batch) for batch in batches] == [[0], [1], [2]]
    assert [batch.closed_by for batch in batches if batch] == [ClosedBy.BYTES, ClosedBy.BYTES, ClosedBy.SLOT]


def test_exactly_the_largest_batch_of_bytes_shares_one_call() -> None:
    waiting = batcher()
    for offset in range(2):
        waiting.offer(pending(offset, size=MAX_BYTES // 2), 0.0)
    assert offsets(waiting.take(0.0)) == [0, 1]


def test_what_cannot_be_answered_in_time_leaves_its_place_to_others() -> None:
    waiting = batcher()
    for offset in range(6):
        request = pending(offset)
        request.expires_at = None if offset % 2 else 11.9
        waiting.offer(request, 0.0)
    assert offsets(waiting.take(10.0, usual_call_s=lambda _: 2.0)) == [1, 3, 5, 0], "but it fills up a batch"
    assert offsets(waiting.take(10.0, usual_call_s=lambda _: 2.0)) == [2, 4], "or goes if it is alone"


def test_a_model_that_was_loaded_again_with_a_smaller_batch_gets_smaller_ones() -> None:
    sizes = {"large": 4}
    waiting = Batcher(sizes.__getitem__, max_bytes=MAX_BYTES, linger_s=0)
    for offset in range(6):
        waiting.offer(pending(offset), 0.0)
    assert offsets(waiting.take(0.0)) == [0, 1, 2, 3]
    sizes["large"] = 1
    assert offsets(waiting.take(0.0)) == [4]


def test_the_model_whose_request_waits_longest_is_next() -> None:
    waiting = batcher()
    waiting.offer(pending(0, model="small"), 1.0)
    waiting.offer(pending(1, model="large"), 2.0)
    waiting.offer(pending(2, model="small", signature=("top_p",)), 3.0)
    assert [offsets(waiting.take(4.0)) for _ in range(3)] == [[0], [1], [2]]


def test_a_full_batch_does_not_linger() -> None:
    waiting = batcher(linger_s=10)
    for offset in range(3):
        waiting.offer(pending(offset), 0.0)
    assert waiting.take(0.0) is None
    waiting.offer(pending(3), 0.0)
    batch = waiting.take(0.0)
    assert offsets(batch) == [0, 1, 2, 3]
    assert batch is not None
    assert batch.closed_by is ClosedBy.SIZE


def test_a_batch_is_filled_by_number_or_bytes_of_one_model() -> None:
    waiting = batcher()
    waiting.offer(pending(0), 0.0)
    for offset in (1, 2):
        waiting.offer(pending(offset, model="small"), 0.0)
    assert (waiting.fills_batch("large"), waiting.fills_batch("small")) == (False, True)
    waiting.offer(pending(3, size=MAX_BYTES), 0.0)
    assert waiting.fills_batch("large")


def test_next_due_counts_down_to_the_first_lingering_batch() -> None:
    waiting = batcher(linger_s=10)
    assert waiting.next_due(0.0) is None
    waiting.offer(pending(0, model="small"), 3.0)
    waiting.offer(pending(1, model="large"), 5.0)
    assert waiting.next_due(5.0) == pytest.approx(8.0)
    assert waiting.next_due(5.0, blocked=["small"]) == pytest.approx(10.0)
    assert waiting.next_due(20.0) is None, "it is due already"
    assert batcher().next_due(0.0) is None


def test_take_one_prefers_whoever_waits_longest_of_all_groups() -> None:
    waiting = batcher()
    last_attempt = pending(0)
    waiting.offer(last_attempt, 1.0)
    waiting.take(1.0)
    last_attempt.attempts = LAST_ATTEMPT - 1
    waiting.put_back([last_attempt])
    waiting.offer(pending(1, signature=("top_p",)), 0.5)
    first, second = waiting.take_one("large", 0.0), waiting.take_one("large", 0.0)
    assert first is not None
    assert first.record.offset == 1
    assert second is last_attempt
    assert waiting.take_one("large", 0.0) is None
    assert len(waiting) == 0
