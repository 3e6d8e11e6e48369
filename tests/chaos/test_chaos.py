"""One seeded round of faults with one broker: nothing lost, unanswered or wrong. `make chaos` goes on for longer."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import summary
from tests.chaos.run import run
from tests.chaos.schedule import FAMILIES, Kind

SEED = 5
# What others show as well: the full producer queue kills the broker, the frozen supervisor takes its processes along.
WITHOUT = (Kind.KILL_BROKER, Kind.FREEZE_CHILD)


@pytest.mark.timeout(1200)
def test_one_round_of_faults_loses_nothing() -> None:
    report = run(SEED, 1, None, print, WITHOUT)
    assert report.clean, summary(report)
    fired = {fault.fault for fault in report.fired}
    assert fired == set(Kind) - {Kind.KILL_CONTROLLER, *WITHOUT}
    assert all(fired & set(kinds) for kinds in FAMILIES.values())
    assert all(fault.in_hand >= 100 for fault in report.fired)
    assert report.verdict.requests > 1000
