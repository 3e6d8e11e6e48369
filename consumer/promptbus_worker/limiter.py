"""How many batches of one model may be in flight. Pure: `now` is passed in.

Refusals alone cannot tell. A Triton with its default settings never refuses: beyond what it runs at the same time,
calls only wait there, which costs deadlines and buys nothing. But Triton counts how long calls wait in its queue and
how long they run (`triton_load`), and that tells by Little's law how many run at once, and how many wait, everybody's
calls together. From these two, a few times a second, the limit that would be right:

    wanted = SCALE * running / crowding²          crowding = (running + waiting) / running, at least 1

Alone at a server that runs k calls at once, a limit of l makes running = k and crowding = l / k, so the two meet at
l = k * SCALE^(1/3), 1.6 k: every instance that is done finds its next call at the door. Several workers that do not know
of each other are told the same two numbers, so they want the same limit, whatever each of them has now: n of them meet at
l = k * (SCALE / n²)^(1/3) each, where crowding is 1.6 n^(1/3). A limit that only watched its own throughput would find
that each call more brings some, at the others' cost, and all of them would go on to the maximum.

A server whose calls take less than a millisecond runs dry while the event loop does something else for two. So a call
counts as running for BRIDGE_S longer than it does: that many more wait at the door of such a server, and hardly any more
at others. That pays only for full batches. One that is not does better to wait here, where more requests can join it: a small
call costs nearly as much as a full one. So there are two limits, `limit` for full batches and `light_limit`, without BRIDGE_S,
for all others; each goes by the windows in which it was the one in use.

The limit goes a third of the way there, on a logarithmic scale: wanted falls with the square of the limit, so that is
where one step leads to, without swinging.

Overload (503, time-outs, connections) is answered at once: 0.7 times the limit, then one more per round of calls up to
one below the limit that met it, which is not tried again for a while. Then, if Triton tells nothing better, it goes on to
where it was. Overload is answered once per window: by calls that began after the last decrease. Only while the limit is
in use does anything raise it, so an idle worker changes nothing.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

DECREASE = 0.7
"""The share of the limit that overload leaves."""
AVOID_S = 8.0
"""How long a limit that met overload is not tried again."""
SCALE = 4.2
"""Just above 4, so that with one instance a second call may wait while one runs: 1.05 is wanted then, and rounded up."""
BRIDGE_S = 0.0005
"""With an instant model that made 16 calls of 4: a tenth more prompts per second. At 2,000/s, where batches are small, 16 calls
made p50 8.4 ms instead of 5.9."""
STEP = 1 / 3
LARGEST_STEP = 2.0
"""The factor up or down that one measurement may change the limit by."""
CROWDED = 1.15
"""Where hardly any call waits, there is no reason to lower the limit; little may run because little is asked for."""
_ALMOST = 1e-9


class Load(NamedTuple):
    """What a model did during a window: mean numbers of calls at once.

    `running` and `waiting`: in Triton, everybody's; `calls_per_s` of them ended. `own`: this process's calls that were
    answered, from beginning to end; they may be more than Triton tells, for a balancer may hide further servers behind the
    one that was asked.
    """

    running: float
    waiting: float
    own: float
    calls_per_s: float


class Limiter:
    """One model's limit. With `minimum` == `maximum` it is fixed."""

    def __init__(self, start: int, minimum: int, maximum: int) -> None:
        """`start` is brought within the bounds. Raises ValueError for bounds that are none."""
        if not 1 <= minimum <= maximum:
            raise ValueError(f"no limit lies between {minimum} and {maximum}")
        self._minimum, self.maximum = minimum, maximum
        self.limit = self.light_limit = max(minimum, min(maximum, start))
        self.calls_s = 0.0
        """Seconds that calls which were answered took, together."""
        self._wanted = self._light = float(self.limit)  # the limits before they are rounded
        self._ramp_to: int | None = None
        self._steady = self.limit  # what it was begun with, or Triton's statistics led to
        self._per_success = self._added = 0.0  # what a success adds in a ramp
        self._in_use_at = self._light_in_use_at = float("-inf")
        self._decreased_at = float("-inf")
        self._avoided = maximum + 1
        self._avoid_until = float("-inf")

    @property
    def is_fixed(self) -> bool:
        """Whether nothing changes it."""
        return self._minimum == self.maximum

    def in_use_since(self, moment: float) -> bool:
        """Whether as many calls were in flight as may be without full batches, at some time since then."""
        return self._light_in_use_at >= moment

    def note(self, now: float, in_flight: int) -> None:
        """So many batches of the model are in flight, one that begins now included."""
        if in_flight >= self.light_limit:
            self._light_in_use_at = now
        if in_flight >= self.limit:
            self._in_use_at = now

    def succeeded(self, began: float, now: float) -> None:
        """A call that began then was answered."""
        self.calls_s += now - began
        if self._ramp_to is None and self.limit < self._steady and now >= self._avoid_until:
            self._ramp_to, self._per_success, self._added = self._steady, 1 / self.limit, 0.0
        if self._ramp_to is not None and self._decreased_at <= began and self.in_use_since(began):
            self._added += self._per_success
            if self._added >= 1:
                self._added = 0.0
                self._set(self.limit + 1, self._ramp_to)
            if self.limit >= self._ramp_to:
                self._ramp_to = None

    def measured(self, load: Load, since: float, now: float) -> None:
        """What the model did between two moments."""
        if self._ramp_to is not None or since < self._decreased_at or not self.in_use_since(since):
            return
        if load.running <= 0:
            return
        wanted, in_use = self._wanted, self._in_use_at >= since
        if not in_use or self.light_limit == self.limit:
            self._light = max(self._minimum, _step(min(self._light, wanted), load, 0.0))
        if in_use:
            wanted = _step(wanted, load, load.calls_per_s * BRIDGE_S)
        self._set(wanted, self._avoided - 1 if now < self._avoid_until else self.maximum)
        if in_use:
            self._steady = self.limit

    def overloaded(self, began: float, now: float) -> None:
        """A call that began then was refused for now, timed out, or lost its connection or found none."""
        if began <= self._decreased_at:
            return  # it left before the limit was lowered, so it says nothing new
        met = self.limit if self._in_use_at >= began else self.light_limit
        if met > self._minimum:  # there, one more is as good a guess as any
            self._avoided, self._avoid_until = met, now + AVOID_S
        lowered = max(self._minimum, int(met * DECREASE))
        self._ramp(lowered, met - 1, 1 / lowered, now)

    def restart(self, now: float) -> None:
        """The model works again after a time without calls: begin low, and double per round up to where it was."""
        self._ramp(self._minimum, self._steady, 1.0, now)

    def _ramp(self, limit: int, to: int, per_success: float, now: float) -> None:
        self._decreased_at = now
        self._set(limit, limit)
        self._ramp_to, self._per_success, self._added = to, per_success, 0.0

    def _set(self, wanted: float, most: float) -> None:
        self._wanted = max(self._minimum, min(self.maximum, most, wanted))
        self.limit = ceil(self._wanted - _ALMOST)
        self.light_limit = min(self.limit, ceil(self._light - _ALMOST))


def _step(limit: float, load: Load, bridging: float) -> float:
    """Where one measurement leads a limit to. `bridging`: so many calls count as running beside those that do."""
    bridged = load.running + bridging
    crowding = max(1.0, (load.running + load.waiting) / bridged)
    running = max(bridged, load.own / crowding)
    factor: float = (SCALE * running / crowding**2 / limit) ** STEP
    return limit * max(1 / LARGEST_STEP if crowding >= CROWDED else 1.0, min(LARGEST_STEP, factor))
