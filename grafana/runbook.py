"""docs/runbook.md as a dashboard, so that it can be read, and linked to, where the panels are."""

from __future__ import annotations

import re

from grafana.board import NAMES, Board
from grafana.panels import Row, Text
from grafana.sections import INTRODUCTION, NUMBERS, SECTIONS, address

# Two columns of a 1800 pixels wide screen take about this much.
_CHARACTERS_A_LINE = 115
_LINES_A_GRID_ROW = 1.35


def _height(text: str, columns: int = 1) -> int:
    lines = sum(1 + len(line) // (columns * _CHARACTERS_A_LINE) for line in _unwrapped(text).splitlines())
    return 3 + round(lines / _LINES_A_GRID_ROW)


def _unwrapped(text: str) -> str:
    """One line for each paragraph and item, as it is shown."""
    return re.sub(r"\n(?![\n-])", " ", text)


def _linked(text: str) -> str:
    """What is a link in the file, or could be one, leads to the dashboard or section of that name."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub("|".join(SECTIONS), lambda found: f"[{found[0]}]({address(found[0])})", text)
    for name, title in NAMES.items():
        words = r"\s".join(title.split())
        text = re.sub(rf"” *\n?\({words}\)", f"” ([{title}](/d/promptbus-{name}))", text)
    return text


def _panel(title: str, text: str, columns: int = 1) -> Text:
    return Text(title, _linked(text.strip()), _height(text.strip(), columns))


_first = _panel("How to read this", INTRODUCTION.partition("\n")[2], columns=2)
_sections = [_panel(title, text) for title, text in SECTIONS.items()]
assert list(NUMBERS) == [panel.title for panel in _sections]

RUNBOOK = Board(
    "runbook",
    "What each alert means, where to look, what to do. The same text as docs/runbook.md.",
    [Row("", [_first]), *(Row("", _sections[at : at + 2]) for at in range(0, len(_sections), 2))],
    live=False,
)
