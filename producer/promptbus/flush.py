"""Waits for the acknowledgements of all that was published, and for a shorter time when hope is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

FLUSH_S = 60.0
WITHOUT_HOPE_S = 5.0
LOOK_EVERY_S = 0.2


class Flushing(Protocol):
    """What is used of RequestWriter."""

    def flush(self, timeout_s: float) -> int: ...


def flush(writer: Flushing, hopeful: Callable[[], bool], without_hope_s: float = WITHOUT_HOPE_S) -> int:
    """How many are not acknowledged in the end. `hopeful` is asked several times a second."""
    left_s = FLUSH_S
    while missing := writer.flush(LOOK_EVERY_S):
        left_s -= LOOK_EVERY_S
        if not hopeful():
            left_s = min(left_s, without_hope_s)
        if left_s <= 0:
            return missing
    return 0
