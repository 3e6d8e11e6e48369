import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stack import state
from stack.errors import StackError


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    servers = [state.Server("Kafka", 1, "then"), state.Server("Triton", 2, "later")]
    state.write(servers, tmp_path / "state.json")
    assert state.read(tmp_path / "state.json") == servers


def test_nothing_was_started_where_no_file_is(tmp_path: Path) -> None:
    assert state.read(tmp_path / "state.json") == []
    assert state.read_env(tmp_path / "env") == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "Kafka"}]', "null"])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StackError, match="damaged"):
        state.read(tmp_path / "state.json")


def test_env_lines_come_back(tmp_path: Path) -> None:
    state.write_env({"A": "1", "B": "x=y"}, tmp_path / "env")
    assert state.read_env(tmp_path / "env") == {"A": "1", "B": "x=y"}


def test_a_recorded_process_is_ended() -> None:
    process = sleeper()
    server = state.Server("Kafka", process.pid, state.start_of(process.pid))
    assert server.alive
    state.end(server)
    assert process.wait(10) == -signal.SIGTERM
    assert not server.alive


def test_a_reused_pid_is_never_killed() -> None:
    process = sleeper()
    try:
        state.end(state.Server("Kafka", process.pid, "when somebody else had that number"))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_process_that_ended_before_is_no_error() -> None:
    process = sleeper()
    server = state.Server("Kafka", process.pid, state.start_of(process.pid))
    process.kill()
    process.wait()
    state.end(server)
    assert not server.alive


def test_one_that_ignores_sigterm_is_killed() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    state.end(state.Server("Kafka", process.pid, state.start_of(process.pid)), timeout_s=0.2)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


def test_start_times_tell_processes_apart() -> None:
    mine = state.start_of(os.getpid())
    process = sleeper()
    try:
        assert mine
        deadline = time.monotonic() + 5
        while not state.start_of(process.pid):
            assert time.monotonic() < deadline
        assert state.start_of(process.pid) != mine
    finally:
        process.kill()
        process.wait()
    assert state.start_of(process.pid) == ""
