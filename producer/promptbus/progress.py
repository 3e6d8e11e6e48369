"""A line on stderr that says how far it is; on a terminal only."""

from __future__ import annotations

import sys
import time

INTERVAL_S = 0.2


class Progress:
    """Redraws at most five times a second. `clear` before anything else is printed."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = self._started
        self._width = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since this was made."""
        return max(1e-6, time.monotonic() - self._started)

    def show(self, records: int, what: str) -> None:
        """`12,000 sent · 40,100/s`."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + INTERVAL_S
        text = f"{what} · {records / self.elapsed_s:,.0f}/s"
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
