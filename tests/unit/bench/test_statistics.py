"""Medians of rounds' ratios, spreads, percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import percentile, ratios, shown_rate, spread


def test_what_a_round_does_to_both_cancels_out() -> None:
    assert ratios([20.0, 2.0, 30.0], [10.0, 1.0, 15.0]) == (2.0, 2.0, 2.0)


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    found = ratios([10.0, 40.0, 30.0], [10.0, 10.0, 20.0])
    assert found == (1.5, 1.0, 4.0)


def test_rounds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no round"):
        spread([])
    with pytest.raises(ValueError, match="no value"):
        percentile([], 50)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 95, 99, 100)] == [1, 1, 50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_a_percentile_leaves_no_more_than_its_rest_above(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    above = sum(value > found for value in ordered)
    assert above <= len(ordered) * (100 - percent) / 100 + 1e-9 * len(ordered)


@pytest.mark.parametrize(
    ("rate", "shown"), [(7.44, "7.4"), (9.4, "9.4"), (212.4, "212"), (28_150.0, "28,150")]
)
def test_a_rate_has_as_many_digits_as_say_something(rate: float, shown: str) -> None:
    assert shown_rate(rate) == shown
