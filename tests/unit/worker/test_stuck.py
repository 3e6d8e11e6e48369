"""What counts as stuck, and what does not however long it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.heartbeat import Heartbeat
from promptbus_worker.stuck import Watch

LIMIT_S = 60.0
DRAIN_S = 30.0
FINE = Heartbeat(ready=True, poll_age_s=0.1)


class Rig:
    """A worker's heartbeats every half second, and the supervisor's look at them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard_at = self.now
        self.guard = FreezeGuard(self.now)
        self.watch = Watch(LIMIT_S, DRAIN_S)

    def beats(self, heartbeat: Heartbeat, for_s: float) -> str | None:
        """What is said in the end."""
        until = self.now + for_s
        why = None
        while self.now < until:
            self.now += 0.5
            self.guard.tick(self.now)
            self.heard_at = self.now
            why = self.watch.why_stuck(heartbeat, self.heard_at, self.guard, self.now)
        return why

    def silence(self, for_s: float, last: Heartbeat | None = FINE) -> str | None:
        until = self.now + for_s
        why = None
        while self.now < until:
            self.now += 0.5
            self.guard.tick(self.now)
            why = self.watch.why_stuck(last, self.heard_at, self.guard, self.now)
        return why

    def sleeps(self, for_s: float, last: Heartbeat | None = FINE) -> str | None:
        """The supervisor stands still."""
        self.now += for_s
        self.guard.tick(self.now)
        return self.watch.why_stuck(last, self.heard_at, self.guard, self.now)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_hours_of_heartbeats_are_fine_whatever_the_worker_waits_for(rig: Rig) -> None:
    assert rig.beats(replace(FINE, ready=False, waiting_for="Kafka at k:9092"), 7200) is None
    assert rig.beats(replace(FINE, poll_age_s=LIMIT_S, oldest_call_s=LIMIT_S), 7200) is None


def test_silence_is_stuck_after_the_limit_and_not_before(rig: Rig) -> None:
    assert rig.beats(FINE, 10) is None
    assert rig.silence(LIMIT_S) is None
    assert rig.silence(1) == "no heartbeat for 61 s"


def test_a_process_gets_a_minute_for_its_first_heartbeat_even_under_a_short_limit() -> None:
    watch, guard = Watch(5.0, DRAIN_S), FreezeGuard(0)
    assert watch.why_stuck(None, 0.0, guard, 59.0) is None
    assert watch.why_stuck(None, 0.0, guard, 61.0) == "no heartbeat for 61 s"
    assert watch.why_stuck(FINE, 55.0, guard, 61.0) == "no heartbeat for 6 s"


@pytest.mark.parametrize(
    ("heartbeat", "says"),
    [
        (replace(FINE, poll_age_s=61.0), "its Kafka consumer has made no progress for 61 s"),
        (
            replace(FINE, oldest_call_s=61.0),
            "an inference call has not ended for 61 s, in spite of its time-out",
        ),
    ],
)
def test_an_age_beyond_the_limit_counts_once_it_stays(rig: Rig, heartbeat: Heartbeat, says: str) -> None:
    assert rig.beats(heartbeat, 1.5) is None, "a process that was frozen has just woken up"
    assert rig.beats(FINE, 1) is None
    assert rig.beats(heartbeat, 2) is None, "another time, not the same one"
    assert rig.beats(heartbeat, 1) == says


def test_one_old_heartbeat_does_not_confirm_itself(rig: Rig) -> None:
    high = replace(FINE, poll_age_s=61.0)
    assert rig.beats(high, 0.5) is None
    assert rig.silence(30, last=high) is None


def test_a_supervisor_that_slept_gives_fresh_time(rig: Rig) -> None:
    assert rig.beats(FINE, 5) is None
    assert rig.sleeps(3600) is None
    assert rig.silence(LIMIT_S) is None
    assert rig.silence(1) is not None


def test_a_supervisor_that_slept_believes_ages_anew(rig: Rig) -> None:
    high = replace(FINE, poll_age_s=3700.0)
    assert rig.beats(high, 1) is None
    assert rig.sleeps(3600, last=high) is None
    assert rig.beats(high, 2) is None
    assert rig.beats(high, 1) is not None


def test_a_drain_of_its_own_accord_has_the_drain_time(rig: Rig) -> None:
    leaving = replace(FINE, poll_age_s=500.0, oldest_call_s=500.0, stopping="the producer is fenced")
    assert rig.beats(leaving, DRAIN_S) is None
    assert rig.beats(leaving, 1) == "the producer is fenced; it has been draining for 30 s"
