"""Requests with a deadline, answered at it wherever they are: waiting, or in a call that goes on without them."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from promptbus_worker.deadline import Clock
from promptbus_worker.record import Pending, Phase

_SMALL_HEAP = 1000


class Expiry:
    """One timer for the earliest deadline of all."""

    def __init__(self, on_expired: Callable[[Pending], None], clock: Clock) -> None:
        self._on_expired = on_expired
        self._clock = clock
        self._heap: list[tuple[float, int, Pending]] = []
        self._sweep_at = _SMALL_HEAP
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, request: Pending) -> None:
        """Call `on_expired` at the request's deadline, unless it is answered or dropped by then."""
        if request.expires_at is None:
            return
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heapq.heappush(self._heap, (request.expires_at, next(self._order), request))
        if self._heap[0][2] is request:
            self._set_timer()

    def _sweep(self) -> None:
        """Forget the answered ones. A deadline can be years away, and a request keeps its record alive."""
        self._heap = [entry for entry in self._heap if _is_open(entry[2])]
        heapq.heapify(self._heap)
        self._sweep_at = max(_SMALL_HEAP, 2 * len(self._heap))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        now = self._clock()
        try:
            while self._heap and self._heap[0][0] <= now:
                request = heapq.heappop(self._heap)[2]
                if _is_open(request):
                    self._on_expired(request)
        finally:
            self._set_timer()


def _is_open(request: Pending) -> bool:
    return request.phase in (Phase.WAITING, Phase.IN_FLIGHT)
