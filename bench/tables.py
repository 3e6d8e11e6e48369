"""Results as tables: the same cells for the terminal and for Markdown."""

import unicodedata
from collections.abc import Sequence

from bench.comparisons import AIMS, COMPARISONS, Aim
from bench.contenders.known import BARE_LOOP, PROMPTBUS
from bench.measuring.figures import Figures
from bench.measuring.run import CONTENDER, KAFKA, MODEL, TRITON
from bench.results import Results
from bench.statistics import Spread, shown_rate, spread

Table = list[list[str]]
"""Its first row is the heading."""
NOTHING = "–"


def aims(results: Results) -> Table:
    """What promptbus is to reach, and what it came to."""
    rows = [["measure", "aim", "measured", "rounds", ""]]
    for aim in AIMS:
        found = aim.measured(results)
        if found:
            reached = found.median >= aim.bound if aim.at_least else found.median <= aim.bound
            rows.append(
                [aim.measure, aim.goal, _value(aim, found), _range(found, aim.digits), _mark(reached)]
            )
    return rows


def ratios(results: Results) -> Table:
    """Every comparison that could be made."""
    rows = [["ratio", "median", "rounds"]]
    for comparison in COMPARISONS:
        found = comparison.of(results)
        if found:
            rows.append([comparison.name, f"{found.median:.2f}", _range(found, 2)])
    return rows


def throughput(results: Results, row: str) -> Table:
    """Everybody at one workload, the fastest first; medians of all rounds."""
    heading = ["", "prompts/s", "÷ bare loop", "CPU µs", "Triton", "model", "Kafka", "mean batch", "MB"]
    found = sorted(
        results.rows.get(row, {}).items(), key=lambda item: -_median([f.prompts_per_s for f in item[1]])
    )
    bare = results.of(row, BARE_LOOP)
    rows = [heading]
    for name, figures in found:
        cells = [name, shown_rate(_median([f.prompts_per_s for f in figures])), _beside(figures, bare)]
        cells += [_cpu(figures, role) for role in (CONTENDER, TRITON, MODEL, KAFKA)]
        cells += [
            f"{_median([f.mean_batch for f in figures]):.1f}",
            f"{_median([f.peak_mb for f in figures]):.0f}",
        ]
        rows.append(cells)
    return rows


def latency(results: Results) -> Table:
    """Milliseconds at each pace; medians of the rounds' percentiles."""
    rows = [["", "per second", "p50 ms", "p95 ms", "p99 ms", "unanswered"]]
    for row, contenders in results.rows.items():
        kind, _, rate = row.rpartition("-")
        for name, figures in contenders.items():
            if kind.startswith("latency"):
                cells = [[f.p50_ms or 0.0 for f in figures], [f.p95_ms or 0.0 for f in figures]]
                cells.append([f.p99_ms or 0.0 for f in figures])
                missing = sum(f.unanswered for f in figures)
                rows.append([name, rate, *(f"{_median(values):.1f}" for values in cells), str(missing)])
    return rows


def sweeps(results: Results) -> Table:
    """Prompts per second at each concurrency that was tried before the first round."""
    tried = [
        (row, name, rates) for row, contenders in results.sweeps.items() for name, rates in contenders.items()
    ]
    columns = sorted({concurrency for _, _, rates in tried for concurrency in rates}, key=int)
    rows = [["at concurrency", *columns]]
    for row, name, rates in tried:
        cells = [shown_rate(rates[c]) if c in rates else NOTHING for c in columns]
        rows.append([f"{row}, {name}", *cells])
    return rows


def markdown(table: Table) -> str:
    """As Markdown; numbers to the right."""
    heading, *rows = table
    rule = ["---" if number == 0 else "---:" for number in range(len(heading))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, rule, *rows]) + "\n"


def text(table: Table) -> str:
    """In columns, for a terminal."""
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell + " " * (width - _width(cell)) if number == 0 else " " * (width - _width(cell)) + cell
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def report(results: Results) -> str:
    """All of it, for a terminal."""
    parts = []
    for row in results.rows:
        if not row.startswith("latency"):
            parts.append(f"{row}\n{text(throughput(results, row))}")
    for title, table in (
        ("tried before the first round, prompts/s", sweeps(results)),
        ("latency", latency(results)),
        (f"ratios, medians of {results.rounds} rounds", ratios(results)),
        (f"aims of {PROMPTBUS}", aims(results)),
    ):
        if len(table) > 1:
            parts.append(f"{title}\n{text(table)}")
    return "\n\n".join(parts)


def _width(cell: str) -> int:
    return sum(0 if unicodedata.combining(character) else 1 for character in cell)


def _median(values: Sequence[float]) -> float:
    return spread(values).median


def _beside(figures: list[Figures], bare: list[Figures]) -> str:
    if not bare or len(bare) != len(figures):
        return NOTHING
    pairs = zip(figures, bare, strict=True)
    return f"{_median([ours.prompts_per_s / theirs.prompts_per_s for ours, theirs in pairs]):.2f}"


def _cpu(figures: list[Figures], role: str) -> str:
    return f"{_median([f.cpu_us.get(role, 0.0) for f in figures]):,.1f}"


def _range(found: Spread, digits: int) -> str:
    return f"{found.low:.{digits}f}–{found.high:.{digits}f}"


def _value(aim: Aim, found: Spread) -> str:
    return f"{found.median:.{aim.digits}f} {aim.unit}".strip()


def _mark(reached: bool) -> str:
    return "reached" if reached else "not reached"
