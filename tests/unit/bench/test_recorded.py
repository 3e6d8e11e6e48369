"""A ratio that falls beyond its tolerance is a step back; nothing else is."""

from __future__ import annotations

from pathlib import Path

from bench import recorded
from bench.comparisons import COMPARISONS
from bench.recorded import Recorded
from tests.unit.bench.made import results

RATIO = "instant model: promptbus ÷ bare loop"


def test_a_ratio_within_tolerance_is_no_step_back() -> None:
    assert recorded.step_backs(results(), {RATIO: Recorded(1.25, 0.15)}) == []


def test_a_ratio_beyond_tolerance_is_named_with_both_numbers() -> None:
    (sentence,) = recorded.step_backs(results(), {RATIO: Recorded(1.5, 0.15)})
    assert sentence.startswith(f"{RATIO} fell to 1.10 (1.10–1.14): 1.50 is recorded, and less than 1.27")


def test_a_slow_machine_is_no_step_back() -> None:
    slow = results()
    for name in slow.rows["instant"]:
        assert slow.rows["instant"][name][1].prompts_per_s <= slow.rows["instant"][name][0].prompts_per_s / 2
    assert recorded.step_backs(slow, {RATIO: Recorded(1.1, 0.05)}) == []


def test_what_was_not_measured_or_never_recorded_is_not_judged() -> None:
    known = {"real model: promptbus ÷ bare loop": Recorded(9.0)}
    assert recorded.step_backs(results(), known) == []
    assert recorded.judged(results(), known) == 0
    assert recorded.judged(results(), known | {RATIO: Recorded(1.0)}) == 1


def test_recording_keeps_tolerances_and_what_this_run_did_not_measure(tmp_path: Path) -> None:
    file = tmp_path / "recorded.json"
    recorded.record(results(), file)
    first = recorded.load(file)
    assert first[RATIO] == Recorded(1.1, recorded.TOLERANCE)
    file.write_text(file.read_text().replace("0.15", "0.3"))
    recorded.record(results((10_000, 5_000, 10_500)), file)
    assert recorded.load(file)[RATIO] == Recorded(0.5, 0.3)
    only_slow = results()
    del only_slow.rows["instant"]
    recorded.record(only_slow, file)
    assert recorded.load(file)[RATIO] == Recorded(0.5, 0.3)


def test_the_recorded_ratios_are_ones_that_are_measured() -> None:
    known = recorded.load()
    names = {comparison.name for comparison in COMPARISONS}
    assert set(known) <= names
    assert all(0 < entry.tolerance < 0.5 for entry in known.values())
