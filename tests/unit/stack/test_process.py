"""The guard, with small programs in the place of servers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.errors import StartFailed
from stack.process import Process, server_environment

# Starts a child of its own that leaves the process group, prints both pids, and ignores SIGTERM if told so.
SERVER = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def start(log: Path, *arguments: str, grace_s: float = 5.0) -> Process:
    return Process(
        "The server",
        [sys.executable, "-c", SERVER, *arguments],
        log=log,
        env=server_environment(),
        grace_s=grace_s,
    )


def pids(log: Path) -> list[int]:
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 2)
    return [int(pid) for pid in log.read_text().split()[:2]]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestNothingSurvives:
    def test_a_stop(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        server, child = pids(tmp_path / "log")
        assert process.pid == server
        assert process.stop() == 128 + signal.SIGTERM
        assert not alive(server)
        assert not alive(child)

    def test_a_stop_of_one_that_ignores_sigterm(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log", "stubborn", grace_s=0.2)
        found = pids(tmp_path / "log")
        assert process.stop() == 128 + signal.SIGKILL
        assert not any(alive(pid) for pid in found)

    def test_a_kill(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        found = pids(tmp_path / "log")
        process.kill()
        assert not process.running
        assert not any(alive(pid) for pid in found)

    def test_its_own_end(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        server, child = pids(tmp_path / "log")
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not process.running)
        assert not alive(child)
        assert process.stop() == 128 + signal.SIGKILL

    def test_the_end_of_its_guard(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        server, child = pids(tmp_path / "log")
        os.kill(process.guard_pid, signal.SIGKILL)
        wait_for(lambda: not alive(server))
        os.kill(child, signal.SIGKILL)  # the one case in which a grandchild that left the group stays
        process.stop()

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_the_death_of_its_starter(self, tmp_path: Path, number: signal.Signals) -> None:
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        code = (
            "import sys, time; from pathlib import Path; from stack.process import *\n"
            "p = Process('x', [sys.executable, '-c', sys.argv[1]], log=Path(sys.argv[2]), env=server_environment(), "
            "remove_if_orphaned=[Path(sys.argv[3])])\n"
            "time.sleep(60)"
        )
        starter = subprocess.Popen(
            [sys.executable, "-c", code, SERVER, tmp_path / "log", temporary], stderr=subprocess.DEVNULL
        )
        found = pids(tmp_path / "log")
        starter.send_signal(number)
        starter.wait(10)
        wait_for(lambda: not any(alive(pid) for pid in found))
        wait_for(lambda: not temporary.exists())

    def test_a_failed_start(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        found = pids(tmp_path / "log")
        with pytest.raises(StartFailed, match=r"did not become ready within 0 s\. It sulks\."):
            process.wait_ready(lambda: False, 0.1, lambda log: "It sulks.")
        assert not any(alive(pid) for pid in found)

    def test_a_down_after_it_was_let_go(self, tmp_path: Path) -> None:
        process = start(tmp_path / "log")
        found = pids(tmp_path / "log")
        process.detach()
        assert all(alive(pid) for pid in found)
        os.kill(process.guard_pid, signal.SIGTERM)
        wait_for(lambda: not process.running)
        assert not any(alive(pid) for pid in found)


def test_one_that_ends_at_once_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('no licence'); raise SystemExit(3)"]
    process = Process("The server", argv, log=tmp_path / "log", env=server_environment())
    with pytest.raises(StartFailed, match=r"The server ended with exit code 3 .*\n.*no licence"):
        process.wait_ready(lambda: False, 10, lambda log: "")


def test_one_that_is_killed_while_it_starts_points_to_memory(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    process = Process("The server", argv, log=tmp_path / "log", env=server_environment())
    with pytest.raises(StartFailed, match="memory ran out"):
        process.wait_ready(lambda: False, 10, lambda log: "")


def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="could not be started"):
        Process("The server", ["/does/not/exist"], log=tmp_path / "log", env=server_environment())


def test_servers_see_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", "corp")
    seen = server_environment({"A": "1"})
    assert "HTTP_PROXY" not in seen
    assert "https_proxy" not in seen
    assert seen["NO_PROXY"] == seen["no_proxy"] == "127.0.0.1,localhost,::1"
    assert seen["A"] == "1"


def test_a_worker_of_a_far_triton_keeps_the_proxy_except_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "corp")
    seen = server_environment(keep_proxies=True)
    assert seen["HTTP_PROXY"] == "http://proxy:1"
    assert seen["NO_PROXY"] == "corp,127.0.0.1,localhost,::1"
