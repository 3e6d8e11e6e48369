"""Medians, spreads and percentiles of a few rounds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """What rounds came to: their median, the least and the most."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for none."""
    if not values:
        raise ValueError("no round, no median")
    return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of each round's ratio: what both had in common in a round, such as a busy machine, cancels out.

    Raises ValueError if the numbers of rounds differ or there is none.
    """
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order: the least that `percent` % are not above.

    Raises ValueError for none.
    """
    if not ordered:
        raise ValueError("no value, no percentile")
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(0, rank - 1)]


def shown_rate(per_second: float) -> str:
    """With a decimal where a whole number would hide a tenth of it."""
    return f"{per_second:,.1f}" if per_second < 10 else f"{per_second:,.0f}"
