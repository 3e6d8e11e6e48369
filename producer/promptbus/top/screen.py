"""A frame as it is drawn: eighty columns, two of tables side by side. Needs rich."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from promptbus.printable import on_one_line
from promptbus.top.frame import Count, Frame

COLUMNS = 80
_GAP = 4
_HALF = (COLUMNS - _GAP) // 2
_MOST_SLOTS = 32


def draw(frame: Frame, *, title: str, clock: str, problem: str | None = None) -> RenderableType:
    """The whole screen. `problem`: why the frame is an old one."""
    rows: list[RenderableType] = [_head(frame, title, clock)]
    rows.append(Text(problem, style="bold red") if problem is not None else _health(frame))
    for left, right in (
        (_outcomes(frame), _latencies(frame)),
        (_lag(frame), _batches(frame)),
        (_calls(frame), _tokens(frame)),
    ):
        pair = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        pair.add_column(width=_HALF)
        pair.add_column(width=_HALF)
        pair.add_row(left, right)
        rows += [Text(), pair]
    return Group(*rows, Text(), _slots(frame))


def waiting(title: str, clock: str, problem: str) -> RenderableType:
    """The screen before the first scrape came through."""
    return Group(_line(on_one_line(title, COLUMNS - 10), clock), Text(problem, style="bold red"))


def _head(frame: Frame, title: str, clock: str) -> RenderableType:
    span = "since their start" if frame.over_s is None else f"of the last {duration(frame.over_s)}"
    return _line(on_one_line(title, COLUMNS - len(span) - 12), f"{span}  {clock}")


def _line(left: str, right: str) -> RenderableType:
    line = Table.grid(expand=False)
    line.add_column(width=COLUMNS - len(right))
    line.add_column(justify="right")
    line.add_row(Text(left, style="bold"), Text(right))
    return line


def _health(frame: Frame) -> Text:
    parts = [
        _word(f"workers {frame.workers:g}", bad=frame.workers == 0),
        _word(f"restarts {frame.restarts:g}", bad=frame.restarts > 0),
        _word(f"breaker {'OPEN' if frame.breaker_open else 'closed'}", bad=frame.breaker_open),
        _word(f"partitions {frame.assigned:g}", bad=frame.assigned == 0),
    ]
    if frame.paused:
        parts.append(_word(f"{frame.paused:g} PAUSED", bad=True))
    if frame.budget_exhausted:
        parts.append(_word("held: nearly all dead letters", bad=True))
    return Text("   ").join(parts)


def _word(text: str, *, bad: bool) -> Text:
    return Text(text, style="bold red" if bad else "green")


def _outcomes(frame: Frame) -> Table:
    table = _table("ANSWERED", "per s", "total")
    _add(table, frame.answered._replace(name="all"))
    for count in frame.outcomes:
        if count.name == "ok" or count.total:
            _add(table, count, bad=count.name != "ok" and bool(count.per_s))
    if frame.dead_letters.total:
        _add(table, frame.dead_letters, bad=bool(frame.dead_letters.per_s))
    return table


def _latencies(frame: Frame) -> Table:
    table = _table("LATENCY", "p50", "p95", "p99")
    for latency in frame.latencies:
        table.add_row(latency.name, *(duration(quantile) for quantile in latency.quantiles))
    return table


def _lag(frame: Frame) -> Table:
    table = _table("LAG", "")
    drain = "not at this rate" if math.isinf(frame.drain_s) else duration(frame.drain_s)
    table.add_row("records", f"{frame.lag_records:,.0f}")
    table.add_row("oldest", duration(frame.lag_seconds))
    table.add_row("time to drain", Text(drain, style="bold red" if math.isinf(frame.drain_s) else ""))
    if frame.worst is not None:
        worst = frame.worst
        table.add_row(f"worst: partition {worst.name}", f"{worst.records:,.0f}, {duration(worst.seconds)}")
    table.add_row("waiting here", f"{frame.waiting:,.0f}")
    table.add_row("in flight", f"{frame.in_flight_requests:,.0f}")
    return table


def _batches(frame: Frame) -> Table:
    table = _table("BATCHES", "per s", "share")
    total = sum(count.per_s or 0.0 for count in frame.batches)
    for count in frame.batches:
        if count.total:
            share = f"{(count.per_s or 0.0) / total:.0%}" if total else "-"
            table.add_row(f"closed by {count.name}", rate(count.per_s), share)
    size = "-" if frame.batch_size is None else f"{frame.batch_size:.1f}"
    table.add_row("requests in one, mean", "", size)
    full = frame.limit > 0 and frame.in_flight_batches >= frame.limit
    flight = f"{frame.in_flight_batches:g} / {frame.limit:g}"
    table.add_row("in flight / limit", "", Text(flight, style="yellow" if full else ""))
    return table


def _calls(frame: Frame) -> Table:
    table = _table("CALLS TO TRITON", "per s", "total")
    for count in frame.calls:
        if count.name == "ok" or count.total:
            _add(table, count, bad=count.name != "ok" and bool(count.per_s))
    for count in frame.retries:
        if count.total:
            _add(table, count._replace(name=f"again: {count.name}"), bad=bool(count.per_s))
    return table


def _tokens(frame: Frame) -> Table:
    table = _table("TOKENS", "per s", "total")
    for count in frame.tokens:
        _add(table, count)
    return table


def _slots(frame: Frame) -> Text:
    slots = [f"{slot}: {size / 1e6:,.0f} MB" for slot, size in frame.slots[:_MOST_SLOTS]]
    more = len(frame.slots) - _MOST_SLOTS
    text = "   ".join(slots) + (f"   and {more} more" if more > 0 else "")
    line = Text("MEMORY BY SLOT  ", style="bold")
    line.append(text or "no worker process runs", style="not bold" if text else "bold red")
    return line


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, width=_HALF, header_style="bold")
    table.add_column(Text(title), ratio=1, no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _add(table: Table, count: Count, *, bad: bool = False) -> None:
    table.add_row(count.name, rate(count.per_s), f"{count.total:,.0f}", style="red" if bad else "")


def rate(per_s: float | None) -> str:
    """`12,345`; small ones with a digit behind the point."""
    if per_s is None:
        return "-"
    return f"{per_s:,.1f}" if 0 < per_s < 10 else f"{per_s:,.0f}"


_STEPS: Sequence[tuple[float, float, str]] = (
    (60.0, 1.0, "s"),
    (3600.0, 60.0, "min"),
    (48 * 3600.0, 3600.0, "h"),
    (math.inf, 86400.0, "days"),
)


def duration(seconds: float | None) -> str:
    """`850 ms`, `3.2 s`, `12 min`; three digits are enough."""
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return "more"
    if seconds < 1:
        return "0 s" if seconds == 0 else f"{_short(seconds * 1000)} ms"
    size, unit = next((size, unit) for end, size, unit in _STEPS if seconds < end)
    return f"{_short(seconds / size)} {unit}"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"
