"""What a scrape shows of running workers, of dead ones, and how long it takes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from promptbus_worker import lag_files
from promptbus_worker.exposition import memory_of, registry_of
from promptbus_worker.health import SlotView, View
from promptbus_worker.lag import PartitionLag
from promptbus_worker.vocabulary import EVERY_SERIES
from tests.unit.worker.scripted import until

SCRAPE_S = 0.05
MEASURING = "from promptbus_worker.metrics import Metrics\nmetrics = Metrics(['m'])\n"


def view(*pids: int | None) -> View:
    """A view of slots 0, 1, … with these processes."""
    slots = [SlotView(slot, pid is not None, None, None, None, "", pid) for slot, pid in enumerate(pids)]
    return View(at=0, stopping=None, restarts=0, slots=tuple(slots))


def lag(partition: int, *, since: float = 1.0, records: int = 5, answered: float = 0.0) -> PartitionLag:
    return PartitionLag("requests", partition, since, records, 30.0, answered, 0.0)


def of(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """Label values → value."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"promptbus_{name}"
    }


# -- lag


def test_each_partition_of_running_workers_has_one_series(tmp_path: Path) -> None:
    lag_files.write(tmp_path, 0, [lag(0), lag(1, records=7)], time.monotonic())
    lag_files.write(tmp_path, 1, [lag(1, since=2.0, records=9, answered=7.0)], time.monotonic())
    registry = registry_of(tmp_path, view(os.getpid(), os.getpid()))
    assert of(registry, "lag_records") == {("requests", "0"): 5, ("requests", "1"): 9}
    assert of(registry, "lag_seconds") == {("requests", "0"): 30.0, ("requests", "1"): 30.0}
    assert of(registry, "time_to_drain_seconds") == {(): 14 / 7}


def test_the_partitions_of_a_worker_that_is_gone_or_silent_have_none(tmp_path: Path) -> None:
    lag_files.write(tmp_path, 0, [lag(0)], time.monotonic())
    lag_files.write(tmp_path, 1, [lag(1)], time.monotonic() - lag_files.STALE_S - 1)
    lag_files.write(tmp_path, 2, [lag(2)], time.monotonic())
    (tmp_path / "lag_3.json").write_bytes(b'{"pid": 1, "at"')
    registry = registry_of(tmp_path, view(None, os.getpid(), os.getpid() + 1, os.getpid()))
    assert of(registry, "lag_records") == {}
    assert of(registry, "time_to_drain_seconds") == {(): 0.0}


def test_lag_that_never_ends_is_written_as_prometheus_reads_it(tmp_path: Path) -> None:
    lag_files.write(tmp_path, 0, [lag(0)], time.monotonic())
    assert b"promptbus_time_to_drain_seconds +Inf\n" in generate_latest(
        registry_of(tmp_path, view(os.getpid()))
    )


# -- memory


def test_memory_is_that_of_the_processes_that_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        until(lambda: memory_of({3: child.pid}).get(3, 0) > 1 << 20, "an interpreter has come up")
        resident = memory_of({0: os.getpid(), 3: child.pid})
        assert set(resident) == {0, 3}
        assert resident[3] < resident[0] < 1 << 33
    finally:
        child.kill()
        assert child.stdin is not None
        child.stdin.close()
        until(lambda: 3 not in memory_of({3: child.pid}), "a process that has ended has no memory")
        child.wait()
    assert memory_of({3: child.pid}) == {}


# -- the whole


def test_every_metric_is_exposed_and_no_other(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMPTBUS_SLOT": "0", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", MEASURING], env=environment, check=True, timeout=60)
    lag_files.write(tmp_path, 0, [lag(0)], time.monotonic())
    registry = registry_of(tmp_path, view(os.getpid()))
    exposed = {family.name: (family.type, family.documentation) for family in registry.collect()}
    declared = {
        s.full_name.removesuffix("_total") if s.kind == "counter" else s.full_name: (s.kind, s.help)
        for s in EVERY_SERIES
    }
    assert exposed == declared


def test_eight_workers_are_scraped_within_50_ms(tmp_path: Path) -> None:
    """By the processor's time, so that what else this machine does is not measured."""
    environment = {**os.environ, "PROMPTBUS_SLOT": "0", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", MEASURING], env=environment, check=True, timeout=60)
    for path in list(tmp_path.glob("*_0.db")):
        for slot in range(1, 8):
            shutil.copy(path, path.with_name(path.name.replace("_0.db", f"_{slot}.db")))
    for slot in range(8):
        lag_files.write(tmp_path, slot, [lag(8 * number + slot) for number in range(8)], time.monotonic())
    running = view(*[os.getpid()] * 8)

    def scrape_s() -> float:
        began = time.thread_time()
        text = generate_latest(registry_of(tmp_path, running))
        assert text.count(b"promptbus_lag_records{") == 64
        return time.thread_time() - began

    scrape_s()  # the first one fills caches, and a supervisor is scraped for days
    assert statistics.median(scrape_s() for _ in range(9)) < SCRAPE_S
