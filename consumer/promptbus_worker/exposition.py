"""What `/metrics` shows: the workers' files merged, and what the supervisor itself knows of its workers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from promptbus_worker import lag_files, metric_files
from promptbus_worker.health import View
from promptbus_worker.lag import PartitionLag, time_to_drain_s
from promptbus_worker.vocabulary import FLEET_SERIES, LAG_SERIES, SLOT_MEMORY, Series

log = logging.getLogger(__name__)


def registry_of(metrics_dir: Path, view: View) -> CollectorRegistry:
    """Everything to expose, read anew at each scrape."""
    registry = CollectorRegistry()
    good, bad = metric_files.sound(metrics_dir)
    if bad:
        log.warning(
            "metrics files cannot be read, their values are missing",
            extra={"files": [path.name for path in bad]},
        )
    pids = {slot.slot: slot.pid for slot in view.slots if slot.pid is not None}
    lags = lag_files.read(metrics_dir, pids, time.monotonic())
    registry.register(_WorkerFiles(good))
    registry.register(_SupervisorSeries(view, len(bad), lags, memory_of(pids)))
    return registry


def memory_of(pids: Mapping[int, int]) -> dict[int, int]:
    """Slot → bytes resident, of the processes (slot → process id) that run; nothing where there is no /proc."""
    resident = {}
    for slot, pid in pids.items():
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            if pages:  # one that has ended and was not reaped yet has none
                resident[slot] = pages * os.sysconf("SC_PAGE_SIZE")
    return resident


class _WorkerFiles(Collector):
    """The workers' value files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [str(path) for path in files]

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return list(MultiProcessCollector.merge(self._files))  # type: ignore[no-untyped-call]  # untyped there


class _SupervisorSeries(Collector):
    def __init__(
        self, view: View, corrupt: int, lags: Sequence[PartitionLag], memory: Mapping[int, int]
    ) -> None:
        self._values = {
            "workers": float(sum(slot.running for slot in view.slots)),
            "worker_restarts_total": float(view.restarts),
            "metrics_files_corrupt": float(corrupt),
            "time_to_drain_seconds": time_to_drain_s(lags),
        }
        self._lags = lags
        self._memory = memory

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for series in FLEET_SERIES:
            family = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
            yield family(series.full_name, series.help, value=self._values[series.name])
        yield _gauges(SLOT_MEMORY, {(str(slot),): bytes_ for slot, bytes_ in self._memory.items()})
        for series in LAG_SERIES:
            values: dict[tuple[str, ...], float] = {
                (lag.topic, str(lag.partition)): lag.records if series.name == "lag_records" else lag.seconds
                for lag in self._lags
            }
            yield _gauges(series, values)


def _gauges(series: Series, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(series.full_name, series.help, labels=[label.name for label in series.labels])
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family
