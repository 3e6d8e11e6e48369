"""Results as a picture: one bar for each contender and workload, as SVG."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from bench.contenders.known import BARE_LOOP
from bench.results import Results
from bench.statistics import ratios, shown_rate

WIDTH, LABEL_WIDTH, BAR_ROOM, BAR, GAP = 860, 260, 470, 20, 8
TITLES = {
    "instant": "instant model, prompts of 20 bytes",
    "slow": "150 ms a batch, 4 instances",
    "real": "a real small model",
    "1kb": "prompts of 1 KB",
    "100kb": "prompts of 100 KB",
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 16px }
.group { font-weight: 600 } .faint { fill: #57606a } .ours { fill: #2f6fde } .other { fill: #aab4c0 }
.line { stroke: #57606a; stroke-dasharray: 4 3 } .whisker { stroke: #24292f } .paper { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9198a1 } .other { fill: #57606a } .paper { fill: #0d1117 } .line { stroke: #9198a1 }
  .whisker { stroke: #e6edf3 }
}
"""


class Bar(NamedTuple):
    """`ratio`: prompts per second divided by those of the bare loop; `low` and `high` of the rounds."""

    name: str
    ratio: float
    low: float
    high: float
    prompts_per_s: float


def bars(results: Results, row: str) -> list[Bar]:
    """The contenders of a workload, the fastest first; none without the bare loop."""
    bare = [figures.prompts_per_s for figures in results.of(row, BARE_LOOP)]
    found = []
    for name, rounds in results.rows.get(row, {}).items():
        rates = [figures.prompts_per_s for figures in rounds]
        if bare and len(rates) == len(bare):
            ratio = ratios(rates, bare)
            found.append(Bar(name, *ratio, sorted(rates)[len(rates) // 2]))
    return sorted(found, key=lambda bar: -bar.ratio)


def svg(results: Results) -> str:
    """The whole picture."""
    groups = {row: bars(results, row) for row in TITLES}
    shown = {row: found for row, found in groups.items() if found}
    most = max((bar.high for found in shown.values() for bar in found), default=1.0)
    scale = BAR_ROOM / max(most, 1.0)
    parts: list[str] = []
    top = 66
    for row, found in shown.items():
        parts += _group(TITLES[row], found, top, scale)
        top += 30 + len(found) * (BAR + GAP) + 14
    one = LABEL_WIDTH + scale
    cores, when = results.machine.get("cores", "?"), results.measured_at[:10]
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{top}"/>',
        _text(16, 28, "Prompts per second, divided by a bare tritonclient loop without Kafka", "title"),
        _text(16, 48, f"{cores} cores for everything; medians of {results.rounds} rounds, {when}; thin lines: all rounds", "faint"),
        f'<line class="line" x1="{one:.1f}" x2="{one:.1f}" y1="58" y2="{top - 12}"/>',
    ]  # fmt: skip
    return "\n".join([*head, *parts, "</svg>", ""])


def _group(title: str, found: Sequence[Bar], top: int, scale: float) -> list[str]:
    parts = [_text(16, top + 16, title, "group")]
    for number, bar in enumerate(found):
        y = top + 26 + number * (BAR + GAP)
        middle = y + BAR / 2
        kind = "ours" if bar.name.startswith("promptbus") else "other"
        end = LABEL_WIDTH + max(bar.ratio, bar.high) * scale
        low, high = (LABEL_WIDTH + value * scale for value in (bar.low, bar.high))
        parts += [
            _text(LABEL_WIDTH - 10, y + 15, bar.name, anchor="end"),
            f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y}" width="{max(1.0, bar.ratio * scale):.1f}" height="{BAR}" rx="2"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" class="whisker"/>',
            _text(end + 8, y + 15, f"{bar.ratio:.2f}"),
            _text(end + 46, y + 15, f"{shown_rate(bar.prompts_per_s)}/s", "faint"),
        ]
    return parts


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{classes}>{escape(words)}</text>'
