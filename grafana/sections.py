"""The runbook's sections, and where each can be read in Grafana."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "runbook.md"
UID = "promptbus-runbook"

# What stands before the first section, and each section by its title.
INTRODUCTION, *_rest = re.split(r"^## (.*)\n", FILE.read_text(), flags=re.MULTILINE)
SECTIONS = dict(zip(_rest[::2], _rest[1::2], strict=True))
# Ids of the runbook's panels. The introduction is the first.
NUMBERS = {title: number for number, title in enumerate(SECTIONS, 2)}


def address(title: str) -> str:
    """The section alone on the screen. Raises KeyError if there is none."""
    return f"/d/{UID}?viewPanel={NUMBERS[title]}"
