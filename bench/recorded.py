"""The ratios that were recorded once, and the tolerance below which a run counts as a step back."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from bench.comparisons import COMPARISONS
from bench.results import Results

FILE = Path(__file__).with_name("recorded.json")
TOLERANCE = 0.15
"""Of a ratio that is recorded for the first time; the file may say another."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A ratio's median, and by which share of it a later median may be lower."""

    ratio: float
    tolerance: float = TOLERANCE

    @property
    def least(self) -> float:
        """What a run must reach."""
        return self.ratio * (1 - self.tolerance)


_ADAPTER = TypeAdapter(dict[str, Recorded])


def load(path: Path = FILE) -> dict[str, Recorded]:
    """By the comparison's name. Raises OSError or ValueError."""
    return _ADAPTER.validate_json(path.read_bytes())


def step_backs(results: Results, recorded: dict[str, Recorded]) -> list[str]:
    """A sentence for each ratio that fell beyond its tolerance. What was not measured is not judged."""
    sentences = []
    for comparison in COMPARISONS:
        known, found = recorded.get(comparison.name), comparison.of(results)
        if known and found and found.median < known.least:
            sentences.append(
                f"{comparison.name} fell to {found.median:.2f} ({found.low:.2f}–{found.high:.2f}): "
                f"{known.ratio:.2f} is recorded, and less than {known.least:.2f} is beyond the tolerance of "
                f"{known.tolerance:.0%}."
            )
    return sentences


def judged(results: Results, recorded: dict[str, Recorded]) -> int:
    """How many ratios could be compared."""
    return sum(c.name in recorded and c.of(results) is not None for c in COMPARISONS)


def record(results: Results, path: Path = FILE) -> None:
    """Write this run's ratios. Those it did not measure stay; tolerances stay."""
    known = load(path) if path.exists() else {}
    for comparison in COMPARISONS:
        found = comparison.of(results)
        if found:
            tolerance = known[comparison.name].tolerance if comparison.name in known else TOLERANCE
            known[comparison.name] = Recorded(round(found.median, 3), tolerance)
    path.write_bytes(_ADAPTER.dump_json(known, indent=1) + b"\n")
