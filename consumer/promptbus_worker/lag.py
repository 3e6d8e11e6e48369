"""How far behind each partition is, in records and in seconds, and how long it takes to catch up.

Theory of operation. The lag in records is the end of the partition's log less the next offset to commit, so offsets
that no record has (compaction, transaction markers) count. The lag in seconds is the age of the oldest record that is
not settled: exact while that record is in hand. What waits at the broker has no timestamp that we know, but it is
younger than the last record that was polled, and than the last moment without lag; the later of both is taken. Only
if neither is known, right after an assignment, the age is a lower bound: since the partition is ours. A partition that
comes back with nothing settled since is as old as it was: a rebalance while Triton is gone makes no backlog young.

Pure; used by one thread, the consumer's, and `time_to_drain_s` by the supervisor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from promptbus_worker.ledger import Ownership, Progress

WINDOW_S = 60.0
SHORT_S = 5.0
"""Lag that is answered within this time at the present rate is work under way, not a backlog."""
YOUNG_S = 15.0
"""Lag none of which is older says nothing yet about catching up or not."""


class PartitionLag(NamedTuple):
    """One owned partition. `since`: when it was assigned, monotonic seconds; rates are of the last minute."""

    topic: str
    partition: int
    since: float
    records: int
    seconds: float
    answered_per_s: float
    arrived_per_s: float


class _Sample(NamedTuple):
    at: float
    next_offset: int
    end: int


class _Oldest(NamedTuple):
    """The first record that is not settled: its offset, and its timestamp or what bounds that (Unix milliseconds)."""

    offset: int
    ms: float


class _Watch:
    """One epoch's memory."""

    __slots__ = ("caught_up_ms", "samples", "since", "since_ms")

    def __init__(self, now: float, wall_ms: float) -> None:
        self.since = now
        self.since_ms = wall_ms
        self.caught_up_ms: float | None = None
        self.samples: deque[_Sample] = deque()


class LagMeter:
    """Measures every owned partition, about once a second."""

    def __init__(self) -> None:
        self._watches: dict[Ownership, _Watch] = {}
        self._oldest: dict[tuple[str, int], _Oldest] = {}
        """By topic and partition, whoever owned it since."""

    def measure(
        self, progress: Sequence[Progress], ends: Mapping[Ownership, int], *, now: float, wall_ms: float
    ) -> list[PartitionLag]:
        """Of every partition in `progress` whose end is known. Partitions that are missing there are forgotten."""
        self._watches = {
            each.ownership: self._watches.get(each.ownership) or _Watch(now, wall_ms) for each in progress
        }
        return [
            self._measure(each, ends[each.ownership], now, wall_ms)
            for each in progress
            if each.ownership in ends
        ]

    def _measure(self, progress: Progress, end: int, now: float, wall_ms: float) -> PartitionLag:
        ownership, next_offset = progress.ownership, progress.next_offset
        watch = self._watches[ownership]
        end = max(end, next_offset)  # what is known of the end may be older than what was polled
        samples = watch.samples
        samples.append(_Sample(now, next_offset, end))
        while len(samples) > 2 and samples[1].at <= now - WINDOW_S:
            samples.popleft()
        first = samples[0]
        span_s = now - first.at
        answered = (next_offset - first.next_offset) / span_s if span_s > 0 else 0.0
        arrived = max(0, end - first.end) / span_s if span_s > 0 else 0.0
        records, seconds = end - next_offset, 0.0
        place = ownership.topic, ownership.partition
        if records:
            oldest = self._oldest[place] = _find_oldest(progress, watch, self._oldest.get(place))
            seconds = max(0.0, wall_ms - oldest.ms) / 1000
        else:
            watch.caught_up_ms = wall_ms
            self._oldest.pop(place, None)
        return PartitionLag(*place, watch.since, records, seconds, answered, arrived)


def _find_oldest(progress: Progress, watch: _Watch, before: _Oldest | None) -> _Oldest:
    offset = progress.next_offset
    if progress.oldest_ms is not None:
        return _Oldest(offset, progress.oldest_ms)
    if before is not None and before.offset == offset:
        return before
    known = [ms for ms in (progress.last_ms, watch.caught_up_ms) if ms is not None]
    return _Oldest(offset, max(known, default=watch.since_ms))


def time_to_drain_s(lags: Collection[PartitionLag]) -> float:
    """Until the lag of all these partitions is gone if the last minute goes on; 0 without lag, inf if never."""
    records = sum(lag.records for lag in lags)
    if records == 0:
        return 0.0
    answered = sum(lag.answered_per_s for lag in lags)
    if records <= answered * SHORT_S:
        return records / answered
    gained = answered - sum(lag.arrived_per_s for lag in lags)
    if gained > 0:
        return records / gained
    if max(lag.seconds for lag in lags) < YOUNG_S:
        return records / answered if answered > 0 else 0.0
    return float("inf")
