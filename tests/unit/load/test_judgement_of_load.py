"""What decides about a load run can find each violation."""

from __future__ import annotations

from math import inf

import pytest

from tests.load.flow import Asked, violations
from tests.load.overload import normal_after_s
from tests.load.watch import TOLERANCES, not_flat, thirds


def test_thirds_are_medians_of_a_time_in_three_parts() -> None:
    assert thirds([1, 1, 9, 2, 2, 2, 3, 3, 0]) == [1, 2, 3]
    assert thirds([1.0] * 8) == [], "too few to say anything"


@pytest.mark.parametrize("measure", TOLERANCES)
def test_what_grows_on_in_the_last_third_is_not_flat(measure: str) -> None:
    tolerance = TOLERANCES[measure]
    assert not_flat(measure, [1, 50, 50 + tolerance]) is None, "warming up is not growing"
    assert not_flat(measure, [1, 50, 50.1 + tolerance])
    assert not_flat(measure, [])


def answered(at: float, after_s: float, code: str = "ok", deadline: float | None = None) -> Asked:
    return Asked(at, deadline, at + after_s, code, 1)


def test_all_is_normal_again_from_the_first_second_in_which_nearly_all_are_answered_soon() -> None:
    asked = [answered(100 + n / 10, 3 if n < 25 else 0.2) for n in range(60)]
    assert normal_after_s(asked, 100, 0.5) == 3
    assert normal_after_s(asked, 100, 5) == 0
    assert normal_after_s([answered(100, 0.1, "expired")], 100, 5) == inf


@pytest.mark.parametrize(
    ("request_", "violation"),
    [
        (Asked(1, None), "1 requests without a reply"),
        (Asked(1, None, 2, "ok", 2), "1 requests with several replies"),
        (answered(1, 1, "internal"), "1 errors beside expired"),
        (answered(1, 1, "unavailable", deadline=2), "1 errors beside expired"),
        (answered(1, 1, "expired"), "1 requests expired before their deadline"),
        (answered(1, 1, "expired", deadline=2.01), "1 requests expired before their deadline"),
    ],
)
def test_each_violation_is_found(request_: Asked, violation: str) -> None:
    assert violations([request_, answered(1, 1)]) == [violation]


def test_an_answer_and_an_honest_expiry_are_none() -> None:
    assert violations([answered(1, 1), answered(1, 1, "expired", deadline=2)]) == []
