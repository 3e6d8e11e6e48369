"""Whether to call a model at all, and after which pause. Pure: `now` is passed in.

    state      event                              next state
    CLOSED     success                            CLOSED, the next back-off is short again
    CLOSED     success of a call since a failure  CLOSED, no more waiting
    CLOSED     failure                            CLOSED, calls pause for the back-off
    CLOSED     failure that says "gone"           OPEN
    CLOSED     5 calls failed without a success   OPEN
    CLOSED     single-request model error         CLOSED, calls pause for a back-off of its own, forgotten at an answer
    CLOSED     16 of them without a success       OPEN
    OPEN       back-off over, probe taken         PROBING
    PROBING    the probe was answered             CLOSED; the back-off is forgotten only if it was a request
    PROBING    failure                            OPEN, with twice the back-off
    OPEN       success of a call from before      OPEN: only a probe closes it
    any        the server named a time to wait    the same, and nothing goes out before that

The breaker is also the witness in two questions of guilt. A model error is charged to a request only if the model
has answered another *request* since (`answered_since`; our own probe proves too little: a model may say "pong" and
fail on everything else). A third time-out is final only if the model has worked at all since (`worked_since`).
"""

from __future__ import annotations

from enum import Enum, auto

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
LONGEST_RETRY_AFTER_S = 60.0
"""A server may ask for more, and is then asked again after this."""
_LONG_AGO = float("-inf")
FAILURES_TO_OPEN = 5
SINGLE_ERRORS_TO_OPEN = 16


class BreakerError(Exception):
    """A move the table does not have."""


class State(Enum):
    """Closed: calls flow. Open: none does. Probing: one call finds out."""

    CLOSED = auto()
    OPEN = auto()
    PROBING = auto()


_CLOSED = State.CLOSED  # asked for with each batch: until Python 3.12 a look-up in the class takes 0.2 µs


class Breaker:
    """One model's breaker."""

    __slots__ = (
        "_answered_began",
        "_backoff_s",
        "_failed_at",
        "_failures",
        "_probes_failed",
        "_resume_at",
        "_single_backoff_s",
        "_single_errors",
        "_told_to_wait_until",
        "_waits_until",
        "_worked_began",
        "state",
    )

    def __init__(self) -> None:
        self.state = _CLOSED
        self._resume_at = _LONG_AGO
        self._told_to_wait_until = _LONG_AGO
        self._waits_until = _LONG_AGO  # the later of the two: asked for with each batch, and seldom changed
        self._backoff_s = FIRST_BACKOFF_S
        self._failed_at = _LONG_AGO
        self._failures = 0
        self._single_errors = 0
        self._single_backoff_s = FIRST_BACKOFF_S
        self._probes_failed = 0
        self._answered_began = _LONG_AGO
        self._worked_began = _LONG_AGO

    @property
    def is_open(self) -> bool:
        """Whether ordinary calls are held back until a probe succeeds."""
        return self.state is not _CLOSED

    @property
    def is_down(self) -> bool:
        """Whether a probe has failed since it opened: not a hiccup, worth pausing the partitions."""
        return self.is_open and self._probes_failed > 0

    def may_call(self, now: float) -> bool:
        """Whether an ordinary batch may go out."""
        return self.state is _CLOSED and now >= self._waits_until

    def may_probe(self, now: float) -> bool:
        """Whether it is time for a probe."""
        return self.state is State.OPEN and now >= self._waits_until

    def resumes_in(self, now: float) -> float | None:
        """Seconds until a call or a probe may go out; None if nothing is being waited for."""
        if self.state is State.PROBING or now >= self._waits_until:
            return None
        return self._waits_until - now

    def _resume(self, at: float) -> None:
        self._resume_at = at
        self._waits_until = max(at, self._told_to_wait_until)

    def is_told_to_wait(self, now: float) -> bool:
        """Whether the time that the server named is not over."""
        return now < self._told_to_wait_until

    def told_to_wait(self, now: float, seconds: float) -> None:
        """The server named a time (Retry-After). Unlike a back-off, answers to earlier calls do not end it."""
        self._told_to_wait_until = max(self._told_to_wait_until, now + min(seconds, LONGEST_RETRY_AFTER_S))
        self._waits_until = max(self._resume_at, self._told_to_wait_until)

    def answered_since(self, moment: float) -> bool:
        """Whether a call that began at `moment` or after answered requests."""
        return self._answered_began >= moment

    def worked_since(self, moment: float) -> bool:
        """Whether any call that began after `moment` succeeded, our own probe included."""
        return self._worked_began > moment

    def probe(self) -> None:
        """A probe goes out. Raises BreakerError unless the breaker is open."""
        if self.state is not State.OPEN:
            raise BreakerError(f"no probe while {self.state.name}")
        self.state = State.PROBING

    def probe_succeeded(self, began: float, *, by_request: bool) -> None:
        """The probe that began then was answered; `by_request`: it was somebody's, not our own."""
        self._end_probe(_CLOSED)
        self._probes_failed = 0
        self._failures = self._single_errors = 0
        self._resume(_LONG_AGO)
        self._worked_began = max(self._worked_began, began)
        if by_request:
            self.succeeded(began)

    def probe_failed(self, now: float) -> None:
        """The probe failed: wait longer."""
        self._end_probe(State.OPEN)
        self._probes_failed += 1
        self._back_off(now)

    def succeeded(self, began: float) -> None:
        """A call that began then answered requests."""
        if began > self._answered_began:
            self._answered_began = began
        if began > self._worked_began:
            self._worked_began = began
        self._failures = self._single_errors = 0
        self._single_backoff_s = FIRST_BACKOFF_S
        if self.state is _CLOSED:
            self._backoff_s = FIRST_BACKOFF_S
            # Others come home all the time; what failed shall not leave again at once.
            if began >= self._failed_at and self._resume_at != _LONG_AGO:
                self._resume(_LONG_AGO)

    def failed(self, now: float, *, gone: bool) -> None:
        """A call failed for a reason that is not a request's. `gone`: calling on is of no use."""
        if self.state is not _CLOSED:
            return  # calls from before it opened, now coming home
        self._failures += 1
        self._failed_at = now
        if gone or self._failures >= FAILURES_TO_OPEN:
            self.state = State.OPEN
        if now >= self._resume_at:  # failures of the same moment are one reason to wait, not many
            self._back_off(now)

    def single_error(self, now: float) -> None:
        """A request failed alone, and nobody can say yet whether it is to blame."""
        if self.state is not _CLOSED:
            return
        self._single_errors += 1
        if now >= self._resume_at:
            self._resume(now + self._single_backoff_s)
            self._single_backoff_s = min(LONGEST_BACKOFF_S, self._single_backoff_s * 2)
        if self._single_errors >= SINGLE_ERRORS_TO_OPEN:
            self.state = State.OPEN
            self._back_off(now)

    def _end_probe(self, state: State) -> None:
        if self.state is not State.PROBING:
            raise BreakerError(f"no probe is out while {self.state.name}")
        self.state = state

    def _back_off(self, now: float) -> None:
        self._resume(now + self._backoff_s)
        self._backoff_s = min(LONGEST_BACKOFF_S, self._backoff_s * 2)
