"""The budget of dead letters: when it is used up, what is tried then, and what makes it whole again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker.dead_letter_budget import IN_A_ROW, TRY_EVERY_S, WINDOW, DeadLetterBudget


def noted(budget: DeadLetterBudget, outcomes: list[bool], now: float = 0.0) -> list[int]:
    """Numbers of the outcomes that exhausted it."""
    return [number for number, failed in enumerate(outcomes, 1) if budget.note(failed, now)]


def test_fifty_in_a_row_exhaust_it() -> None:
    assert noted(DeadLetterBudget(), [True] * 80) == [IN_A_ROW]


def test_one_answer_begins_the_row_anew() -> None:
    assert noted(DeadLetterBudget(), [*[True] * 49, False, *[True] * 49, False]) == []


def test_more_than_half_of_the_last_two_hundred_exhaust_it() -> None:
    budget = DeadLetterBudget()
    assert noted(budget, [True, False] * 100) == [], "half is not more than half"
    assert noted(budget, [True, True]) == [2], "the first one pushed one out"


def test_what_is_older_than_two_hundred_outcomes_is_forgotten() -> None:
    budget = DeadLetterBudget()
    mixed = [*[True] * 40, False] * 2
    assert noted(budget, [*mixed, *[False] * WINDOW, *mixed]) == []


@given(st.lists(st.booleans(), max_size=400))
def test_it_is_exhausted_exactly_when_the_rule_says_so(outcomes: list[bool]) -> None:
    budget = DeadLetterBudget()
    for number, failed in enumerate(outcomes, 1):
        if budget.exhausted:
            break
        tripped = budget.note(failed, 0.0)
        seen = outcomes[:number]
        last = seen[-WINDOW:]
        row = len(seen) >= IN_A_ROW and all(seen[-IN_A_ROW:])
        assert tripped == budget.exhausted == (row or sum(last) > WINDOW / 2)


def exhausted(now: float = 100.0) -> DeadLetterBudget:
    budget = DeadLetterBudget()
    noted(budget, [True] * IN_A_ROW, now)
    return budget


def test_then_one_batch_at_a_time_every_thirty_seconds() -> None:
    budget = exhausted(100.0)
    assert not budget.may_dispatch(100.0)
    assert budget.resumes_in(110.0) == pytest.approx(TRY_EVERY_S - 10)
    due = 100.0 + TRY_EVERY_S
    assert budget.may_dispatch(due)
    assert budget.resumes_in(due) is None
    budget.begin_trial()
    assert not budget.may_dispatch(due + 100), "one at a time"
    noted(budget, [True] * 8)
    assert not budget.end_trial(due + 5)
    assert not budget.may_dispatch(due + 5)
    assert budget.may_dispatch(due + 5 + TRY_EVERY_S)


@pytest.mark.parametrize(
    ("outcomes", "works"),
    [
        ([False] * 8, True),
        ([False] * 5 + [True] * 3, True),
        ([False] * 4 + [True] * 4, False),
        ([True] * 8, False),
        ([], False),
    ],
    ids=["all answered", "most answered", "half answered", "none answered", "nothing known yet"],
)
def test_a_trial_that_brings_more_answers_than_dead_letters_makes_it_whole(
    outcomes: list[bool], works: bool
) -> None:
    budget = exhausted()
    budget.begin_trial()
    noted(budget, outcomes)
    assert budget.end_trial(200.0) == works
    assert budget.exhausted == (not works)
    if works:
        assert noted(budget, [True] * (IN_A_ROW - 1)) == [], "the old failures are forgotten"


def test_answers_that_were_under_way_when_it_was_exhausted_do_not_make_it_whole() -> None:
    budget = exhausted()
    noted(budget, [False] * 20)
    assert budget.exhausted
