"""The chaos schedule: repeatable, complete, and sensible where two faults meet."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.chaos.schedule import ALONE, FAMILIES, FAMILY, FREEZES, Kind, one_round, schedule

SESSION_S = 6.0


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert list(islice(schedule(7, 3, SESSION_S), 200)) == list(islice(schedule(7, 3, SESSION_S), 200))


def test_another_seed_makes_another_schedule() -> None:
    assert one_round(7, 3, SESSION_S) != one_round(8, 3, SESSION_S)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("brokers", [1, 3])
def test_every_round_has_every_kind_once(seed: int, brokers: int) -> None:
    kinds = sorted(fault.kind for step in one_round(seed, brokers, SESSION_S) for fault in step)
    assert kinds == sorted(kind for kind in Kind if brokers > 1 or kind is not Kind.KILL_CONTROLLER)


def test_every_kind_belongs_to_one_family() -> None:
    assert sorted(kind for kinds in FAMILIES.values() for kind in kinds) == sorted(Kind)


def test_faults_that_meet_are_of_different_families_and_kafkas_strike_last() -> None:
    met = [step for seed in range(50) for step in one_round(seed, 3, SESSION_S) if len(step) > 1]
    assert len(met) > 100
    for first, second in met:
        assert FAMILY[first.kind] != FAMILY[second.kind]
        assert FAMILY[first.kind] != "Kafka"
        assert FAMILY[second.kind] != "Triton"
        assert not {first.kind, second.kind} & set(ALONE)


def test_freezes_outlast_the_session() -> None:
    frozen = [f for seed in range(20) for s in one_round(seed, 1, SESSION_S) for f in s if f.kind in FREEZES]
    assert len(frozen) == 40
    assert all(fault.hold_s > SESSION_S for fault in frozen)


def test_kinds_can_be_left_out_and_change_nothing_else() -> None:
    whole = [fault for step in one_round(5, 1, SESSION_S) for fault in step]
    fewer = [fault for step in one_round(5, 1, SESSION_S, FREEZES) for fault in step]
    assert fewer == [fault for fault in whole if fault.kind not in FREEZES]
