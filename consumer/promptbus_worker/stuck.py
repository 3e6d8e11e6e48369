"""When a worker process is stuck: work in hand, nothing outside to wait for, and no progress. Pure.

Slow is not stuck. Triton may take TRITON_TIMEOUT_S for a call, and be gone for days; Kafka too: the event loop goes on,
the consumer thread goes on polling, and calls end by their time-out. So only three things count, each for longer than
the limit (WORKER_STUCK_S): no heartbeat (the event loop is blocked, or the process is frozen), a consumer thread that
does not come round, and an inference call that its own time-out did not end. A worker that drains of its own accord
makes no such promises, but has to be gone after its drain time.

A frozen process wakes up to ages that were true while it slept, so an age is believed only if it stays that high in
the heartbeats of some seconds. And a supervisor that itself stood still knows nothing: it gives everybody fresh time.
"""

from __future__ import annotations

from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.heartbeat import Heartbeat

CONFIRM_S = 2.0
"""Heartbeats have to say for this long that something stands still."""
FIRST_HEARTBEAT_S = 60.0
"""What a process may take to start, whatever the limit: a busy machine loads our libraries slowly."""


class Watch:
    """One worker process. Times are the supervisor's monotonic seconds."""

    __slots__ = ("_drain_s", "_limit_s", "_standing_since", "_stopping_since")

    def __init__(self, limit_s: float, drain_s: float) -> None:
        """`limit_s`: WORKER_STUCK_S. `drain_s`: what a drain may take in all."""
        self._limit_s = limit_s
        self._drain_s = drain_s
        self._standing_since: float | None = None
        self._stopping_since: float | None = None

    def why_stuck(
        self, heartbeat: Heartbeat | None, heard_at: float, supervisor: FreezeGuard, now: float
    ) -> str | None:
        """What stood still for how long, for people; None: nothing did. `heard_at`: start or last heartbeat."""
        silent_s = now - max(heard_at, supervisor.woke_at)
        if silent_s > (self._limit_s if heartbeat is not None else max(self._limit_s, FIRST_HEARTBEAT_S)):
            return f"no heartbeat for {silent_s:.0f} s"
        if heartbeat is None:
            return None
        if heartbeat.stopping is not None:
            return self._drains_too_long(heartbeat.stopping, supervisor, now)
        still = self._standing_still(heartbeat)
        if still is None or (self._standing_since is not None and supervisor.since(self._standing_since)):
            self._standing_since = None
        if still is None:
            return None
        if self._standing_since is None:
            self._standing_since = heard_at
        return still if heard_at - self._standing_since >= CONFIRM_S else None

    def _standing_still(self, heartbeat: Heartbeat) -> str | None:
        if heartbeat.poll_age_s > self._limit_s:
            return f"its Kafka consumer has made no progress for {heartbeat.poll_age_s:.0f} s"
        if heartbeat.oldest_call_s > self._limit_s:
            return f"an inference call has not ended for {heartbeat.oldest_call_s:.0f} s, in spite of its time-out"
        return None

    def _drains_too_long(self, why: str, supervisor: FreezeGuard, now: float) -> str | None:
        if self._stopping_since is None:
            self._stopping_since = now
        draining_s = now - max(self._stopping_since, supervisor.woke_at)
        return f"{why}; it has been draining for {draining_s:.0f} s" if draining_s > self._drain_s else None
