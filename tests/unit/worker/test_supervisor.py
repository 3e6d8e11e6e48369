"""`promptbus worker` as a process, with scripted programs as its workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.unit.worker.scripted import GOOD, PRELUDE, get, until

PARENT = """
import json, sys
from promptbus_worker.settings import Settings
from promptbus_worker.supervisor import run
sys.exit(run(Settings(_env_file=None, **json.loads(sys.argv[1])), [sys.executable, "-c", sys.argv[2]]))
"""


class Parent:
    """`promptbus worker` with scripted workers, as a process."""

    def __init__(self, program: str, **settings: object) -> None:
        settings = {"metrics_port": 0, "log_format": "json", **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, json.dumps(settings), program],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[dict[str, object]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"message": line})

    def address(self) -> str:
        until(lambda: any("http://" in str(entry["message"]) for entry in self.log), "the address in the log")
        (line,) = [str(entry["message"]) for entry in self.log if "http://" in str(entry["message"])]
        return line.partition("http://")[2].partition(" ")[0]

    def ready(self) -> str:
        address = self.address()
        until(lambda: get(address, "/ready")[0] == 200, "ready")
        return address

    def ended(self, seconds: float = 20.0) -> int:
        code = self.process.wait(seconds)
        self.reader.join(seconds)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(20)
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def parent_of(program: str, **settings: object) -> Iterator[Parent]:
    parent = Parent(program, **settings)
    try:
        yield parent
    finally:
        parent.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "stays").touch()
    with parent_of(GOOD, worker_processes=2, prometheus_multiproc_dir=str(tmp_path)) as parent:
        address = parent.ready()
        assert get(address, "/live") == (200, "ok\n")
        assert "promptbus_workers 2.0" in get(address, "/metrics")[1]
        assert len(list(tmp_path.iterdir())) == 2
        parent.process.send_signal(number)
        assert parent.ended() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["stays"]


def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    program = GOOD.replace("signal.SIG_IGN", f"lambda *_: open({str(tmp_path / 'hit')!r}, 'w').close()")
    with parent_of(program) as parent:
        parent.ready()
        os.killpg(parent.process.pid, signal.SIGINT)
        assert parent.ended() == 0
    assert not (tmp_path / "hit").exists()


def test_the_second_signal_kills(tmp_path: Path) -> None:
    with parent_of(PRELUDE + "beat()\nwhile True: time.sleep(1)", worker_drain_s=1000) as parent:
        address = parent.ready()
        parent.process.send_signal(signal.SIGTERM)
        until(lambda: get(address, "/ready")[1] == "stopping: asked to stop\n", "draining")
        parent.process.send_signal(signal.SIGTERM)
        assert parent.ended() == 3


def test_workers_drain_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    program = PRELUDE + f"serve()\nopen({str(tmp_path)!r} + f'/drained-{{slot}}', 'w').close()"
    with parent_of(program, worker_processes=2, prometheus_multiproc_dir=str(tmp_path)) as parent:
        parent.ready()
        children = psutil.Process(parent.process.pid).children()
        parent.process.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
    assert len(list(tmp_path.glob("drained-*"))) == 2


def test_a_taken_port_is_one_sentence_and_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with parent_of(GOOD, metrics_port=port) as parent:
            assert parent.ended() == 2
            assert [entry["message"] for entry in parent.log] == [
                f"METRICS_PORT {port} is taken on 127.0.0.1: set another one, or 0 for any"
            ]


def test_a_metrics_folder_that_cannot_be_made_is_one_sentence_and_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with parent_of(GOOD, prometheus_multiproc_dir=str(tmp_path / "file" / "x")) as parent:
        assert parent.ended() == 2
        (entry,) = parent.log
        assert str(entry["message"]).startswith("PROMETHEUS_MULTIPROC_DIR ")


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_supervisor_loads_none_of_the_workers_libraries() -> None:
    heavy = {"numpy", "aiohttp", "confluent_kafka", "tritonclient", "uvloop", "gevent"}
    assert not (heavy | {"promptbus_worker.metrics"}) & loaded_by("promptbus_worker.supervisor")


def test_a_worker_that_speaks_plain_http_starts_without_tritonclient() -> None:
    """Half of its start was the import of what it does not need."""
    assert not {"numpy", "aiohttp", "tritonclient", "gevent"} & loaded_by("promptbus_worker.worker")
