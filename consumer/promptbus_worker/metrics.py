"""The worker process's metrics: every series of `vocabulary.WORKER_SERIES`, each at zero from the start.

Import this only in a worker process, after the supervisor set PROMETHEUS_MULTIPROC_DIR: prometheus_client decides at
its first import, by that variable, where values live. Files carry the worker's slot, not its pid: a restarted worker
goes on in its predecessor's files, so counters never fall and the number of files is bounded. Two processes may
therefore never share a slot; the supervisor sees to it. Without a slot (tests) values live in memory.

`inc`, `set` and `observe` cost 1 to 2.5 µs each, for they write to a mapped file: count per batch, not per request
(`Counter.inc(n)`, `Histogram.observe_many`).
"""

from __future__ import annotations

import os
import platform
from bisect import bisect_left, bisect_right
from collections import Counter as TallyOf
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import confluent_kafka
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, values

from promptbus_worker import metric_files
from promptbus_worker.heartbeat import SLOT_VARIABLE
from promptbus_worker.vocabulary import BUILD_INFO, WORKER_SERIES, Series

DIR_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def _use_slot_files() -> None:
    slot = os.environ.get(SLOT_VARIABLE)
    if slot is None:
        return
    directory = os.environ.get(DIR_VARIABLE)
    if not directory or not Path(directory).is_dir():
        raise RuntimeError(
            f"{DIR_VARIABLE}={directory!r} is no directory: the supervisor has to make it first"
        )
    metric_files.set_damaged_aside(Path(directory), int(slot))
    # prometheus_client leaves this signature untyped
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: slot)  # type: ignore[no-untyped-call]


_use_slot_files()


class Histogram(prometheus_client.Histogram):
    """A histogram that takes the values of a whole batch at once."""

    def observe_many(self, amounts: Iterable[float]) -> None:
        """Like `observe` of each; one search and one write per bucket that was hit instead of two per value."""
        rising = sorted(amounts)
        counted = 0
        while counted < len(rising):
            bucket = bisect_left(self._upper_bounds, rising[counted])
            below = bisect_right(rising, self._upper_bounds[bucket], counted)
            self._buckets[bucket].inc(below - counted)
            counted = below
        if rising:
            self._sum.inc(sum(rising))


class Later:
    """What happens with each batch: kept here, and written a few times a second instead of with each of them.

    A process that is killed takes at most that much of its counts with it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.batches: list[tuple[str, str, int]] = []
        """Model, why it left, and requests."""
        self.calls: list[tuple[str, str, float]] = []
        """Model, result ("": it was broken off), and seconds."""

    def write(self) -> None:
        """Write what has come together."""
        metrics = self._metrics
        batches, self.batches = self.batches, []
        calls, self.calls = self.calls, []
        for (model, closed_by), count in TallyOf((model, why) for model, why, _ in batches).items():
            metrics.batches_total[model, closed_by].inc(count)
        for (model, result), count in TallyOf((model, result) for model, result, _ in calls).items():
            if result:
                metrics.inference_calls_total[model, result].inc(count)
        for model, sizes in _by_model((model, size) for model, _, size in batches).items():
            metrics.batch_size[model].observe_many(sizes)
        for model, seconds in _by_model((model, took_s) for model, _, took_s in calls).items():
            metrics.inference_duration_seconds[model].observe_many(seconds)


def _by_model(pairs: Iterable[tuple[str, float]]) -> Mapping[str, Sequence[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for model, amount in pairs:
        found[model].append(amount)
    return found


class Metrics:
    """Ready-made children by attribute. Labelled ones are mappings: a str for one label, a tuple for several."""

    requests_total: Mapping[tuple[str, str], Counter]
    inference_calls_total: Mapping[tuple[str, str], Counter]
    inference_duration_seconds: Mapping[str, Histogram]
    response_duration_seconds: Mapping[str, Histogram]
    queue_duration_seconds: Mapping[str, Histogram]
    reply_duration_seconds: Mapping[str, Histogram]
    tokens_total: Mapping[tuple[str, str], Counter]
    request_tokens: Mapping[tuple[str, str], Histogram]
    batch_size: Mapping[str, Histogram]
    batches_total: Mapping[tuple[str, str], Counter]
    in_flight_requests: Gauge
    in_flight_batches: Gauge
    oldest_in_flight_seconds: Gauge
    waiting_requests: Gauge
    concurrency_limit: Gauge
    breaker_open: Gauge
    dead_letter_budget_exhausted: Gauge
    paused_partitions: Gauge
    assigned_partitions: Gauge
    retries_total: Mapping[str, Counter]
    dead_letters_total: Mapping[str, Counter]
    commits_total: Mapping[str, Counter]
    rebalances_total: Mapping[str, Counter]
    redeliveries_skipped_total: Counter

    def __init__(self, models: Sequence[str]) -> None:
        """`models`: the served models; with `vocabulary.UNKNOWN_MODEL` they are all values of `model`."""
        self.registry = CollectorRegistry()
        self.later = Later(self)
        for series in WORKER_SERIES:
            setattr(self, series.name, self._build(series, models))
        build_info = self._gauge(BUILD_INFO)
        versions = (version("promptbus"), platform.python_version(), confluent_kafka.libversion()[0])
        build_info.labels(*versions).set(1)

    def _build(self, series: Series, models: Sequence[str]) -> object:
        names = [label.name for label in series.labels]
        metric: Counter | Gauge | Histogram
        if series.kind == "counter":
            metric = Counter(series.full_name, series.help, names, registry=self.registry)
        elif series.kind == "histogram":
            metric = Histogram(
                series.full_name, series.help, names, registry=self.registry, buckets=series.buckets
            )
        else:
            metric = self._gauge(series)
        if not names:
            return metric
        return {
            labels[0] if len(labels) == 1 else labels: metric.labels(*labels)
            for labels in series.label_sets(models)
        }

    def _gauge(self, series: Series) -> Gauge:
        if series.mode is None:
            raise ValueError(f"gauge {series.name} names no mode for several processes")
        return Gauge(
            series.full_name,
            series.help,
            [label.name for label in series.labels],
            registry=self.registry,
            multiprocess_mode=series.mode,
        )
