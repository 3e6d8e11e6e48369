"""Every fault once, seeded: nothing lost, unanswered or wrong. `make chaos` goes on for longer."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import summary
from tests.chaos.run import ORDERING, Report, run
from tests.chaos.schedule import FAMILIES, Kind

SEED = 5
# With one broker the full producer queue kills it, and the frozen supervisor takes its processes along.
WITH_THREE = {Kind.KILL_CONTROLLER, Kind.KILL_BROKER, Kind.FREEZE_CHILD}
WITH_ONE = set(Kind) - WITH_THREE


@pytest.mark.timeout(1200)
def test_one_round_of_faults_loses_nothing() -> None:
    report = run(SEED, 1, None, print, WITH_THREE)
    check(report, WITH_ONE)
    assert all(WITH_ONE & set(kinds) for kinds in FAMILIES.values())
    assert report.verdict.requests > 1000


# Once it lost two replies of 5,208 requests (docs/chaos.md, "Not clean").
@pytest.mark.timeout(1200)
def test_the_order_of_keys_outlives_brokers_and_workers() -> None:
    report = run(SEED, 3, None, print, WITH_ONE, env={ORDERING: "key"})
    check(report, WITH_THREE)
    assert report.verdict.in_order > 100


def check(report: Report, kinds: set[Kind]) -> None:
    assert report.clean, summary(report)
    assert {fault.fault for fault in report.fired} == kinds
    assert all(fault.in_hand >= 100 for fault in report.fired)
