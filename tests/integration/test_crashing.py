"""Workers that crash again and again, each amid its counting: what /metrics has said stays true."""

from __future__ import annotations

from pathlib import Path

from promptbus_worker.exposition import registry_of
from tests.unit.worker.scripted import PRELUDE, until
from tests.unit.worker.test_fleet import Running, fleet_of


def scraped(directory: Path, running: Running, name: str) -> list[float]:
    """The values of all series of this name."""
    return [
        sample.value
        for family in registry_of(directory, running.fleet.view).collect()
        for sample in family.samples
        if sample.name == f"promptbus_{name}"
    ]


def test_sixty_crashes_cost_no_count_leave_no_file_and_no_series(tmp_path: Path) -> None:
    program = (
        PRELUDE
        + "from promptbus_worker.metrics import Metrics\nmetrics = Metrics(['m'])\n"
        + """
beat()
metrics.in_flight_requests.set(100)
lives = metrics.commits_total["ok"]
lives.inc()
if lives._value.get() <= 15:  # the value that its predecessors left
    while True:
        metrics.retries_total["timeout"].inc()
        if metrics.retries_total["timeout"]._value.get() % 50 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
metrics.in_flight_requests.set(1)
serve()
"""
    )
    seen: list[float] = []
    files: set[int] = set()

    def crashed_enough() -> bool:
        seen.append(sum(scraped(tmp_path, running, "retries_total")))
        files.add(len(list(tmp_path.iterdir())))
        return running.fleet.view.restarts == 60 and running.ready()

    with fleet_of(program, tmp_path, processes=4) as running:
        until(crashed_enough, "four workers after fifteen crashes each", 120)
        assert seen == sorted(seen), "a counter fell"
        assert seen[-1] == 60 * 50
        assert max(files) <= 4 * 4, "a counter, a histogram and two gauge files for each slot"
        until(
            lambda: scraped(tmp_path, running, "in_flight_requests") == [4], "only the living are in flight"
        )
        running.fleet.stop()
        assert running.ended() == 0
        assert scraped(tmp_path, running, "in_flight_requests") == []
        assert scraped(tmp_path, running, "worker_resident_memory_bytes") == []
        assert sum(scraped(tmp_path, running, "commits_total")) == 64
