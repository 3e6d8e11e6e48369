"""Damaged value files: none of them fails a scrape, hangs it, or keeps a worker from starting."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from promptbus_worker.exposition import registry_of
from promptbus_worker.health import View
from promptbus_worker.metric_files import is_sound, set_damaged_aside, sound

VIEW = View(at=0, stopping=None, restarts=3, slots=())
START = "from promptbus_worker.metrics import Metrics; m = Metrics(['m']); m.commits_total['ok'].inc()"


def write(path: Path, **values: float) -> None:
    """A sound file with these values of one counter."""
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]  # untyped there
    for reason, value in values.items():
        key = mmap_key("promptbus_retries", "promptbus_retries_total", ["reason"], [reason], "help")
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]  # untyped there
    file.close()  # type: ignore[no-untyped-call]  # untyped there


def scrape(directory: Path) -> dict[str, float]:
    return {
        sample.name + str(sample.labels or ""): sample.value
        for family in registry_of(directory, VIEW).collect()
        for sample in family.samples
    }


def test_a_sound_file_is_merged_and_nothing_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "counter_0.db", timeout=3, bisect=4)
    write(tmp_path / "counter_1.db", timeout=5)
    values = scrape(tmp_path)
    assert values["promptbus_retries_total{'reason': 'timeout'}"] == 8
    assert values["promptbus_metrics_files_corrupt"] == 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut within the head": lambda data: data[:3],
    "cut within an entry": lambda data: data[:40],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: b"\xff" * 4096,
    "uses more than it has": lambda data: struct.pack("i", len(data) + 1) + data[4:],
    "uses less than nothing": lambda data: struct.pack("i", -8) + data[4:],
    "a key of negative length": lambda data: data[:8] + struct.pack("i", -100) + data[12:],
    "a key that is no JSON": lambda data: data[:12] + b"{" + data[13:],
    "a key that is other JSON": lambda data: data[:12] + b"1" + b" " * (len(data) - 13),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_left_out_and_counted(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "counter_0.db", timeout=3)
    write(tmp_path / "counter_1.db", timeout=5)
    victim = tmp_path / "counter_1.db"
    victim.write_bytes(DAMAGE[damage](victim.read_bytes()))
    values = scrape(tmp_path)
    assert values["promptbus_metrics_files_corrupt"] == 1
    assert values["promptbus_retries_total{'reason': 'timeout'}"] == 3
    assert values["promptbus_worker_restarts_total"] == 3


@pytest.mark.parametrize(
    "name", ["x.db", "gauge.db", "gauge_1.db", "gauge_all_1.db", "counter_x.db", "info_0.db"]
)
def test_a_file_of_another_kind_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, timeout=3)
    assert scrape(tmp_path)["promptbus_metrics_files_corrupt"] == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), junk=st.binary(min_size=1, max_size=24), cut=st.integers(0, 500))
def test_whatever_is_overwritten_or_cut_the_scrape_ends_and_answers(
    tmp_path: Path, at: int, junk: bytes, cut: int
) -> None:
    victim = tmp_path / "counter_0.db"
    victim.unlink(missing_ok=True)
    write(victim, timeout=3, bisect=1, connection=7)
    data = bytearray(victim.read_bytes())
    data[at : at + len(junk)] = junk
    victim.write_bytes(data[: len(data) - cut] if cut < 400 else data[:cut])
    assert scrape(tmp_path)["promptbus_metrics_files_corrupt"] == (0 if is_sound(victim) else 1)


def test_a_worker_begins_a_damaged_file_of_its_slot_anew_and_it_stays_counted(tmp_path: Path) -> None:
    def run() -> None:
        environment = {**os.environ, "PROMPTBUS_SLOT": "0", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", START], env=environment, check=True, timeout=60)

    for _ in range(2):  # twice: a second damage takes the place of the first
        (tmp_path / "counter_0.db").write_bytes(b"\xff" * 100)
        (tmp_path / "counter_1.db").write_bytes(b"")
        run()
        good, bad = sound(tmp_path)
        assert "counter_0.db" in [path.name for path in good]
        assert sorted(path.name for path in bad) == ["counter_0.corrupt", "counter_1.db"], "1 is another's"
        assert scrape(tmp_path)["promptbus_commits_total{'result': 'ok'}"] == 1
        assert scrape(tmp_path)["promptbus_metrics_files_corrupt"] == 2


def test_nothing_damaged_nothing_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "counter_0.db", timeout=3)
    assert set_damaged_aside(tmp_path, 0) == []
    assert [path.name for path in tmp_path.iterdir()] == ["counter_0.db"]
