"""One budget of seconds shared by every blocking step of a sequence."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic seconds."""


class Deadline:
    """Counts down from `budget_s`. Each step of a revoke or a drain asks it how long it may still block."""

    __slots__ = ("_at", "_clock")

    def __init__(self, budget_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = clock() + budget_s

    def remaining_s(self, at_most: float = float("inf")) -> float:
        """Seconds left, never negative, and never more than `at_most`."""
        return min(at_most, max(0.0, self._at - self._clock()))

    @property
    def expired(self) -> bool:
        """Whether the budget is used up."""
        return self._clock() >= self._at
