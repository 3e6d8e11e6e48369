"""Who is to blame when a worker process dies: what is kept of it, and what the next processes make of that."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptbus_worker import in_flight_file
from promptbus_worker.crash_suspects import CRASHES, MOST_SUSPECTS, CrashSuspects, KnownSuspects
from promptbus_worker.heartbeat import SLOT_VARIABLE
from promptbus_worker.in_flight_file import ROW_PLACES, InFlightFile
from promptbus_worker.ledger import Ownership, Place
from promptbus_worker.record import Record
from promptbus_worker.worker_process import Exit, is_crash
from tests.unit.worker.path import Path as Worker
from tests.unit.worker.virtual_time import in_virtual_time

# -- the file


def of_slot(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 4) -> InFlightFile:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setenv(SLOT_VARIABLE, "3")
    return InFlightFile.from_environment(rows)


def at(*places: Place) -> list[Record]:
    """A record at each of these partitions and offsets."""
    return [
        Record(Ownership("requests", partition, 1), offset, 0, None, b"{}", None, 2, 0.0)
        for partition, offset in places
    ]


def test_the_file_names_what_is_worked_on_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = of_slot(tmp_path, monkeypatch)
    assert in_flight_file.read(tmp_path, 3) == set()
    first = file.begin(at((0, 5), (7, 2**60)))
    second = file.begin(at((1, 0)))
    assert in_flight_file.read(tmp_path, 3) == {(0, 5), (7, 2**60), (1, 0)}
    file.end(second)
    assert in_flight_file.read(tmp_path, 3) == {(0, 5), (7, 2**60)}
    file.end(first)
    assert in_flight_file.read(tmp_path, 3) == set()


def test_more_than_there_is_room_for_is_left_out_and_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = of_slot(tmp_path, monkeypatch, rows=2)
    places = [(0, offset) for offset in range(3 * ROW_PLACES)]
    many, one = file.begin(at(*places)), file.begin(at((9, 9)))
    assert in_flight_file.read(tmp_path, 3) == set(places[: 2 * ROW_PLACES])
    file.end(many)
    file.end(one)
    file.begin(at((9, 9)))
    assert in_flight_file.read(tmp_path, 3) == {(9, 9)}


DIES = """
import os
from promptbus_worker.in_flight_file import InFlightFile
from tests.unit.worker.test_crash_suspects import at
InFlightFile.from_environment(2).begin(at((0, 17), (1, 4)))
os.abort()
"""


def test_it_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), SLOT_VARIABLE: "3"}
    done = subprocess.run([sys.executable, "-c", DIES], env=env, check=False, capture_output=True)
    assert done.returncode == -signal.SIGABRT
    assert in_flight_file.read(tmp_path, 3) == {(0, 17), (1, 4)}
    in_flight_file.remove(tmp_path, 3)
    assert in_flight_file.read(tmp_path, 3) == set()


# -- the rule


def test_all_that_was_in_flight_is_suspect_and_nobody_is_charged_yet() -> None:
    suspects = CrashSuspects()
    suspects.crashed([(0, 1), (0, 2), (1, 1)])
    assert suspects.crashes == {(0, 1): 0, (0, 2): 0, (1, 1): 0}


def test_the_only_suspect_in_flight_is_charged_whoever_was_with_it() -> None:
    suspects = CrashSuspects()
    suspects.crashed([(0, 1), (0, 2)])
    suspects.crashed([(0, 2)])
    suspects.crashed([(0, 2), (5, 5)])
    assert suspects.crashes == {(0, 1): 0, (0, 2): 2, (5, 5): 0}
    suspects.crashed([(0, 1), (0, 2)])
    assert suspects.crashes == {(0, 1): 0, (0, 2): 2, (5, 5): 0}, "two suspects: it could be either"


def test_a_record_alone_in_flight_is_charged_at_once() -> None:
    suspects = CrashSuspects()
    for _ in range(CRASHES):
        suspects.crashed([(0, 1)])
    assert suspects.crashes == {(0, 1): CRASHES}


def test_the_list_is_bounded() -> None:
    suspects = CrashSuspects()
    suspects.crashed((0, offset) for offset in range(MOST_SUSPECTS + 10))
    assert len(suspects.crashes) == MOST_SUSPECTS


@pytest.mark.parametrize("code", [-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, 134, 77])
def test_ends_that_are_crashes(code: int) -> None:
    assert is_crash(code)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, *Exit])
def test_ends_that_are_not(code: int) -> None:
    assert not is_crash(code)


def test_workers_see_each_new_list(tmp_path: Path) -> None:
    known = KnownSuspects(tmp_path)
    assert known.now() == {}
    suspects = CrashSuspects()
    for crashes in range(3):
        suspects.crashed([(0, 1)])
        suspects.save(tmp_path)
        assert known.now() == {(0, 1): crashes + 1}
    assert KnownSuspects(None).now() == {}


# -- the next process


def with_suspects(worker: Worker, tmp_path: Path, crashes: dict[tuple[int, int], int]) -> None:
    suspects = CrashSuspects()
    suspects.crashes = crashes
    suspects.save(tmp_path)
    worker.dispatcher._reception._suspects = KnownSuspects(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_a_suspect_runs_with_nothing_else_in_flight(tmp_path: Path) -> None:
    @in_virtual_time
    async def test() -> None:
        worker = Worker(concurrency=3)
        with_suspects(worker, tmp_path, {(0, 20): 0, (0, 41): 2})
        worker.model.latency_s = 1
        worker.ask(*[f"p{number}" for number in range(60)])
        await worker.settle(60, within_s=60)
        assert set(worker.codes().values()) == {"ok"}
        for suspect in ("p20", "p41"):
            assert [suspect] in worker.model.calls
            assert worker.model.most_running[suspect] == 1
        assert max(worker.model.most_running.values()) == 3, "the others run side by side"

    test()


def test_a_record_with_three_crashes_is_given_up_unread(tmp_path: Path) -> None:
    @in_virtual_time
    async def test() -> None:
        worker = Worker()
        with_suspects(worker, tmp_path, {(0, 1): CRASHES})
        worker.ask("a", headers=[("request-id", b"first")])
        worker.ask("b", headers=[("request-id", b"by its header"), ("correlation-id", b"c")])
        worker.ask("c")
        await worker.settle(3)
        assert worker.codes() == {"a": "ok", "by its header": "internal", "c": "ok"}
        (dead,) = worker.dead_letters()
        assert dict(dead.headers)["dlq-reason"] == b"internal"
        assert ["b"] not in worker.model.calls

    test()


def test_a_suspect_that_waits_is_given_back_like_any_other(tmp_path: Path) -> None:
    @in_virtual_time
    async def test() -> None:
        worker = Worker(concurrency=1)
        with_suspects(worker, tmp_path, {(0, 9): 1})
        worker.model.latency_s = 1
        worker.ask(*[f"p{number}" for number in range(8)])
        worker.ask(*[f"p{number}" for number in range(8, 12)])
        await asyncio.sleep(0.5)
        worker.dispatcher.drain([worker.owned])
        assert sorted(worker.released_offsets) == [8, 9, 10, 11]
        await worker.settle(8, within_s=5)
        assert worker.ledger.in_hand([worker.owned]) == 0

    test()
