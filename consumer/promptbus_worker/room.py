"""How many records may be in hand: what decides how many Kafka is asked for. Pure.

Requests that wait need room in proportion to the calls in flight, so that a batch is at hand whenever a call ends. Those
that are answered already wait for the broker, which takes its time (replies are collected, and so are its reports). If
they took the others' room, the worker would be as fast as so many records per round trip to the broker, and no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from promptbus_worker.limiter import Limiter

BATCHES_PER_SLOT = 32
"""Batches' worth of records per batch in flight that are not answered yet."""
TIMES_WITH_TRANSACTIONS = 4
"""So many times as much then: nothing settles before its transaction is over, and meanwhile nothing is polled."""
MOST_ANSWERED = 8_192
"""Answered records that take none of that: more than leave within a round trip. If no broker acknowledges, these are all."""


class Room:
    """May be asked from any thread."""

    def __init__(
        self,
        limiters: Mapping[str, Limiter],
        batch_size: Callable[[str], int],
        *,
        transactional: bool,
        answered: Callable[[], int],
    ) -> None:
        """`batch_size`: a model's largest; `answered`: how many requests are answered and not settled."""
        self._limiters = limiters
        self._batch_size = batch_size
        self._times = BATCHES_PER_SLOT * (TIMES_WITH_TRANSACTIONS if transactional else 1)
        self._answered = answered
        # Never less than at the start: a limit that is low for a moment must not empty the waiting room.
        self._first_limits = {name: limiter.limit for name, limiter in limiters.items()}

    def records(self) -> int:
        """Records that may be in hand now, answered ones included."""
        batches = {name: max(one.limit, self._first_limits[name]) for name, one in self._limiters.items()}
        unanswered = self._times * sum(self._batch_size(name) * count for name, count in batches.items())
        return unanswered + min(self._answered(), MOST_ANSWERED)
