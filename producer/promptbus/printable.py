"""Text from elsewhere on a terminal: a model's answer may hold codes that move the cursor or rename the window."""

from __future__ import annotations

import re
import sys

# C0 and C1 controls but tab and line feed, and the marks that reorder text
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without control characters, each replaced by U+FFFD."""
    return _CONTROLS.sub("\ufffd", text)


def on_one_line(text: str, width: int) -> str:
    """At most `width` characters, white space as single blanks."""
    line = " ".join(printable(text[: 4 * width]).split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def write_text(text: str) -> None:
    """`text` on stdout in UTF-8, whatever the locale; exact unless stdout is a terminal."""
    if sys.stdout.isatty():
        text = printable(text)
    write_bytes(text.encode(errors="replace"))


def write_bytes(value: bytes) -> None:
    """One line on stdout, flushed. Raises BrokenPipeError when nobody reads."""
    sys.stdout.buffer.write(value + b"\n")
    sys.stdout.buffer.flush()
