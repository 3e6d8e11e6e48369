"""Which figures are held against which, and what they should come to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.contenders.known import BARE_LOOP, ONE_AT_A_TIME, PERF_ANALYZER, PROMPTBUS, PROMPTBUS_2
from bench.measuring.figures import Figures
from bench.measuring.run import CONTENDER
from bench.results import Results
from bench.statistics import Spread, ratios, spread
from bench.workloads import SLOW_CAPACITY


def _by_round(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """None if one of the two is missing, or of some rounds only."""
    return ratios(ours, theirs) if ours and len(ours) == len(theirs) else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Prompts per second of one row and contender, divided by those of another; more is better."""

    name: str
    row: str
    contender: str
    other_row: str
    other: str

    def of(self, results: Results) -> Spread | None:
        """None if one of the two was not measured."""
        ours = [figures.prompts_per_s for figures in results.of(self.row, self.contender)]
        theirs = [figures.prompts_per_s for figures in results.of(self.other_row, self.other)]
        return _by_round(ours, theirs)


@dataclass(frozen=True, slots=True)
class Share:
    """Prompts per second of one row and contender as a share of what is possible; more is better."""

    name: str
    row: str
    contender: str
    possible: float

    def of(self, results: Results) -> Spread | None:
        """None if it was not measured."""
        ours = [figures.prompts_per_s / self.possible for figures in results.of(self.row, self.contender)]
        return spread(ours) if ours else None


def _beside(name: str, row: str, contender: str, other: str) -> Ratio:
    return Ratio(name, row, contender, row, other)


COMPARISONS: tuple[Ratio | Share, ...] = (
    _beside("instant model: promptbus ÷ bare loop", "instant", PROMPTBUS, BARE_LOOP),
    _beside("instant model: promptbus, 2 processes ÷ bare loop", "instant", PROMPTBUS_2, BARE_LOOP),
    _beside("instant model: promptbus ÷ perf_analyzer", "instant", PROMPTBUS, PERF_ANALYZER),
    _beside("instant model: promptbus ÷ one at a time", "instant", PROMPTBUS, ONE_AT_A_TIME),
    Share("150 ms × 4: promptbus, share of capacity", "slow", PROMPTBUS, SLOW_CAPACITY),
    Share("150 ms × 4: one at a time, share of capacity", "slow", ONE_AT_A_TIME, SLOW_CAPACITY),
    _beside("150 ms × 4: promptbus ÷ bare loop", "slow", PROMPTBUS, BARE_LOOP),
    _beside("real model: promptbus ÷ bare loop", "real", PROMPTBUS, BARE_LOOP),
    _beside("prompts of 1 KB: promptbus ÷ bare loop", "1kb", PROMPTBUS, BARE_LOOP),
    _beside("prompts of 100 KB: promptbus ÷ bare loop", "100kb", PROMPTBUS, BARE_LOOP),
    Ratio("backlog of 1 M ÷ 10 k", "backlog-1m", PROMPTBUS, "backlog-10k", PROMPTBUS),
    Ratio("100,000 behind an open offset ÷ behind none", "held-back", PROMPTBUS, "one-partition", PROMPTBUS),
)


@dataclass(frozen=True, slots=True)
class Aim:
    """One measure that promptbus is to reach. `figures` of `row` become a number by `value`; None: not measured.

    `beside`: the number is divided by this contender's of the same round.
    """

    measure: str
    goal: str
    row: str
    value: Callable[[Figures], float | None]
    bound: float
    unit: str
    at_least: bool = False
    digits: int = 0
    beside: str | None = None

    def measured(self, results: Results) -> Spread | None:
        """Over the rounds."""
        ours = self._values(results, PROMPTBUS)
        if self.beside is None:
            return spread(ours) if ours else None
        return _by_round(ours, self._values(results, self.beside))

    def _values(self, results: Results, contender: str) -> list[float]:
        values = [self.value(figures) for figures in results.of(self.row, contender)]
        return [value for value in values if value is not None]


def _share(figures: Figures) -> float:
    return figures.prompts_per_s / SLOW_CAPACITY


def _cpu_us(figures: Figures) -> float:
    return figures.cpu_us[CONTENDER]


AIMS: tuple[Aim, ...] = (
    Aim(
        "prompts/s through Kafka ÷ bare loop without Kafka",
        "≥ 1.0",
        "instant",
        lambda f: f.prompts_per_s,
        1,
        "",
        at_least=True,
        digits=2,
        beside=BARE_LOOP,
    ),
    # Two machines, or two hours of one, differ by a factor of two; so the aim is also what it was beside the bare loop's.
    Aim(
        "CPU of the worker per prompt ÷ bare loop's (25 µs ÷ 35 µs)",
        "≤ 0.71",
        "instant",
        _cpu_us,
        0.714,
        "",
        digits=2,
        beside=BARE_LOOP,
    ),
    Aim("CPU of the worker per prompt", "≤ 25 µs", "instant", _cpu_us, 25, "µs", digits=1),
    Aim(
        "share of the capacity of a model of 150 ms, 4 instances",
        "≥ 0.98",
        "slow",
        _share,
        0.98,
        "",
        at_least=True,
        digits=3,
    ),
    Aim("produce → reply read, 500/s, p50", "≤ 5 ms", "latency-500", lambda f: f.p50_ms, 5, "ms", digits=1),
    Aim("produce → reply read, 500/s, p99", "≤ 20 ms", "latency-500", lambda f: f.p99_ms, 20, "ms", digits=1),
    Aim(
        "memory of a worker process, backlog of 10 k",
        "≤ 150 MB",
        "backlog-10k",
        lambda f: f.peak_mb,
        150,
        "MB",
    ),
    Aim(
        "memory of a worker process, backlog of 1 M", "≤ 150 MB", "backlog-1m", lambda f: f.peak_mb, 150, "MB"
    ),
    Aim("start → first record polled", "≤ 2 s", "instant", lambda f: f.first_poll_s, 2, "s", digits=2),
)
