"""One line when something is gone, one a minute while it is, one when it is back. `now` is passed in."""

from __future__ import annotations

import logging

SAY_EVERY_S = 60.0


class Outage:
    """Of one service. `down_since` is None while it answers."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """`what` is named in the lines: "Triton at localhost:8000 does not answer"."""
        self._log = log
        self._what = what
        self._said_at = 0.0
        self.down_since: float | None = None

    def look(
        self,
        down: bool,
        now: float,
        why: str | None = None,
        then: str = "",
        what: str = "does not answer",
    ) -> None:
        """Say what has changed. `then`: what follows from it, for people. `what`: how it is gone."""
        if not down:
            if self.down_since is not None:
                self._log.info("%s answers again, after %.1f s%s", self._what, now - self.down_since, then)
                self.down_since = None
            return
        extra = {} if why is None else {"error": why}
        if self.down_since is None:
            self.down_since = self._said_at = now
            self._log.warning("%s %s%s", self._what, what, then, extra=extra)
        elif now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._log.warning(
                "%s still %s, for %.0f s now", self._what, what, now - self.down_since, extra=extra
            )
