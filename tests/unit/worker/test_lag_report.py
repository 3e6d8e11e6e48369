"""What the consumer thread reports of its partitions, and what it costs it: seldom a question, never a wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from promptbus_worker import lag_files
from promptbus_worker.lag import PartitionLag
from promptbus_worker.lag_report import EVERY_S, LagReport
from promptbus_worker.ledger import Ownership
from promptbus_worker.log_ends import ASK_AT_LEAST_EVERY_S, ASK_EVERY_S, ASK_TIMEOUT_S, Consumer, LogEnds
from tests.unit.worker.fake_consumer import FakeClock, FakeConsumer, Group, Rig, kafka_error

SELF = 0  # the slot


class Reported:
    """An intake with its report, and what the supervisor would read of it."""

    def __init__(self, directory: Path, group: Group) -> None:
        self.directory = directory
        clock = FakeClock()
        self.wall_ahead_s = 1000.0
        report = LagReport(directory, SELF, clock=clock, wall_clock=lambda: clock.now + self.wall_ahead_s)
        self.rig = Rig(group, max_records=5, lag_report=report, clock=clock)

    def pass_s(self, seconds: float) -> None:
        until = self.rig.clock.now + seconds
        while self.rig.clock.now < until:
            before = self.rig.clock.now
            self.rig.step()
            self.rig.clock.now = max(self.rig.clock.now, before + 0.01)

    def read(self) -> dict[int, PartitionLag]:
        lags = lag_files.read(self.directory, {SELF: os.getpid()}, self.rig.clock.now)
        return {lag.partition: lag for lag in lags}


def group_of(partitions: int = 1, records: int = 0) -> Group:
    group = Group(partitions)
    for partition in range(partitions):
        group.committed[partition] = 0
        group.produce(partition, count=records)
    return group


# -- the report


def test_lag_is_told_every_second_and_is_nothing_once_all_is_settled(tmp_path: Path) -> None:
    whole = Reported(tmp_path, group_of(records=5))
    whole.rig.assigned(0)
    whole.pass_s(2 * EVERY_S)
    assert whole.read()[0].records == 5
    assert whole.read()[0].seconds == pytest.approx(whole.rig.clock.now + 1000, abs=2), "timestamp 5 ms"
    whole.rig.settle(*range(5))
    whole.pass_s(2 * EVERY_S)
    assert whole.read()[0][3:5] == (0, 0.0)


def test_lag_is_told_while_partitions_are_paused_and_nothing_is_fetched(tmp_path: Path) -> None:
    group = group_of(2)
    whole = Reported(tmp_path, group)
    whole.rig.assigned(0, 1)
    whole.rig.intake.hold(True)
    whole.pass_s(2 * EVERY_S)
    group.produce(1, count=70)
    whole.pass_s(ASK_EVERY_S + 2 * EVERY_S)
    assert {partition: lag.records for partition, lag in whole.read().items()} == {0: 0, 1: 70}
    group.produce(0, count=7)
    whole.pass_s(ASK_EVERY_S + 2 * EVERY_S)
    assert {partition: lag.records for partition, lag in whole.read().items()} == {0: 7, 1: 70}
    assert whole.read()[1].seconds > ASK_EVERY_S
    asked = whole.rig.consumer.of("ends")
    assert 2 <= len(asked) <= 5
    assert asked[-1] == ([0, 1],), "all in one call"


def test_a_partition_that_goes_is_gone_from_the_report_at_once(tmp_path: Path) -> None:
    whole = Reported(tmp_path, group_of(2))
    whole.rig.assigned(0, 1)
    whole.pass_s(2 * EVERY_S)
    assert set(whole.read()) == {0, 1}
    whole.rig.consumer.revoke(1)
    whole.rig.step()
    assert set(whole.read()) == {0}
    whole.rig.consumer.lose(0)
    whole.rig.step()
    assert set(whole.read()) == set()


def test_a_partition_that_comes_back_is_a_later_assignment(tmp_path: Path) -> None:
    whole = Reported(tmp_path, group_of())
    whole.rig.assigned(0)
    whole.pass_s(2 * EVERY_S)
    first = whole.read()[0].since
    whole.rig.consumer.revoke(0)
    whole.rig.step()
    whole.rig.assigned(0)
    whole.pass_s(2 * EVERY_S)
    assert whole.read()[0].since > first


def test_a_report_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing"
    whole = Reported(missing, group_of(records=5))
    whole.rig.assigned(0)
    whole.pass_s(5 * EVERY_S)
    assert whole.rig.offsets() == list(range(5))
    assert whole.rig.loop.stopped == []
    assert [r.message for r in caplog.records].count("the lag of partitions cannot be reported") == 1
    missing.mkdir()
    whole.pass_s(2 * EVERY_S)
    assert whole.read()[0].records == 5


# -- the ends of logs


class Ends:
    """The ends of one partition, read when a test says so."""

    def __init__(self, group: Group) -> None:
        self.fake = FakeConsumer({}, group, FakeClock())
        self.ends = LogEnds()
        self.ownership = Ownership("requests", 0, 1)

    def read(self, now: float, *, next_offset: int = 0, fetching: bool = True) -> int | None:
        consumer = cast(Consumer, self.fake)
        found = self.ends.read(consumer, {self.ownership: next_offset}, fetching=fetching, now=now)
        return found.get(self.ownership)

    @property
    def asked(self) -> int:
        return len(self.fake.of("ends"))


def test_while_the_client_knows_the_end_nobody_is_asked() -> None:
    ends = Ends(group_of())
    for second in range(100):
        ends.fake.fetched_end[0] = second
        assert ends.read(float(second), next_offset=second) == second
    for second in range(100, 200):
        assert ends.read(float(second), next_offset=99) == 99, "an idle partition is fetched all the same"
    assert ends.asked == 0


def test_a_partition_never_fetched_is_asked_for_at_once_and_then_seldom() -> None:
    group = group_of(records=50)
    ends = Ends(group)
    assert ends.read(0.0, fetching=False) == 50
    group.produce(count=5)
    assert ends.read(1.0, fetching=False) == 50
    assert ends.asked == 1
    assert ends.read(ASK_EVERY_S, fetching=False) == 55


def test_behind_a_full_prefetch_queue_an_end_that_stands_still_is_doubted() -> None:
    group = group_of(records=50)
    ends = Ends(group)
    ends.fake.fetched_end[0] = 40
    assert ends.read(0.0) == 40
    assert ends.asked == 0
    assert ends.read(ASK_EVERY_S) == 50
    assert ends.read(ASK_EVERY_S + 1) == 50
    ends.fake.fetched_end[0] = 51
    assert ends.read(ASK_EVERY_S + 2) == 51, "the newest word counts"
    assert ends.asked == 1


def test_after_a_pause_an_old_value_of_the_client_does_not_hide_the_answer() -> None:
    ends = Ends(group_of(records=50))
    ends.fake.fetched_end[0] = 10
    assert ends.read(0.0, fetching=False) == 50


def test_brokers_that_do_not_answer_are_asked_less_and_less_often() -> None:
    ends = Ends(group_of(records=50))
    asked_at = []
    for second in range(400):
        ends.fake.failures["ends"] = [kafka_error("_TIMED_OUT")]
        before = ends.asked
        assert ends.read(float(second), fetching=False) is None
        if ends.asked > before:
            asked_at.append(second)
    assert asked_at == [0, 10, 30, 70, 130, 190, 250, 310, 370]
    assert ASK_TIMEOUT_S / ASK_AT_LEAST_EVERY_S < 0.01, "of the consumer's time"
    ends.fake.failures.clear()
    assert ends.read(430.0, fetching=False) == 50
    assert ends.read(430.0 + ASK_EVERY_S, fetching=False) == 50
    assert ends.asked == len(asked_at) + 2


def test_what_is_not_owned_any_more_is_forgotten() -> None:
    ends = Ends(group_of(records=50))
    ends.fake.fetched_end[0] = 50
    assert ends.read(0.0) == 50
    assert ends.ends.read(cast(Consumer, ends.fake), {}, fetching=True, now=1.0) == {}
