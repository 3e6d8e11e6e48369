"""Worker processes kept running: restart, back-off, drain; scripted programs are the workers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from promptbus_worker.exposition import registry_of
from promptbus_worker.fleet import Fleet
from promptbus_worker.health import not_ready
from promptbus_worker.worker_process import Backoff, describe_exit
from tests.unit.worker.scripted import GOOD, PRELUDE, until, worker


class Running:
    """A fleet in a thread of its own."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self.directory = directory
        self.result: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.result = self.fleet.run()

    def ready(self) -> bool:
        return not not_ready(self.fleet.view, time.monotonic())

    def ended(self, seconds: float = 20.0) -> int:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "the fleet has not ended"
        assert self.result is not None
        return self.result


@contextmanager
def fleet_of(
    program: str, directory: Path, processes: int = 1, drain_s: float = 10.0, stuck_s: float = 60.0
) -> Iterator[Running]:
    fleet = Fleet(
        command=worker(program),
        env=os.environ,
        processes=processes,
        drain_s=drain_s,
        stuck_s=stuck_s,
        metrics_dir=directory,
        kill_margin_s=0.2,
        backoff=lambda: Backoff(first_s=0.01, longest_s=0.05, hopeless_after=3),
    )
    running = Running(fleet, directory)
    try:
        yield running
    finally:
        fleet.stop()
        fleet.stop()
        running.thread.join(20)
        left = [
            child for child in psutil.Process().children(recursive=True) if "promptbus_worker" in repr(child)
        ]
        assert not left


def counted(directory: Path) -> int:
    return len(list(directory.glob("start-*")))


def marks_its_start(directory: Path) -> str:
    return f"open(os.path.join({str(directory)!r}, f'start-{{slot}}-{{os.getpid()}}'), 'w').close()\n"


# -- the back-off ----------------------------------------------------------------------------------------------------


def test_backoff_doubles_up_to_its_longest() -> None:
    backoff = Backoff()
    waits = [backoff.failed(1.0, was_ready=True) for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_backoff_starts_again_after_a_healthy_life() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.failed(1.0, was_ready=True)
    assert backoff.failed(30.0, was_ready=True) == 0.5
    assert backoff.failed(1.0, was_ready=True) == 1.0


def test_a_slot_is_hopeless_after_eight_quick_failures_never_ready() -> None:
    backoff = Backoff()
    for _ in range(7):
        backoff.failed(1.0, was_ready=False)
        assert not backoff.hopeless
    backoff.failed(1.0, was_ready=False)
    assert backoff.hopeless


def test_once_ready_or_long_lived_is_not_hopeless() -> None:
    for lived_s, was_ready in ((1.0, True), (31.0, False)):
        backoff = Backoff()
        for _ in range(7):
            backoff.failed(1.0, was_ready=False)
        backoff.failed(lived_s, was_ready=was_ready)
        backoff.failed(1.0, was_ready=False)
        assert not backoff.hopeless


def test_years_of_failures_do_not_overflow() -> None:
    backoff = Backoff(_failures=10**9)
    assert backoff.failed(0.0, was_ready=True) == 30.0


# -- the fleet -------------------------------------------------------------------------------------------------------


def test_all_workers_become_ready_and_drain(tmp_path: Path) -> None:
    with fleet_of(GOOD, tmp_path, processes=3) as running:
        until(running.ready, "three ready workers")
        running.fleet.stop()
        assert running.ended() == 0


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(4)", "os._exit(77)", "os._exit(0)"]
)
def test_a_worker_that_ends_unasked_is_started_again(tmp_path: Path, end: str) -> None:
    first_dies = f"""
if not os.path.exists({str(tmp_path / "died")!r}):
    open({str(tmp_path / "died")!r}, "w").close()
    {end}
"""
    with fleet_of(PRELUDE + first_dies + "serve()", tmp_path) as running:
        until(lambda: running.ready() and running.fleet.view.restarts == 1, "the second one ready")
        running.fleet.stop()
        assert running.ended() == 0


def test_a_slot_that_never_comes_up_ends_everything_with_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet_of(PRELUDE + marks_its_start(tmp_path) + "os._exit(4)", tmp_path) as running:
        assert running.ended() == 1
    assert counted(tmp_path) == 3
    (sentence,) = [r.getMessage() for r in caplog.records if "in a row" in r.getMessage()]
    assert (
        "worker 0 ended 3 times in a row without ever being ready; the last time it exited with code 4"
        in sentence
    )


def test_while_others_serve_a_crash_loop_is_no_outage(tmp_path: Path) -> None:
    program = (
        PRELUDE
        + marks_its_start(tmp_path)
        + f"""
if slot == 1:
    starts = [name for name in os.listdir({str(tmp_path)!r}) if name.startswith("start-")]
    if len(starts) < 8:
        os._exit(4)
    drained.wait()  # never ready, and not in the middle of a crash when it is told to stop
    sys.exit(0)
serve()
"""
    )
    with fleet_of(program, tmp_path, processes=2) as running:
        until(lambda: counted(tmp_path) >= 8, "far more than three starts of slot 1")
        assert running.thread.is_alive()
        (problem,) = not_ready(running.fleet.view, time.monotonic())
        assert problem.startswith("slot 1: ")
        running.fleet.stop()
        assert running.ended() == 0


@pytest.mark.parametrize("code", [1, 2])
def test_a_reason_that_no_restart_mends_drains_the_others_and_is_the_result(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    program = (
        PRELUDE
        + marks_its_start(tmp_path)
        + f"""
if slot == 1:
    beat(stopping="no right to read topic x")
    os._exit({code})
serve()
open(os.path.join({str(tmp_path)!r}, "other-drained"), "w").close()
"""
    )
    with fleet_of(program, tmp_path, processes=2) as running:
        assert running.ended() == code
    assert (tmp_path / "other-drained").exists() or counted(tmp_path) == 1
    assert "no right to read topic x" in caplog.text


def test_drain_out_of_time_by_its_own_account_is_3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = PRELUDE + "serve(); beat(stopping=DRAINING); os._exit(3)"
    with fleet_of(program, tmp_path) as running:
        until(running.ready, "ready")
        running.fleet.stop()
        assert running.ended() == 3
    assert "worker did not finish draining in time; what it had in flight is read again" in caplog.messages


def test_a_worker_that_does_not_drain_is_killed_after_its_time(tmp_path: Path) -> None:
    with fleet_of(PRELUDE + "beat()\nwhile True: time.sleep(1)", tmp_path, drain_s=0.1) as running:
        until(running.ready, "ready")
        running.fleet.stop()
        assert running.ended(5) == 3


def test_a_frozen_worker_cannot_stop_the_end(tmp_path: Path) -> None:
    with fleet_of(PRELUDE + "beat()\nos.kill(os.getpid(), signal.SIGSTOP)", tmp_path, drain_s=0.1) as running:
        until(running.ready, "ready")
        running.fleet.stop()
        assert running.ended(5) == 3


def test_asked_a_second_time_it_kills_at_once(tmp_path: Path) -> None:
    with fleet_of(PRELUDE + "beat()\nwhile True: time.sleep(1)", tmp_path, drain_s=1000) as running:
        until(running.ready, "ready")
        running.fleet.stop()
        until(lambda: running.fleet.view.stopping, "draining")
        running.fleet.stop()
        assert running.ended(5) == 3


def test_a_worker_stopped_before_it_had_begun_has_drained(tmp_path: Path) -> None:
    mark = f"import os, time; open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(1000)"
    with fleet_of(mark, tmp_path) as running:
        until((tmp_path / "up").exists, "started")
        running.fleet.stop()
        assert running.ended(5) == 0


def test_a_program_that_cannot_be_started_gives_up(tmp_path: Path) -> None:
    fleet = Fleet(
        command=[str(tmp_path / "missing")],
        env=os.environ,
        processes=1,
        drain_s=1,
        stuck_s=60,
        metrics_dir=tmp_path,
        backoff=lambda: Backoff(first_s=0.01, longest_s=0.01, hopeless_after=2),
    )
    assert Running(fleet, tmp_path).ended() == 1


def test_counters_continue_over_a_restart_and_gauges_of_the_dead_vanish(tmp_path: Path) -> None:
    program = (
        PRELUDE
        + f"""
from promptbus_worker.metrics import Metrics
metrics = Metrics(["m"])
metrics.requests_total["m", "ok"].inc(8)
if not os.path.exists({str(tmp_path / "died")!r}):
    metrics.in_flight_requests.set(100)
    open({str(tmp_path / "died")!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
metrics.in_flight_requests.set(2)
serve()
"""
    )

    def value(name: str) -> float | None:
        return registry_of(tmp_path, running.fleet.view).get_sample_value(
            f"promptbus_{name}", LABELS.get(name, {})
        )

    with fleet_of(program, tmp_path) as running:
        until(running.ready, "the second one ready")
        assert value("requests_total") == 16
        assert value("in_flight_requests") == 2
        assert value("workers") == 1
        assert value("worker_restarts_total") == 1
        running.fleet.stop()
        assert running.ended() == 0
        assert value("in_flight_requests") is None
        assert value("requests_total") == 16
        assert value("workers") == 0


LABELS: dict[str, dict[str, str]] = {"requests_total": {"model": "m", "code": "ok"}}


def test_exits_are_described_for_people() -> None:
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-200) == "was killed by signal 200"
    assert describe_exit(77) == "exited with code 77"
