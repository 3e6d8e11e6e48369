"""What the live view says, computed from two scrapes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from promptbus.top.scrape import Labels, Scrape

LATENCIES = (
    ("response", "response_duration_seconds"),
    ("queue", "queue_duration_seconds"),
    ("inference", "inference_duration_seconds"),
    ("reply", "reply_duration_seconds"),
)
QUANTILES = (0.5, 0.95, 0.99)


class Count(NamedTuple):
    """A counter. `per_s` is None in a frame of one scrape only."""

    name: str
    per_s: float | None
    total: float


class Latency(NamedTuple):
    """Seconds at `QUANTILES`; None: nothing was observed. inf: beyond the last bucket."""

    name: str
    quantiles: tuple[float | None, ...]


class Partition(NamedTuple):
    """One that is owned here, and how far behind it is."""

    name: str
    records: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Everything there is to draw. `over_s`: the time between both scrapes, None if there is only one."""

    over_s: float | None
    workers: float
    restarts: float
    answered: Count
    outcomes: tuple[Count, ...]
    latencies: tuple[Latency, ...]
    tokens: tuple[Count, ...]
    lag_records: float
    lag_seconds: float
    drain_s: float
    worst: Partition | None
    assigned: float
    paused: float
    waiting: float
    in_flight_requests: float
    oldest_s: float
    batches: tuple[Count, ...]
    batch_size: float | None
    in_flight_batches: float
    limit: float
    breaker_open: bool
    budget_exhausted: bool
    calls: tuple[Count, ...]
    retries: tuple[Count, ...]
    dead_letters: Count
    slots: tuple[tuple[str, float], ...]


def compute(before: Scrape | None, now: Scrape) -> Frame:
    """Gauges as they are now, rates and quantiles of what came since `before`."""
    change = _Change(before, now)
    outcomes = change.counts("requests_total", "code")
    records, seconds = change.by("lag_records", "partition"), change.by("lag_seconds", "partition")
    behind = [Partition(name, count, seconds.get(name, 0.0)) for name, count in records.items() if count]
    return Frame(
        over_s=change.over_s,
        workers=change.gauge("workers"),
        restarts=change.gauge("worker_restarts_total"),
        answered=_sum("answered", outcomes),
        outcomes=outcomes,
        latencies=tuple(
            Latency(label, tuple(quantile(change.buckets(name), q) for q in QUANTILES))
            for label, name in LATENCIES
        ),
        tokens=change.counts("tokens_total", "kind"),
        lag_records=sum(records.values()),
        lag_seconds=max(seconds.values(), default=0.0),
        drain_s=change.gauge("time_to_drain_seconds"),
        worst=max(behind, key=lambda each: (each.seconds, each.records), default=None),
        assigned=change.gauge("assigned_partitions"),
        paused=change.gauge("paused_partitions"),
        waiting=change.gauge("waiting_requests"),
        in_flight_requests=change.gauge("in_flight_requests"),
        oldest_s=change.gauge("oldest_in_flight_seconds"),
        batches=change.counts("batches_total", "closed_by"),
        batch_size=change.mean("batch_size"),
        in_flight_batches=change.gauge("in_flight_batches"),
        limit=change.gauge("concurrency_limit"),
        breaker_open=change.gauge("breaker_open") > 0,
        budget_exhausted=change.gauge("dead_letter_budget_exhausted") > 0,
        calls=change.counts("inference_calls_total", "result"),
        retries=change.counts("retries_total", "reason"),
        dead_letters=_sum("dead letters", change.counts("dead_letters_total", "reason")),
        slots=tuple(sorted(change.by("worker_resident_memory_bytes", "slot").items(), key=_numbered)),
    )


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """Of observations by their bucket's upper bound (cumulative, as scraped), linear within a bucket.

    None without observations, inf if it lies beyond the last finite bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank, lower, below = q * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank and count > below:
            return inf if bound == inf else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, max(below, count)
    return inf


class _Change:
    """What changed between two scrapes."""

    def __init__(self, before: Scrape | None, now: Scrape) -> None:
        self._before = before.samples if before is not None else None
        self._now = now.samples
        self.over_s = max(1e-3, now.at - before.at) if before is not None else None

    def gauge(self, name: str) -> float:
        """The sum of its series; 0 without any."""
        return sum(self._now.get(name, {}).values())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Its series as they are now, added up by one label."""
        return _by(self._now.get(name, {}), label)

    def counts(self, name: str, label: str) -> tuple[Count, ...]:
        """A counter by one label, in the order of the scrape."""
        added = _by(self._added(name), label)
        return tuple(
            Count(value, added[value] / self.over_s if self.over_s is not None else None, total)
            for value, total in self.by(name, label).items()
        )

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's new observations by upper bound, of all its series together."""
        return {float(bound): count for bound, count in _by(self._added(f"{name}_bucket"), "le").items()}

    def mean(self, name: str) -> float | None:
        """Of a histogram's new observations; None without any."""
        count = sum(self._added(f"{name}_count").values())
        return sum(self._added(f"{name}_sum").values()) / count if count else None

    def _added(self, name: str) -> dict[Labels, float]:
        before = self._before.get(name, {}) if self._before is not None else {}
        now = self._now.get(name, {})
        # One that fell began anew, with a supervisor: all of it is new.
        return {
            labels: value - before.get(labels, 0.0) if value >= before.get(labels, 0.0) else value
            for labels, value in now.items()
        }


def _by(samples: Mapping[Labels, float], label: str) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for labels, value in samples.items():
        sums[dict(labels).get(label, "")] += value
    return dict(sums)


def _sum(name: str, counts: tuple[Count, ...]) -> Count:
    known = [count.per_s for count in counts if count.per_s is not None]
    return Count(
        name, sum(known) if len(known) == len(counts) and counts else None, sum(c.total for c in counts)
    )


def _numbered(slot: tuple[str, float]) -> tuple[int, str]:
    return (int(slot[0]) if slot[0].isdigit() else 0, slot[0])
