"""How far behind, how old, and when it will be over: computed in virtual time."""

from __future__ import annotations

import math

import pytest

from promptbus_worker.lag import SHORT_S, WINDOW_S, YOUNG_S, LagMeter, PartitionLag, time_to_drain_s
from promptbus_worker.ledger import Ledger, Ownership, Progress

DAWN_MS = 1_700_000_000_000.0


class Partition:
    """One owned partition, measured whenever a test says so."""

    def __init__(self) -> None:
        self.ownership = Ownership("t", 0, 1)
        self.meter = LagMeter()
        self.now = 100.0

    def wall_ms(self, seconds_ago: float = 0.0) -> float:
        return DAWN_MS + (self.now - 100.0 - seconds_ago) * 1000

    def measure(
        self,
        next_offset: int,
        end: int,
        *,
        after_s: float = 1.0,
        oldest_ms: float | None = None,
        last_ms: float | None = None,
    ) -> PartitionLag:
        self.now += after_s
        progress = Progress(
            self.ownership,
            next_offset,
            None if oldest_ms is None else int(oldest_ms),
            None if last_ms is None else int(last_ms),
        )
        (lag,) = self.meter.measure([progress], {self.ownership: end}, now=self.now, wall_ms=self.wall_ms())
        return lag


def lag(records: int, *, answered: float = 0.0, arrived: float = 0.0, seconds: float = 100.0) -> PartitionLag:
    return PartitionLag("t", 0, 0.0, records, seconds, answered, arrived)


# -- records and seconds


def test_lag_is_from_the_next_offset_to_commit_to_the_end() -> None:
    assert Partition().measure(40, 100).records == 60
    assert Partition().measure(100, 100)[3:5] == (0, 0.0)


def test_an_end_older_than_what_was_polled_is_no_negative_lag() -> None:
    assert Partition().measure(100, 90).records == 0


def test_the_age_is_that_of_the_oldest_record_in_hand() -> None:
    partition = Partition()
    assert (
        partition.measure(5, 9, oldest_ms=partition.wall_ms(41.0), last_ms=partition.wall_ms()).seconds
        == 42.0
    )


def test_a_clock_ahead_of_ours_makes_no_negative_age() -> None:
    partition = Partition()
    assert partition.measure(5, 9, oldest_ms=partition.wall_ms(-3600)).seconds == 0.0


def test_what_waits_at_the_broker_after_an_idle_night_is_not_a_night_old() -> None:
    partition = Partition()
    last_ms = partition.wall_ms()
    partition.measure(10, 10, last_ms=last_ms)
    partition.measure(10, 10, after_s=36_000, last_ms=last_ms)
    assert partition.measure(10, 12, after_s=1, last_ms=last_ms).seconds == 1.0
    assert partition.measure(10, 12, after_s=600, last_ms=last_ms).seconds == 601.0


def test_in_a_backlog_what_waits_is_about_as_old_as_what_was_polled_last() -> None:
    partition = Partition()
    hour_ago_ms = partition.wall_ms(3600)
    partition.measure(0, 1000, oldest_ms=hour_ago_ms, last_ms=hour_ago_ms)
    assert partition.measure(500, 1000, last_ms=hour_ago_ms).seconds == pytest.approx(3602)


def test_of_a_backlog_never_read_the_age_counts_from_the_assignment() -> None:
    partition = Partition()
    assert partition.measure(0, 1000).seconds == 0.0
    assert partition.measure(0, 1000, after_s=30).seconds == 30.0


def test_a_partition_whose_end_is_unknown_is_left_out_and_a_new_epoch_starts_anew() -> None:
    meter, first = LagMeter(), Ownership("t", 0, 1)
    assert meter.measure([Progress(first, 5, None, None)], {}, now=1.0, wall_ms=0.0) == []
    (before,) = meter.measure([Progress(first, 5, None, None)], {first: 9}, now=2.0, wall_ms=0.0)
    second = Ownership("t", 0, 2)
    (after,) = meter.measure([Progress(second, 5, None, None)], {second: 9}, now=3.0, wall_ms=0.0)
    assert (before.since, after.since) == (1.0, 3.0)


def test_a_backlog_that_comes_back_untouched_is_as_old_as_it_was() -> None:
    partition = Partition()
    partition.measure(5, 9, oldest_ms=partition.wall_ms(41.0), last_ms=partition.wall_ms(30.0))
    partition.meter.measure([], {}, now=partition.now, wall_ms=partition.wall_ms())  # lost
    partition.ownership = Ownership("t", 0, 2)
    assert partition.measure(5, 9).seconds == 43.0
    partition.meter.measure([], {}, now=partition.now, wall_ms=partition.wall_ms())
    partition.ownership = Ownership("t", 0, 3)
    assert partition.measure(7, 9).seconds == 0.0, (
        "another owner got on, and of what is left nothing is known"
    )


def test_what_comes_after_a_moment_without_lag_is_new() -> None:
    partition = Partition()
    partition.measure(5, 9, oldest_ms=partition.wall_ms(41.0))
    partition.measure(5, 5, after_s=60.0)  # cut short by whoever runs the brokers
    assert partition.measure(5, 9).seconds == 1.0


# -- rates


def test_rates_are_of_the_last_minute() -> None:
    partition = Partition()
    partition.measure(0, 0, after_s=0)
    for second in range(1, 200):
        partition.measure(1000 * second, 1000 * second)  # a flood that is over
    for second in range(1, int(WINDOW_S) + 1):
        last = partition.measure(199_000 + 10 * second, 199_000 + 30 * second)
    assert last.answered_per_s == pytest.approx(10)
    assert last.arrived_per_s == pytest.approx(30)


def test_the_first_measurement_has_no_rates_and_a_log_cut_short_no_negative_one() -> None:
    partition = Partition()
    assert partition.measure(0, 100)[5:] == (0.0, 0.0)
    assert partition.measure(0, 50).arrived_per_s == 0.0


# -- time to drain


def test_without_lag_there_is_nothing_to_drain() -> None:
    assert time_to_drain_s([]) == 0.0
    assert time_to_drain_s([lag(0), lag(0, arrived=5)]) == 0.0


def test_lag_over_the_rate_at_which_it_shrinks() -> None:
    assert time_to_drain_s([lag(6000, answered=30, arrived=10)]) == 300.0


def test_all_partitions_count_together() -> None:
    assert time_to_drain_s([lag(1000, answered=20), lag(500, arrived=5), lag(0)]) == 100.0


@pytest.mark.parametrize(("answered", "arrived"), [(10, 10), (10, 11), (0, 0), (0, 7)])
def test_what_does_not_shrink_never_drains(answered: float, arrived: float) -> None:
    assert time_to_drain_s([lag(6000, answered=answered, arrived=arrived)]) == math.inf


def test_work_under_way_at_a_steady_rate_is_no_backlog() -> None:
    # 500/s in, 500/s out: a few are in hand at any moment, and that they do not become fewer is no alarm.
    assert time_to_drain_s([lag(10, answered=500, arrived=500.1)]) == 10 / 500
    assert time_to_drain_s([lag(int(500 * SHORT_S) + 1, answered=500, arrived=500.1)]) == math.inf


def test_what_has_only_just_come_is_not_called_hopeless() -> None:
    assert time_to_drain_s([lag(1, seconds=YOUNG_S - 1)]) == 0.0
    assert time_to_drain_s([lag(10_000, seconds=1, answered=100, arrived=900)]) == 100.0
    assert time_to_drain_s([lag(1, seconds=YOUNG_S)]) == math.inf


# -- what the ledger tells


def test_the_ledger_tells_the_age_of_the_first_unsettled_record_only_while_it_is_in_hand() -> None:
    ledger = Ledger()
    ownership = ledger.assign("t", 0)
    assert ledger.progress() == [], "the position is not known yet"
    ledger.begin(ownership, 3, committed=True)
    assert ledger.progress() == [Progress(ownership, 3, None, None)]
    for offset, timestamp_ms in ((5, 50), (6, 40), (9, 90)):
        ledger.track(ownership, offset, 1, timestamp_ms)
    ledger.settle(ownership, 6)
    assert ledger.progress()[0][2:] == (50, 90), "the lowest offset, not the lowest timestamp"
    ledger.settle(ownership, 5)
    assert ledger.progress() == [Progress(ownership, 9, 90, 90)]
    ledger.settle(ownership, 9)
    assert ledger.progress() == [Progress(ownership, 10, None, 90)]
    ledger.track(ownership, 10, 1)
    assert ledger.progress() == [Progress(ownership, 10, None, None)], "a record may have no timestamp"
    ledger.release(ownership, 10)
    assert ledger.progress()[0].next_offset == 10
    ledger.end(ownership)
    assert ledger.progress() == []
