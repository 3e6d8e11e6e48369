"""The closed vocabulary, and what several processes and a restart make of it."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from promptbus.messages.codes import ErrorCode
from promptbus_worker.metrics import Metrics
from promptbus_worker.vocabulary import EVERY_SERIES, WORKER_SERIES


def in_slot(slot: int, directory: Path, program: str) -> None:
    """Run `program` like a worker process: `metrics` is its Metrics of one model."""
    start = "from promptbus_worker.metrics import Metrics\nmetrics = Metrics(['m'])\n"
    subprocess.run(
        [sys.executable, "-c", start + program],
        env={**os.environ, "PROMPTBUS_SLOT": str(slot), "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        check=True,
        timeout=60,
    )


def scraped(directory: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call] # untyped there
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("#")
    }


def test_declared_attributes_and_vocabulary_are_the_same() -> None:
    assert set(typing.get_type_hints(Metrics)) == {series.name for series in WORKER_SERIES}
    metrics = Metrics(["m"])
    for series in WORKER_SERIES:
        children = getattr(metrics, series.name)
        if series.labels:
            expected = {labels[0] if len(labels) == 1 else labels for labels in series.label_sets(["m"])}
            assert set(children) == expected, series.name


def test_names_are_unique_prefixed_and_counters_end_in_total() -> None:
    assert len({series.full_name for series in EVERY_SERIES}) == len(EVERY_SERIES)
    for series in EVERY_SERIES:
        assert series.full_name.startswith("promptbus_")
        assert (series.kind == "counter") == series.name.endswith("_total")
        assert (series.kind == "histogram") == bool(series.buckets)
        assert list(series.buckets) == sorted(set(series.buckets))
        assert "pid" not in [label.name for label in series.labels]
        assert series.help


def test_every_gauge_of_a_worker_names_how_processes_add_up() -> None:
    for series in WORKER_SERIES:
        assert (series.mode is not None) == (series.kind == "gauge"), series.name


def test_requests_can_be_counted_under_every_code_for_every_model() -> None:
    metrics = Metrics(["a", "b"])
    for model in ("a", "b", "unknown"):
        for code in ("ok", *ErrorCode):
            metrics.requests_total[model, code].inc()
    for code in ErrorCode:
        metrics.dead_letters_total[code].inc()


def test_every_series_is_there_at_zero_from_the_start(tmp_path: Path) -> None:
    in_slot(0, tmp_path, "")
    values = scraped(tmp_path)
    for series in WORKER_SERIES:
        suffix = "_count" if series.kind == "histogram" else ""
        found = [name for name in values if name.partition("{")[0] == series.full_name + suffix]
        assert len(found) == len(series.label_sets(["m"])), series.name
    (build_info,) = [name for name in values if name.startswith("promptbus_build_info")]
    assert values.pop(build_info) == 1
    for label in ("version", "python", "librdkafka"):
        assert f'{label}="' in build_info
    assert set(values.values()) == {0.0}


def test_counters_go_on_after_a_restart_and_add_up_over_slots(tmp_path: Path) -> None:
    for slot in (0, 0, 1):
        in_slot(
            slot,
            tmp_path,
            "metrics.requests_total['m', 'ok'].inc(8); metrics.batch_size['m'].observe(8)\n"
            "metrics.in_flight_batches.set(3); metrics.breaker_open.set(1)",
        )
    values = scraped(tmp_path)
    assert values['promptbus_requests_total{code="ok",model="m"}'] == 24
    assert values['promptbus_batch_size_count{model="m"}'] == 3
    assert values["promptbus_in_flight_batches"] == 6
    assert values["promptbus_breaker_open"] == 1
    assert {path.name.rpartition("_")[2] for path in tmp_path.iterdir()} == {"0.db", "1.db"}


def test_gauges_of_a_dead_slot_vanish_and_its_counters_stay(tmp_path: Path) -> None:
    for slot in (0, 1):
        in_slot(slot, tmp_path, "metrics.waiting_requests.set(5); metrics.commits_total['ok'].inc()")
    mark_process_dead(1, path=str(tmp_path))  # type: ignore[no-untyped-call] # untyped there
    values = scraped(tmp_path)
    assert values["promptbus_waiting_requests"] == 5
    assert values['promptbus_commits_total{result="ok"}'] == 2


def test_a_batch_of_observations_counts_like_single_ones() -> None:
    amounts = [0.0, 0.001, 0.0011, 0.004, 59.0, 60.0, 61.0, 1e9]
    one, many = Metrics(["m"]), Metrics(["m"])
    for amount in amounts:
        one.queue_duration_seconds["m"].observe(amount)
    many.queue_duration_seconds["m"].observe_many(iter(amounts))
    many.queue_duration_seconds["m"].observe_many([])

    def samples(metrics: Metrics) -> list[tuple[str, float]]:
        return [
            (str(sample.labels), sample.value)
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name.startswith("promptbus_queue_duration") and not sample.name.endswith("_created")
        ]

    assert samples(one) == samples(many)


def test_a_worker_without_the_supervisors_directory_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        in_slot(0, tmp_path / "missing", "")
