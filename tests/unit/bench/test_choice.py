"""What is measured, as the options say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import prompts
from bench.__main__ import chosen, main, parser
from bench.contenders.known import CONTENDERS, PROMPTBUS
from bench.workloads import DEFAULT, EVERY, Workload
from promptbus.messages import decode_request
from stack.errors import StackError

PROJECT = Path(__file__).resolve().parents[3]


def pick(*arguments: str) -> list[Workload]:
    """The workloads of these options."""
    return chosen(parser().parse_args(arguments))


@pytest.mark.parametrize("program", ["bench", "bench.capacity", "bench.transports"])
def test_each_program_says_how_it_is_called(program: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("usage: ")


def test_everything_but_what_must_be_named() -> None:
    assert tuple(workload.name for workload in pick()) == DEFAULT


def test_quick_has_no_peers_and_few_workloads() -> None:
    assert [workload.name for workload in pick("--quick")] == ["instant", "slow", "latency"]
    assert all(not CONTENDERS[name].is_peer for workload in pick("--quick") for name in workload.contenders)


def test_peers_take_part_only_when_asked() -> None:
    with_peers = {w.name for w in pick("--peers") if any(CONTENDERS[name].is_peer for name in w.contenders)}
    assert with_peers == {"instant", "slow"}
    assert not any(CONTENDERS[name].is_peer for w in pick() for name in w.contenders)


def test_workloads_and_contenders_by_name() -> None:
    (only,) = pick("--workloads", "instant", "--contenders", PROMPTBUS, "--window", "1")
    assert (only.name, only.contenders, only.window_s) == ("instant", (PROMPTBUS,), 1)
    with pytest.raises(StackError, match="no workload instnat; there are instant"):
        pick("--workloads", "instnat")
    with pytest.raises(StackError, match="no contender nobody"):
        pick("--contenders", "nobody")


def test_an_unknown_workload_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workloads", "nothing"]) == 1
    assert "There is no workload nothing" in capsys.readouterr().err


def test_every_contender_of_a_workload_exists() -> None:
    assert {name for workload in EVERY for name in workload.contenders} <= set(CONTENDERS)


@pytest.mark.parametrize("size", [20, 1_000, 100_000])
def test_prompts_have_their_size_and_are_valid_requests(size: int) -> None:
    assert len(prompts.prompt(7, size).encode()) == size
    key, value = prompts.request(7, size, 16)
    request = decode_request(value)
    assert (request.request_id, request.prompt) == (key.decode(), prompts.prompt(7, size))


def test_an_answer_must_be_of_its_own_request() -> None:
    assert prompts.answers(b"r-00000007", b'{"response": "answer to 00000007"}')
    assert not prompts.answers(b"r-00000007", b'{"response": "answer to 00000008"}')
    assert not prompts.answers(b"r-00000007", b'{"error": {}}')
    assert not prompts.answers(None, None)


def test_help_names_every_workload() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    for workload in EVERY:
        assert workload.name in shown
