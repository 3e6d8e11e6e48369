"""Which log lines are repeats, and how many were left out. Pure: `now` is passed in (monotonic seconds).

Each kind of line has an allowance per window; what is beyond it is counted, and the count is told when the window is
over, whether or not another such line comes. Kinds are remembered in a table of fixed size: the one whose window began
first makes room, and its count is told then. So nothing is left out without being counted.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_KINDS = 256


class Kind(NamedTuple):
    """What makes two lines repeats of one another: the template, not the arguments."""

    logger: str
    level: int
    template: str


class Allowance(NamedTuple):
    """So many lines of one kind in a window."""

    lines: int
    window_s: float


class LeftOut(NamedTuple):
    """So many lines of a kind were left out in a window."""

    kind: Kind
    lines: int
    window_s: float


class _Window:
    __slots__ = ("allowance", "began", "left_out", "lines")

    def __init__(self, allowance: Allowance, began: float) -> None:
        self.allowance = allowance
        self.began = began
        self.lines = 0
        self.left_out = 0

    @property
    def ends(self) -> float:
        return self.began + self.allowance.window_s


class Repeats:
    """One process's table."""

    def __init__(self, most_kinds: int = MOST_KINDS) -> None:
        self._most_kinds = most_kinds
        self._windows: dict[Kind, _Window] = {}
        self._over: list[LeftOut] = []
        self._next_end = float("inf")

    @property
    def next_end(self) -> float:
        """When a window with left-out lines is over; infinite if there is none."""
        return self._next_end

    def admit(self, kind: Kind, allowance: Allowance, now: float) -> bool:
        """Whether a line of this kind is to be written."""
        window = self._windows.get(kind)
        if window is not None and now >= window.ends:
            self._close(kind)
            window = None
        if window is None:
            if len(self._windows) >= self._most_kinds:
                self._close(min(self._windows, key=lambda each: self._windows[each].began))
            window = self._windows[kind] = _Window(allowance, now)
        if window.lines < allowance.lines:
            window.lines += 1
            return True
        window.left_out += 1
        self._next_end = min(self._next_end, window.ends)
        return False

    def over(self, now: float) -> list[LeftOut]:
        """What was left out in windows that are over by now; each is told once."""
        if now >= self._next_end:
            for kind in [kind for kind, window in self._windows.items() if now >= window.ends]:
                self._close(kind)
            open_ends = (window.ends for window in self._windows.values() if window.left_out)
            self._next_end = min(open_ends, default=float("inf"))
        over, self._over = self._over, []
        return over

    def _close(self, kind: Kind) -> None:
        window = self._windows.pop(kind)
        if window.left_out:
            self._over.append(LeftOut(kind, window.left_out, window.allowance.window_s))
