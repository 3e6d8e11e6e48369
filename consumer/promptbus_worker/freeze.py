"""Notices that the whole process stood still (stopped, swapped out, its machine suspended). Pure.

A frozen process wakes up to time-outs that are not the server's doing: the answers may lie in its sockets. And its
partitions may belong to somebody else by now, which it learns only by polling Kafka. So time-outs across a freeze
count no attempt, and nothing is answered after one until the consumer has polled (DESIGN rule 8).
"""

from __future__ import annotations

FREEZE_S = 1.0
"""A gap in the event loop's time longer than this is a freeze."""


class FreezeGuard:
    """Tell it the time often; it remembers the last awakening."""

    __slots__ = ("_last", "woke_at")

    def __init__(self, now: float) -> None:
        self._last = now
        self.woke_at = float("-inf")

    def tick(self, now: float) -> None:
        """The event loop runs, and it is `now` (monotonic seconds)."""
        if now - self._last > FREEZE_S:
            self.woke_at = now
        self._last = now

    def since(self, moment: float) -> bool:
        """Whether the process stood still after `moment`."""
        return self.woke_at >= moment
