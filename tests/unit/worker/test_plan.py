"""What a transaction may settle: as much as its commit can name. Nothing that is settled is ever left out of a commit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker import commit_metadata
from promptbus_worker.commit_metadata import MAX_CHARS, decode
from promptbus_worker.ledger import Ledger, Ownership, Plan, Tracked


def owned(offsets: range | list[int]) -> tuple[Ledger, Ownership]:
    """One partition from offset 0 on, with these records in hand."""
    ledger = Ledger()
    ownership = ledger.assign("requests", 0)
    ledger.begin(ownership, 0, committed=True)
    for offset in offsets:
        assert ledger.track(ownership, offset, 1) is Tracked.NEW
    return ledger, ownership


def named(plan: Plan, among: range | list[int]) -> set[int]:
    """Which of these offsets the commit says are settled."""
    runs = [(0, plan.commit.offset), *decode(plan.commit.offset, plan.commit.metadata)]
    return {offset for offset in among if any(first <= offset < end for first, end in runs)}


def test_what_the_commit_cannot_name_is_held_back_until_it_can() -> None:
    offsets = range(8_000)
    ledger, ownership = owned(offsets)
    every_other = offsets[1::2]
    (plan,) = ledger.plan({ownership: every_other})
    assert 0 < len(plan.offsets) < len(every_other)
    assert plan.offsets == list(every_other[: len(plan.offsets)]), "the lowest first"
    assert len(plan.commit.metadata) <= MAX_CHARS
    assert named(plan, offsets) == set(plan.offsets)
    ledger.committed(plan)
    held_back = every_other[len(plan.offsets) :]
    assert ledger.plan({ownership: held_back}) == []
    # The lowest one, at which the watermark stands, always goes, and makes room for others.
    (plan,) = ledger.plan({ownership: [0, *held_back]})
    assert plan.offsets[0] == 0
    assert plan.commit.offset == 2
    ledger.committed(plan)
    (last,) = ledger.plan({ownership: [*offsets[2::2], *(o for o in held_back if o not in plan.offsets)]})
    assert last.commit == ("requests", 0, 8_000, "")


def test_gaps_alone_hold_nothing_back() -> None:
    """Offsets that do not exist look like settled ones, and there may be more of them than metadata can name."""
    offsets = range(0, 16_000, 2)
    ledger, ownership = owned(list(offsets))
    (plan,) = ledger.plan({ownership: [offsets[1]]})
    assert plan.offsets == [2]
    assert named(plan, list(offsets)) == {2}
    ledger.committed(plan)
    assert ledger.plan({ownership: [offsets[-1]]}) == [], "that one is too far"


def test_what_has_not_moved_is_not_committed_again() -> None:
    ledger, ownership = owned(range(3))
    assert ledger.plan({}) == []
    (plan,) = ledger.plan({ownership: [0, 1, 2]})
    ledger.committed(plan)
    assert ledger.records_in_hand == 0
    assert ledger.plan({}) == []
    assert ledger.take_commits() == []


def test_a_plan_changes_nothing() -> None:
    ledger, ownership = owned(range(3))
    assert ledger.plan({ownership: [0]}) == ledger.plan({ownership: [0]})
    assert ledger.watermark(ownership) == 0
    assert ledger.records_in_hand == 3


def test_a_position_that_nobody_committed_and_an_epoch_that_is_over() -> None:
    ledger = Ledger()
    new = ledger.assign("requests", 0)
    assert ledger.plan({new: []}) == []
    ledger.begin(new, 7, committed=False)
    (plan,) = ledger.plan({})
    assert plan.commit == ("requests", 0, 7, "")
    ledger.end(new)
    assert ledger.plan({new: [7]}) == []


@given(
    gaps=st.lists(st.integers(1, 3), min_size=1, max_size=60),
    rounds=st.lists(st.lists(st.integers(0, 59)), min_size=1, max_size=8),
    room=st.integers(4, 40),
)
def test_every_commit_names_all_that_is_settled_and_nothing_else(
    gaps: list[int], rounds: list[list[int]], room: int
) -> None:
    offsets = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit_metadata, "_MAX_BYTES", room)
        ledger, ownership = owned(offsets)
        settled: set[int] = set()
        waiting: set[int] = set()
        for indices in [*rounds, list(range(60))]:
            waiting |= {offsets[i] for i in indices if i < len(offsets)} - settled
            for plan in ledger.plan({ownership: waiting}):
                settled |= set(plan.offsets)
                waiting -= set(plan.offsets)
                assert named(plan, offsets) >= settled, "it would be answered again"
                assert named(plan, offsets) <= settled, "it would never be answered"
                ledger.committed(plan)
        assert not waiting, "once all are answered, all can be named"
