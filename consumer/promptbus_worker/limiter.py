"""How many batches of one model may be in flight. Pure: `now` is passed in.

Refusals alone cannot tell. A Triton with its default settings never refuses: beyond what it runs at the same time,
calls only wait there, which costs deadlines and buys nothing. So the limiter looks for the knee, the smallest limit
from which on more calls bring no more throughput, and stays one step (a half) above it, so that an instance that is
done finds its next call at the door.

With `limit` calls always in flight, throughput is limit / mean duration (Little's law). The durations of calls at two
limits, one window right after the other, tell what the larger one gains:

    state      a window ends                               next
    SETTLED    as expected, and no check is due            SETTLED
    SETTLED    durations have changed                      SETTLED, a check is due (what changed may have been half of it)
    SETTLED    a check is due                              DOWN, one step lower; UP at the minimum
    DOWN       the step lower is as good                   DOWN, one step lower still; at the minimum SETTLED above it
    DOWN       it is worse, others were as good            SETTLED, one step above the lowest of them
    DOWN       it is worse, at the first step              UP, one step above where the check began
    UP         the step higher is better                   UP, one step higher still; at the top SETTLED there
    UP         it is as good                               SETTLED there
    any        overload                                    RAMP from 0.7 times the limit: one more per round
    any        restart                                     RAMP from the minimum: one more per success
    RAMP       it is where it was; after overload, 1 less  SETTLED, as a rule a check is due

Windows are as long as the noise demands. Only calls during which the limit was in use count, so an idle worker changes
nothing. Overload is answered once per window: by calls that began after the last decrease. The limit that met it is
not tried again for a while.
"""

from __future__ import annotations

from enum import Enum, auto
from math import sqrt

DECREASE = 0.7
"""The share of the limit that overload leaves."""
AVOID_S = 8.0
"""How long a limit that met overload is not tried again."""
GAIN = 0.15
"""More throughput than that, and a step is worth its longer waits. What is less, the step above the knee makes up for."""
CHANGED = 0.3
"""Durations that differ by this share say that the server or its work is another now."""
PRECISE = 0.06
"""A window may end when its mean's standard error is this share of it ..."""
CLEAR = 2.5
"""... or, in a comparison, when the gain is so many standard errors away from GAIN ..."""
MAX_CALLS = 100
"""... or after so many calls. It has at least two rounds of all in flight."""
MIN_CALLS = 6
MIN_WINDOW_S = 0.2
MIN_WATCH_S = 1.0
"""Shortest window between checks: so that those of a fast model, at lower limits, take little of the time."""
_SHORTEST_S = 1e-6
FIRST_PATIENCE = 4
LAST_PATIENCE = 12
"""Windows from one check to the next; they double while checks change nothing."""


class State(Enum):
    """What the current window is for."""

    SETTLED = auto()
    DOWN = auto()
    UP = auto()
    RAMP = auto()


class Limiter:
    """One model's limit. With `minimum` == `maximum` it is fixed."""

    def __init__(self, start: int, minimum: int, maximum: int) -> None:
        """`start` is brought within the bounds. Raises ValueError for bounds that are none."""
        if not 1 <= minimum <= maximum:
            raise ValueError(f"no limit lies between {minimum} and {maximum}")
        self._minimum, self.maximum = minimum, maximum
        self.limit = max(minimum, min(maximum, start))
        self.state = State.SETTLED
        self._patience = FIRST_PATIENCE
        self._windows_left = 0  # until the next check; the start value is only a guess
        self._usual_s: float | None = None  # mean duration since it settled
        self._reference: tuple[int, float] | None = (
            None  # what the next window is compared with: limit, mean duration
        )
        self._as_good: int | None = None  # the lowest limit that was as good as the reference
        self._settled_at = self._ramp_to = self.limit
        self._per_success = 0.0  # what a success adds in a ramp
        self._added = 0.0
        self._check_after_ramp = True
        self._in_use_at = float("-inf")
        self._decreased_at = float("-inf")
        self._avoided: int | None = None
        self._avoid_until = float("-inf")
        self._begin_window(float("-inf"))

    def began(self, now: float, in_flight: int) -> None:
        """A call begins; `in_flight`: batches of the model, this one included."""
        if in_flight >= self.limit:
            self._in_use_at = now

    def succeeded(self, began: float, now: float) -> None:
        """A call that began then was answered."""
        if self._in_use_at < began:
            return
        if self.state is State.RAMP:
            if began >= self._decreased_at:
                self._ramp(now)
            return
        if began <= self._window_began:
            return
        duration = max(now - began, _SHORTEST_S)
        self._calls += 1
        self._sum_s += duration
        self._sum_of_squares += duration * duration
        at_least_s = MIN_WATCH_S if self.state is State.SETTLED and self._windows_left > 0 else MIN_WINDOW_S
        if now - self._window_began >= at_least_s and self._calls >= max(MIN_CALLS, 2 * self.limit):
            mean_s = self._sum_s / self._calls
            error_s = self._error_s(mean_s)
            if self._calls >= MAX_CALLS or error_s <= PRECISE * mean_s or self._is_clear(mean_s, error_s):
                self._end_window(mean_s, error_s, now)

    def overloaded(self, began: float, now: float) -> None:
        """A call that began then was refused for now, timed out, or lost its connection or found none."""
        if began <= self._decreased_at:
            return  # it left before the limit was lowered, so it says nothing new
        if self.limit > self._minimum:  # there, one more is as good a guess as any
            self._avoided, self._avoid_until = self.limit, now + AVOID_S
        # One step up was refused: then the check has its answer.
        answered = (
            self.state is State.UP and self._reference is not None and self._reference[0] >= self.limit - 1
        )
        self._check_after_ramp = not answered
        lowered = max(self._minimum, int(self.limit * DECREASE))
        self._begin_ramp(lowered, self.limit - 1, 1 / lowered, now)

    def restart(self, now: float) -> None:
        """The model works again after a time without calls: begin low, and double per round up to where it was."""
        self._check_after_ramp = True
        self._begin_ramp(self._minimum, self._settled_at, 1.0, now)

    def _begin_ramp(self, limit: int, to: int, per_success: float, now: float) -> None:
        self._decreased_at = now
        self._ramp_to, self._per_success, self._added = to, per_success, 0.0
        self._go(State.RAMP, limit, now)

    def _ramp(self, now: float) -> None:
        self._added += self._per_success
        if self._added >= 1 and self.limit < self._ramp_to:
            self._added = 0.0
            self.limit += 1
        if self.limit >= self._ramp_to:
            self._settle(self.limit, now)
            if self._check_after_ramp:
                self._windows_left = 0

    def _is_clear(self, mean_s: float, error_s: float) -> bool:
        if self._reference is None or self.state is State.SETTLED:
            return False
        lower, higher = sorted([self._reference, (self.limit, mean_s)])
        return abs(self._gain(lower, higher) - GAIN) > CLEAR * error_s / mean_s

    def _end_window(self, mean_s: float, error_s: float, now: float) -> None:
        match self.state:
            case State.SETTLED:
                self._watch(mean_s, error_s, now)
            case State.DOWN:
                self._down(mean_s, now)
            case State.UP:
                self._up(mean_s, now)

    def _watch(self, mean_s: float, error_s: float, now: float) -> None:
        if self._windows_left <= 0:
            self._check(mean_s, now)
            return
        usual_s = self._usual_s or mean_s
        self._windows_left -= 1
        if abs(mean_s - usual_s) > max(CHANGED * usual_s, 3 * error_s):
            self._windows_left = 0
        self._usual_s = usual_s + (mean_s - usual_s) / 4
        self._begin_window(now)

    def _check(self, mean_s: float, now: float) -> None:
        self._reference = (self.limit, mean_s)
        self._as_good = None
        if self.limit > self._minimum:
            self._go(State.DOWN, self._below(self.limit), now)
        else:
            self._climb(now)

    def _down(self, mean_s: float, now: float) -> None:
        assert self._reference is not None, "a check begins with one"
        if self._gain((self.limit, mean_s), self._reference) <= GAIN:
            self._as_good = self.limit
            if self.limit > self._minimum:
                self._go(State.DOWN, self._below(self.limit), now)
                return
        if self._as_good is None:
            self._climb(now)
        else:
            self._settle(self._above(self._as_good, now), now)

    def _up(self, mean_s: float, now: float) -> None:
        here = (self.limit, mean_s)
        assert self._reference is not None, "a climb begins with one"
        if self._gain(self._reference, here) > GAIN:
            self._reference = here
            self._climb(now)
        else:
            self._settle(self.limit, now)

    def _climb(self, now: float) -> None:
        """To the step above the reference, if there is one."""
        assert self._reference is not None, "set before"
        higher = self._above(self._reference[0], now)
        if higher > self._reference[0]:
            self._go(State.UP, higher, now)
        else:
            self._settle(self._reference[0], now)

    def _settle(self, limit: int, now: float) -> None:
        changed = limit != self._settled_at
        self._patience = FIRST_PATIENCE if changed else min(LAST_PATIENCE, 2 * self._patience)
        self._windows_left = self._patience
        self._usual_s = None
        self._settled_at = limit
        self._go(State.SETTLED, limit, now)

    def _go(self, state: State, limit: int, now: float) -> None:
        self.state, self.limit = state, limit
        self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._window_began = now
        self._calls, self._sum_s, self._sum_of_squares = 0, 0.0, 0.0

    def _error_s(self, mean_s: float) -> float:
        variance = max(0.0, self._sum_of_squares / self._calls - mean_s * mean_s)
        return sqrt(variance / self._calls)

    def _below(self, limit: int) -> int:
        return max(self._minimum, limit - max(1, limit // 3))

    def _above(self, limit: int, now: float) -> int:
        above = min(self.maximum, limit + max(1, limit // 2))
        if self._avoided is not None and now < self._avoid_until:
            above = min(above, max(self._avoided - 1, self._minimum))
        return above

    @staticmethod
    def _gain(lower: tuple[int, float], higher: tuple[int, float]) -> float:
        """What the higher limit brings, as a share of the lower one's throughput."""
        return (higher[0] / higher[1]) / (lower[0] / lower[1]) - 1
