"""What `/live` and `/ready` say: pure judgements on what the supervisor last saw of its workers.

`/live`: the supervisor's loop and every worker's poll thread make progress; it never depends on Kafka or Triton, for
whoever restarts us for it would only add an outage to theirs. `/ready`: every worker has reached the brokers and read
the model's metadata. A worker that waits to be started again is not ready, but alive: that is already being mended.
"""

from __future__ import annotations

from dataclasses import dataclass

from promptbus_worker.heartbeat import Heartbeat

LOOP_STUCK_S = 10.0
MEND_S = 30.0
"""The supervisor kills a stuck worker and starts another one; it takes somebody else only if it did not."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot at one moment. Times are the supervisor's monotonic clock, seconds."""

    slot: int
    running: bool
    heard_at: float | None
    heartbeat: Heartbeat | None
    starts_at: float | None
    last_end: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What the supervisor saw at `at`. `stopping`: why it drains, None while it runs. `stuck_s`: WORKER_STUCK_S."""

    at: float
    stopping: str | None
    restarts: int
    slots: tuple[SlotView, ...]
    stuck_s: float = 60.0


def not_live(view: View, now: float) -> list[str]:
    """One sentence per thing that makes no progress; empty: live."""
    problems = []
    if now - view.at > LOOP_STUCK_S:
        problems.append(f"the supervisor has made no progress for {now - view.at:.0f} s")
    if view.stopping is not None:  # a drain has its own time limit, and polls no more
        return problems
    for slot in view.slots:
        if slot.heard_at is None:
            continue
        silent_s, limit_s = view.at - slot.heard_at, view.stuck_s + MEND_S
        if silent_s > limit_s:
            problems.append(f"slot {slot.slot}: no heartbeat for {silent_s:.0f} s")
        elif slot.heartbeat is not None and slot.heartbeat.poll_age_s + silent_s > limit_s:
            age_s = slot.heartbeat.poll_age_s + silent_s
            problems.append(f"slot {slot.slot}: its Kafka consumer has made no progress for {age_s:.0f} s")
    return problems


def not_ready(view: View, now: float) -> list[str]:
    """One sentence per slot that cannot take requests yet; empty: ready."""
    if view.stopping is not None:
        return [f"stopping: {view.stopping}"]
    problems = []
    for slot in view.slots:
        if slot.heartbeat is not None and slot.heartbeat.ready and slot.heartbeat.stopping is None:
            continue
        problems.append(f"slot {slot.slot}: {_what_is_missing(slot, now)}")
    return problems


def _what_is_missing(slot: SlotView, now: float) -> str:
    if slot.starts_at is not None:
        before = f"{slot.last_end}, " if slot.last_end else ""
        return f"{before}starts in {max(0.0, slot.starts_at - now):.1f} s"
    if slot.heartbeat is None:
        return "starting" if slot.running else "not running"
    if slot.heartbeat.stopping is not None:
        return f"stopping: {slot.heartbeat.stopping}"
    return f"waiting for {slot.heartbeat.waiting_for or 'Kafka or Triton'}"
