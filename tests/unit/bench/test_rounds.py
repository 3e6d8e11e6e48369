"""Rounds are interleaved, turn around, and go on without who may be missing."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from bench import rounds
from bench.contenders.contender import Command, Contender
from bench.contenders.known import CONTENDERS
from bench.measuring import window
from bench.measuring.figures import Figures
from bench.results import Results
from bench.services import Services
from bench.workloads import Workload
from stack.errors import StackError

NO_SERVICES = cast(Services, None)
WORK = Workload("w", "", ("swept", "plain", "frail"), window_s=1.0)


class Measured:
    """Stands for the measuring; `rates` by name and concurrency, 1 where none is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.fails: set[str] = set()
        self.rates: dict[tuple[str, int], float] = {}
        for contender in (
            Contender("swept", "", lambda _: Command(()), sweep=(1, 4)),
            Contender("plain", "", lambda _: Command(())),
            Contender("frail", "", lambda _: Command(()), prepare=self.prepare, may_be_missing=True),
        ):
            monkeypatch.setitem(CONTENDERS, contender.name, contender)
        monkeypatch.setattr(window, "measure", self.measure)

    def prepare(self) -> None:
        if "prepare" in self.fails:
            raise StackError("No network.\nDetails.")

    def measure(
        self, contender: Contender, workload: Workload, services: Services, concurrency: int = 0
    ) -> Figures:
        self.calls.append((contender.name, concurrency))
        if contender.name in self.fails:
            raise StackError(f"{contender.name} ended:\nlog")
        return Figures(self.rates.get((contender.name, concurrency), 1.0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


def test_every_second_round_turns_around_and_a_sweep_comes_before_the_first(measured: Measured) -> None:
    measured.rates = {("swept", 1): 5.0, ("swept", 4): 9.0}
    results = Results(rounds=2)
    rounds.run([WORK], results, NO_SERVICES, measured.said.append)
    forth = [("swept", 4), ("plain", 0), ("frail", 0)]
    assert measured.calls == [("swept", 1), ("swept", 4), *forth, *forth[::-1]]
    assert results.sweeps == {"w": {"swept": {"1": 5.0, "4": 9.0}}}
    assert [len(figures) for figures in results.rows["w"].values()] == [2, 2, 2]


def test_a_workload_with_a_concurrency_of_its_own_needs_no_sweep(measured: Measured) -> None:
    rounds.run([replace(WORK, concurrency=3)], Results(rounds=1), NO_SERVICES, measured.said.append)
    assert measured.calls == [("swept", 3), ("plain", 3), ("frail", 3)]


def test_who_may_be_missing_is_left_out_from_then_on(measured: Measured) -> None:
    measured.fails = {"frail"}
    results = Results(rounds=3)
    rounds.run([WORK], results, NO_SERVICES, measured.said.append)
    assert measured.calls.count(("frail", 0)) == 1
    assert results.missing == {"frail": "frail ended:"}
    assert set(results.rows["w"]) == {"swept", "plain"}


def test_who_cannot_be_installed_is_left_out_from_the_start(measured: Measured) -> None:
    measured.fails = {"prepare"}
    results = Results(rounds=1)
    (kept,) = rounds.available([WORK], results, measured.said.append)
    assert kept.contenders == ("swept", "plain")
    assert results.missing == {"frail": "No network."}


def test_a_failure_of_anybody_else_ends_it(measured: Measured) -> None:
    measured.fails = {"plain"}
    with pytest.raises(StackError, match="plain ended"):
        rounds.run([WORK], Results(rounds=1), NO_SERVICES, measured.said.append)
