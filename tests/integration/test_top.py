"""`promptbus top` beside real workers."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.integration.system import System, eventually


def top(system: System, port: int) -> str:
    """One plain frame of one second."""
    done = subprocess.run(
        [sys.executable, "-m", "promptbus", "top", "--once", "--interval", "1"],
        env=system.environment(METRICS_PORT=str(port)),
        cwd=system.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_shows_what_real_workers_do(whole: System) -> None:
    workers = whole.start(WORKER_PROCESSES="2").ready()
    whole.ask([f"r-{number}" for number in range(300)])
    whole.publish([{"prompt": ""}])
    whole.collect(301)

    parts = (
        rf"promptbus top http://127.0.0.1:{workers.port}/metrics",
        r"workers 2 +restarts 0 +breaker closed +partitions 6",
        r"\nall +\S+ +301 ",
        r"\nok +\S+ +300 ",
        r"\ninvalid_request +\S+ +1 ",
        r"\nrecords +0 ",
        r"closed by s",
        r" in flight / limit +0 / \d+",
        r"CALLS TO TRITON.*\n+ok +\S+ +[1-9]\d* ",
        r" total +\S+ +[1-9][\d,]*",
        r"MEMORY BY SLOT +0: \d+ MB +1: \d+ MB",
    )
    frames: list[str] = []

    def complete() -> bool:
        frames.append(top(whole, workers.port))
        return all(re.search(part, frames[-1]) for part in parts)

    try:
        eventually("a frame shows it all", complete)
    except AssertionError:
        missing = [part for part in parts if not re.search(part, frames[-1])]
        raise AssertionError(f"{missing} not in\n{frames[-1]}") from None
    assert max(map(len, frames[-1].splitlines())) <= 80
