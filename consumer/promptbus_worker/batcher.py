"""Waiting requests → batches, and why each batch closed. Pure: `now` is passed in.

A batch leaves when it is full or when a call slot is free: an idle worker answers at once, a busy one fills its
batches. The caller asks only when it has a slot. Requests share a batch if they have the same model and the same
set of input tensors; the request that waits longest decides whose turn it is. A request on its last attempt goes
alone, and not before its time, so that a prompt which makes every call time out cannot take its neighbours with it;
and so does one that may have crashed a worker process. What a call could not answer before its deadline lets the others
go first: under overload most of what is oldest is like that, and calls would be spent on nobody.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum

from promptbus_worker.record import IN_FLIGHT, WAITING, Pending, Phase

LAST_ATTEMPT = 3
"""The attempt that is final (DESIGN rule 8)."""

GroupKey = tuple[str, tuple[str, ...]]


class ClosedBy(StrEnum):
    """Why a batch left (the label of `promptbus_batches_total`)."""

    SIZE = "size"
    SLOT = "slot"
    LINGER = "linger"
    BYTES = "bytes"


# Until Python 3.12 looking a member up in its class takes 0.2 µs.
SIZE, SLOT, LINGER, BYTES = ClosedBy.SIZE, ClosedBy.SLOT, ClosedBy.LINGER, ClosedBy.BYTES


class Batch:
    """Requests that share one call. `is_trial`: sent to see whether the model still only makes dead letters (`gates`)."""

    __slots__ = ("closed_by", "is_trial", "model", "requests")

    def __init__(self, model: str, requests: list[Pending], closed_by: ClosedBy) -> None:
        self.model = model
        self.requests = requests
        self.closed_by = closed_by
        self.is_trial = False


class Batcher:
    """The waiting queue."""

    def __init__(self, max_size: Callable[[str], int], *, max_bytes: int, linger_s: float) -> None:
        """`max_size` gives a model's largest batch; it is asked each time, for a model may be reloaded."""
        self._max_size = max_size
        self._max_bytes = max_bytes
        self._linger_s = linger_s
        self._groups: dict[GroupKey, deque[Pending]] = {}
        self._alone: deque[Pending] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def any_alone(self) -> bool:
        """Whether any request waits that is to go alone."""
        return bool(self._alone)

    def __iter__(self) -> Iterator[Pending]:
        yield from self._alone
        for group in self._groups.values():
            yield from group

    def offer(self, request: Pending, now: float) -> None:
        """Let a request wait, behind the others."""
        request.phase = WAITING
        request.waiting_since = now
        self._count += 1
        self._queue(request).append(request)

    def put_back(self, requests: Iterable[Pending]) -> None:
        """Requests that were dispatched wait again, where their age puts them."""
        older: list[tuple[deque[Pending], Pending]] = []
        for request in sorted(requests, key=_age):
            request.phase = WAITING
            self._count += 1
            queue = self._queue(request)
            if queue and _age(request) >= _age(queue[0]):
                queue.insert(bisect_right(queue, _age(request), key=_age), request)
            else:
                older.append((queue, request))
        for queue, request in reversed(older):
            queue.appendleft(request)

    def take(
        self,
        now: float,
        *,
        blocked: Collection[str] = (),
        alone_in_flight: Collection[str] = (),
        idle: bool = True,
        usual_call_s: Callable[[str], float] = lambda _: 0.0,
    ) -> Batch | None:
        """The next batch, or None if nothing may leave yet. `usual_call_s`: how long a call to a model takes.

        A crash suspect goes before all others, but only when the worker is `idle`: with nothing else in flight.
        `blocked` models are passed over. Of a model in `alone_in_flight` no second last attempt leaves: Triton may
        join them into one batch again, and one would make the other time out.
        """
        alone: Pending | None = None
        if self._alone:
            due = [r for r in self._alone if r.model not in blocked and r.held_until <= now]
            suspect = next((r for r in due if r.crash_suspect), None)
            if suspect is not None:
                if not idle:
                    return None
                self._alone.remove(suspect)
                return self._close([suspect], SIZE)
            alone = next((r for r in due if r.model not in alone_in_flight), None)
        best: deque[Pending] | None = None
        for (model, _), group in self._groups.items():
            if model in blocked or (best is not None and _age(best[0]) <= _age(group[0])):
                continue
            if now >= group[0].waiting_since + self._linger_s or self._full(model, group):
                best = group
        if alone is not None and (best is None or _age(alone) <= _age(best[0])):
            self._alone.remove(alone)
            return self._close([alone], SIZE)
        return self._fill(best, now, usual_call_s) if best is not None else None

    def has(self, model: str) -> bool:
        """Whether any request of this model waits."""
        return any(name == model for name, _ in self._groups) or any(r.model == model for r in self._alone)

    def fills_batch(self, model: str) -> bool:
        """Whether as many requests of this model wait as one call takes."""
        return any(name == model and self._full(model, group) for (name, _), group in self._groups.items())

    def take_one(self, model: str, now: float) -> Pending | None:
        """The request of this model that waits longest, to be run alone; never a crash suspect."""
        waiting = [group[0] for (name, _), group in self._groups.items() if name == model]
        due = (r for r in self._alone if r.model == model and r.held_until <= now)
        waiting += [r for r in due if not r.crash_suspect][:1]
        if not waiting:
            return None
        request = min(waiting, key=_age)
        self.discard(request)
        request.phase = IN_FLIGHT
        return request

    def next_due(self, now: float, blocked: Collection[str] = ()) -> float | None:
        """Seconds until a lingering batch or a held request may leave, or None if there is none."""
        if not self._alone and not self._linger_s:
            return None
        due = [request.held_until - now for request in self._alone if request.model not in blocked]
        if self._linger_s:
            lingering = [group[0] for (model, _), group in self._groups.items() if model not in blocked]
            due += [request.waiting_since + self._linger_s - now for request in lingering]
        return min((seconds for seconds in due if seconds > 0), default=None)

    def discard(self, request: Pending) -> None:
        """Take one waiting request out. It is rare, so it may cost a walk along the queue."""
        if request in self._alone:
            self._alone.remove(request)
        else:
            self._groups[_model(request), request.signature].remove(request)
            self._forget_empty(request)
        self._count -= 1

    def drop(self, unwanted: Callable[[Pending], bool]) -> list[Pending]:
        """Take every waiting request out that is `unwanted`; they are left for the partition's next owner."""
        dropped = [request for request in self if unwanted(request)]
        if dropped:
            gone = set(map(id, dropped))
            self._alone = deque(request for request in self._alone if id(request) not in gone)
            groups = {
                key: deque(r for r in group if id(r) not in gone) for key, group in self._groups.items()
            }
            self._groups = {key: group for key, group in groups.items() if group}
            self._count -= len(dropped)
            for request in dropped:
                request.phase = Phase.DROPPED
        return dropped

    def _fill(self, group: deque[Pending], now: float, usual_call_s: Callable[[str], float]) -> Batch:
        """Out of this group, in its order; what expires before a call would answer it only where others leave room."""
        first = group[0]
        model = _model(first)
        max_size = self._max_size(model)
        room = self._max_bytes
        requests: list[Pending] = []
        passed_over: deque[Pending] = deque()
        answered_at: float | None = None  # asked for only where there are deadlines
        closed_by = LINGER if self._linger_s else SLOT
        while len(requests) < max_size and (group or passed_over):
            queue = group or passed_over
            request = queue[0]
            if request.expires_at is not None and queue is group:
                if answered_at is None:
                    answered_at = now + usual_call_s(model)
                if request.expires_at < answered_at:
                    passed_over.append(group.popleft())
                    continue
            if request.size > room and requests:
                closed_by = BYTES
                break
            room -= request.size
            requests.append(queue.popleft())
        if len(requests) == max_size:
            closed_by = SIZE
        group.extendleft(reversed(passed_over))
        if not group:
            self._forget_empty(first)
        return self._close(requests, closed_by)

    def _close(self, requests: list[Pending], closed_by: ClosedBy) -> Batch:
        self._count -= len(requests)
        for request in requests:
            request.phase = IN_FLIGHT
        return Batch(_model(requests[0]), requests, closed_by)

    def _full(self, model: str, group: deque[Pending]) -> bool:
        if len(group) >= self._max_size(model):
            return True
        return sum(request.size for request in group) > self._max_bytes

    def _queue(self, request: Pending) -> deque[Pending]:
        if request.crash_suspect or is_last_attempt(request):
            return self._alone
        key = (_model(request), request.signature)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = deque()
        return group

    def _forget_empty(self, request: Pending) -> None:
        key = (_model(request), request.signature)
        if not self._groups[key]:
            del self._groups[key]


def is_last_attempt(request: Pending) -> bool:
    """Whether the next time-out or broken connection is its last."""
    return request.attempts >= LAST_ATTEMPT - 1


def _age(request: Pending) -> float:
    return request.waiting_since


def _model(request: Pending) -> str:
    assert request.model is not None, "only admitted requests wait"
    return request.model
