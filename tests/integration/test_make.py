"""`make up`, `make down` and `make demo`, as the Makefile runs them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.state import read, read_env

PROMPTBUS = Path(sys.executable).with_name("promptbus")


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "TRITON_")) and k != "EXISTING"
    }
    return kept | {"PROMPTBUS_STACK_FOLDER": str(folder), "TMPDIR": str(folder), "ENGINE": "canned"} | more


def run(program: str, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", program],
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_in(folder: Path) -> list[int]:
    """Servers run in their own folders."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if cwd.readlink().is_relative_to(folder):
                found.append(int(cwd.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    run("stack.down", tmp_path)


def test_up_answers_prompts_until_down(folder: Path) -> None:
    up = run("stack.up", folder)
    assert up.returncode == 0, up.stdout + up.stderr
    assert 'promptbus ask "What is Kafka?"' in up.stdout
    env = read_env(folder / "env")
    assert {"KAFKA_BOOTSTRAP", "TRITON_URL", "METRICS_PORT"} <= set(env)
    assert [server.name for server in read(folder / "state.json")] == ["Kafka", "Triton", "worker"]

    ask = subprocess.run(
        [PROMPTBUS, "ask", "What is Kafka?"],
        env=environment(folder) | env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ask.returncode == 0, ask.stderr
    assert ask.stdout.strip()

    again = run("stack.up", folder)
    assert again.returncode == 0
    assert "up already" in again.stdout

    worker = read(folder / "state.json")[2]
    os.kill(worker.pid, signal.SIGKILL)
    mended = run("stack.up", folder)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "worker ended by itself" in mended.stdout

    down = run("stack.down", folder)
    assert down.returncode == 0, down.stderr
    assert processes_in(folder) == []
    assert not (folder / "env").exists()
    assert "Nothing is up" in run("stack.down", folder).stdout


def test_up_without_a_worker(folder: Path) -> None:
    up = run("stack.up", folder, WORKER="0")
    assert up.returncode == 0, up.stdout + up.stderr
    assert [server.name for server in read(folder / "state.json")] == ["Kafka", "Triton"]


def test_up_uses_named_services_only_if_told_so(folder: Path) -> None:
    first = folder / "first"
    first.mkdir()
    try:
        assert run("stack.up", first, WORKER="0").returncode == 0
        named = {name: read_env(first / "env")[name] for name in ("KAFKA_BOOTSTRAP", "TRITON_URL")}
        up = run("stack.up", folder, EXISTING="1", **named)
        assert up.returncode == 0, up.stdout + up.stderr
        assert [server.name for server in read(folder / "state.json")] == ["worker"]
        assert read_env(folder / "env")["TRITON_URL"] == named["TRITON_URL"]
    finally:
        run("stack.down", folder)
        run("stack.down", first)


@pytest.mark.parametrize(
    ("program", "moment"), [("up", "Triton"), ("up", "A worker"), ("demo", "Triton 2.51")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(folder: Path, program: str, moment: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", f"stack.{program}"],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        assert process.stdout is not None
        seen = b""
        while moment.encode() not in seen:
            part = os.read(process.stdout.fileno(), 4096)
            assert part, seen
            seen += part
        process.send_signal(number)
        assert process.wait(30) == 130
    assert processes_in(folder) == []
    assert read(folder / "state.json") == []
    assert list(folder.glob("promptbus-*")) == []


def test_up_that_is_killed_leaves_no_process(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "stack.up"], env=environment(folder), stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        while "A worker" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    deadline = time.monotonic() + 15
    while processes_in(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_demo_answers_with_a_real_model_and_leaves_nothing(folder: Path) -> None:
    demo = run("stack.demo", folder, ENGINE="llama_cpp", KAFKA_BOOTSTRAP="production:9092")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "6 of 6 prompts answered by SmolLM2" in demo.stdout
    assert demo.stdout.count(" ms from sent to read") == 6
    assert "Next: make up" in demo.stdout
    assert processes_in(folder) == []
    assert list(folder.glob("promptbus-*")) == []


def test_the_demo_fails_with_prepared_answers(folder: Path) -> None:
    demo = run("stack.demo", folder)
    assert demo.returncode == 1
    assert "no real model was asked" in demo.stderr
