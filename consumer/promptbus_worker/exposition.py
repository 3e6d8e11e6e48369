"""What `/metrics` shows: the workers' files merged, and the supervisor's own series."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from promptbus_worker.health import View
from promptbus_worker.vocabulary import FLEET_SERIES

log = logging.getLogger(__name__)

# What prometheus_client raises for a file that is empty, cut, overwritten, or taken away while it is read.
_UNREADABLE = (struct.error, ValueError, RuntimeError, LookupError, TypeError, OSError)


def registry_of(metrics_dir: Path, view: View) -> CollectorRegistry:
    """Everything to expose, read anew at each scrape."""
    registry = CollectorRegistry()
    registry.register(_WorkerFiles(metrics_dir))
    registry.register(_SupervisorSeries(view))
    return registry


class _WorkerFiles(Collector):
    """The workers' value files. One that cannot be read is left out, and said, instead of failing the scrape."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        files = [str(path) for path in sorted(self._directory.glob("*.db"))]
        try:
            return _merge(files)
        except _UNREADABLE:
            readable = [file for file in files if _is_readable(file)]
            return _merge(readable)


class _SupervisorSeries(Collector):
    def __init__(self, view: View) -> None:
        self._values = {
            "workers": float(sum(slot.running for slot in view.slots)),
            "worker_restarts_total": float(view.restarts),
        }

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for series in FLEET_SERIES:
            if series.name not in self._values:
                continue
            family = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
            yield family(series.full_name, series.help, value=self._values[series.name])


def _merge(files: list[str]) -> list[Metric]:
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]  # untyped there


def _is_readable(file: str) -> bool:
    try:
        _merge([file])
    except _UNREADABLE as error:
        log.warning(
            "metrics file cannot be read, its values are missing", extra={"file": file, "error": str(error)}
        )
        return False
    return True
