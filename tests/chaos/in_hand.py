"""How many requests the workers have in hand, all the time: nobody can answer more of them twice than it had."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import suppress

from tests.chaos.cluster import SUPERVISORS, Cluster
from tests.integration.account import in_hand

EVERY_S = 0.5
SLOTS = SUPERVISORS + 1  # and the member that comes and goes


class InHand:
    """A context manager: one thread per slot asks its supervisor, whatever becomes of it meanwhile."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen = defaultdict[int, list[tuple[float, int]]](list)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=[slot], name=f"in hand {slot}", daemon=True)
            for slot in range(SLOTS)
        ]

    def __enter__(self) -> InHand:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _watch(self, slot: int) -> None:
        while not self._end.wait(EVERY_S):
            supervisors = self._cluster.supervisors
            if slot < len(supervisors) and supervisors[slot].process.poll() is None:
                with suppress(AssertionError):  # it has not begun to serve metrics, or never will
                    self._seen[slot].append((time.time(), int(in_hand(supervisors[slot]))))

    def most(self, since: float, until: float) -> int:
        """The sum of the most that each slot had in this time, and just before: what is frozen cannot tell."""
        return sum(
            max((count for at, count in list(seen) if since - 2 * EVERY_S <= at <= until), default=0)
            for seen in list(self._seen.values())
        )
