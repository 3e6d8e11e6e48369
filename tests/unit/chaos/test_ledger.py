"""What the ledger file says of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import run as chaos
from tests.chaos.judgement import Verdict
from tests.chaos.run import Report, write


@pytest.fixture(autouse=True)
def ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chaos, "LEDGERS", tmp_path)
    return tmp_path


def head(ledger: Path) -> dict[str, object]:
    first: dict[str, object] = json.loads(ledger.read_text().splitlines()[0])
    return first


def test_an_interrupted_run_is_not_clean(ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(chaos, "running", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chaos.run(seed=7, brokers=1, minutes=1, say=print)
    found = head(ledgers / "7-1.json")
    assert (found["finished"], found["clean"], found["requests"]) == (False, False, 0)


@pytest.mark.parametrize(
    ("verdict", "failures", "clean"),
    [(Verdict(), [], True), (Verdict(lost=["r-1: gone"]), [], False), (Verdict(), ["no load"], False)],
)
def test_a_finished_run_is_clean_if_nothing_is_wrong(
    verdict: Verdict, failures: list[str], clean: bool
) -> None:
    report = Report(7, 1, {}, failures=failures, verdict=verdict, finished=True)
    write(report)
    assert (head(report.ledger)["finished"], head(report.ledger)["clean"]) == (True, clean)
