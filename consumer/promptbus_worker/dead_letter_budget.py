"""Stops a topic from being emptied into the dead letters when it is the model, or this worker, that is at fault.

Only outcomes that a model's call decided count: answers, and the codes that an operator has to look into (DESIGN §4).
When more than half of the last 200 of them were such dead letters, or 50 in a row, the budget is *exhausted*: nothing
of that model goes out but one batch every 30 s, until one brings more answers than dead letters.

Pure: `now` is passed in, monotonic seconds.
"""

from __future__ import annotations

from collections import deque

WINDOW = 200
IN_A_ROW = 50
TRY_EVERY_S = 30.0


class DeadLetterBudget:
    """One model's budget."""

    def __init__(self) -> None:
        self._outcomes = 0
        self._failed_at: deque[int] = (
            deque()
        )  # numbers of the outcomes that were dead letters, of the last WINDOW
        self._in_a_row = 0
        self._try_at: float | None = None  # None: not exhausted
        self._trial: list[bool] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether dead letters are held back by calling hardly at all."""
        return self._try_at is not None

    def may_dispatch(self, now: float) -> bool:
        """Whether a batch may go out: any while the budget lasts, then one at a time, now and then."""
        return self._try_at is None or (self._trial is None and now >= self._try_at)

    def resumes_in(self, now: float) -> float | None:
        """Seconds until the next trial is due; None if nothing is being waited for."""
        if self._try_at is None or self._trial is not None or now >= self._try_at:
            return None
        return self._try_at - now

    def begin_trial(self) -> None:
        """A batch goes out although the budget is exhausted."""
        self._trial = []

    def end_trial(self, now: float) -> bool:
        """All of that batch is answered or waits again. Whether it proved that the model works: all is forgotten."""
        outcomes, self._trial = self._trial or [], None
        if outcomes.count(False) > outcomes.count(True):
            self._failed_at.clear()
            self._in_a_row = 0
            self._try_at = None
            return True
        self._try_at = now + TRY_EVERY_S
        return False

    def note_answers(self, count: int) -> None:
        """So many outcomes that were none. They never exhaust it."""
        if self._trial is not None:
            self._trial += [False] * count
        self._outcomes += count
        self._in_a_row = 0

    def note(self, dead_lettered: bool, now: float) -> bool:
        """An outcome. Whether it is the one that exhausts the budget."""
        if not dead_lettered:
            self.note_answers(1)
            return False
        if self._trial is not None:
            self._trial.append(True)
        self._outcomes += 1
        self._in_a_row += 1
        failed_at = self._failed_at
        failed_at.append(self._outcomes)
        while failed_at[0] <= self._outcomes - WINDOW:
            failed_at.popleft()
        if self._try_at is not None:
            return False
        if self._in_a_row >= IN_A_ROW or len(failed_at) > WINDOW // 2:
            self._try_at = now + TRY_EVERY_S
            return True
        return False
