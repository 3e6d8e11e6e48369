"""Partitions come and go: nothing is delivered before its position is known, nothing is committed after its epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from confluent_kafka import Message

from promptbus_worker.commit_metadata import decode
from promptbus_worker.intake import Intake
from promptbus_worker.ledger import Ownership
from tests.unit.worker.fake_consumer import METRICS, TOPIC, Group, Rig, kafka_error


def group_of(records: int, *, partitions: int = 1, committed: int | None = 0) -> Group:
    group = Group(partitions)
    for partition in range(partitions):
        group.produce(partition, count=records)
        if committed is not None:
            group.committed[partition] = committed
    return group


def count(kind: str) -> float:
    value: float = METRICS.commits_total[kind]._value.get()
    return value


# -- assign


def test_reading_begins_at_the_committed_offset() -> None:
    rig = Rig(group_of(10, committed=4)).assigned(0)
    assert rig.offsets() == [4, 5, 6, 7, 8, 9]
    assert rig.intake.joined


@pytest.mark.parametrize(("protocol", "joined"), [("classic", False), ("consumer", True)])
def test_a_member_that_gets_no_partitions_is_told_so_by_the_classic_protocol_only(
    protocol: str, joined: bool
) -> None:
    rig = Rig(group_of(10, committed=4), protocol=protocol)
    assert not rig.intake.joined
    rig.step()
    assert rig.intake.joined is joined
    rig.consumer.assign()
    rig.step()
    assert rig.intake.joined


def test_nothing_is_delivered_before_the_committed_offset_was_read() -> None:
    rig = Rig(group_of(10, committed=4))
    rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")] * 3
    rig.consumer.assign(0)
    for attempt in range(2):
        rig.step()
        # What the client might deliver all the same, from wherever it likes.
        rig.consumer.position[0], rig.consumer.paused = attempt, set()
    assert rig.offsets() == []
    assert rig.in_hand() == 0
    assert rig.consumer.of("commit") == []
    rig.step(2)
    assert rig.consumer.of("seek") == [(0, 4)]
    assert rig.consumer.paused == set()
    assert rig.offsets() == [4, 5, 6, 7, 8, 9]


def test_a_partition_that_cannot_be_positioned_is_taken_over_paused() -> None:
    rig = Rig(group_of(10, partitions=2, committed=4))
    rig.consumer.committed_errors[1] = kafka_error("_WAIT_COORD")
    rig.consumer.assign(0, 1)
    rig.consumer._serve()
    assert rig.consumer.paused == {1}
    rig.step()
    assert rig.offsets(0) == [4, 5, 6, 7, 8, 9], "the others do not wait for it"
    rig.step()
    assert rig.offsets(1) == [4, 5, 6, 7, 8, 9]


def test_a_partition_that_cannot_be_moved_to_its_position_is_tried_again() -> None:
    rig = Rig(group_of(10, committed=4))
    rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")]
    rig.consumer.failures["seek"] = [kafka_error("_STATE")] * 2
    rig.consumer.assign(0)
    rig.step(3)
    assert rig.offsets() == []
    rig.step(2)
    assert rig.offsets() == [4, 5, 6, 7, 8, 9]


def test_an_error_of_a_partition_without_a_position_yet_is_no_reason_to_stop() -> None:
    rig = Rig(group_of(10, committed=4))
    rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")] * 3
    rig.consumer.assign(0)
    rig.step()
    # Its placeholder is not where it will be read from, and may lie outside of the log.
    rig.consumer.messages.append(Message(TOPIC, 0, 0, error=kafka_error("_AUTO_OFFSET_RESET")))
    rig.step(3)
    assert rig.loop.stopped == []
    assert rig.offsets() == [4, 5, 6, 7, 8, 9]


def test_a_partition_positioned_while_held_stays_paused() -> None:
    rig = Rig(group_of(10, committed=4))
    rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")]
    rig.intake.hold(True)
    rig.consumer.assign(0)
    rig.step(4)
    assert rig.offsets() == []
    assert rig.consumer.paused == {0}
    rig.intake.hold(False)
    rig.step()
    assert rig.offsets() == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("at_end", "start"), [(False, 3), (True, 10)], ids=["earliest", "latest"])
def test_a_group_without_commits_begins_at_an_explicit_offset_and_commits_it_at_once(
    at_end: bool, start: int
) -> None:
    group = group_of(10, committed=None)
    group.low[0] = 3
    rig = Rig(group, start_at_end=at_end).assigned(0)
    assert rig.consumer.of("assign") == [({0: start},)]
    rig.clock.now += 1
    rig.step()
    assert group.committed == {0: start}, "a worker that dies now must not skip what comes until the next one"


def test_the_logs_ends_are_asked_for_again_when_they_cannot_be_read() -> None:
    rig = Rig(group_of(3, committed=None))
    rig.consumer.failures["get_watermark_offsets"] = []
    rig.consumer.failures["ends"] = [kafka_error("_TRANSPORT")] * 2
    rig.consumer.assign(0)
    rig.step(2)
    assert rig.offsets() == []
    rig.step(2)
    assert rig.offsets() == [0, 1, 2]


def test_a_partition_assigned_again_without_a_word_is_a_new_epoch() -> None:
    rig = Rig(group_of(3)).assigned(0)
    rig.consumer.position.clear()
    rig.assigned(0)
    old, new = rig.loop.accepted[0].ownership, rig.loop.accepted[-1].ownership
    assert not old.live
    assert new.live
    assert rig.offsets() == [0, 1, 2, 0, 1, 2]
    assert rig.in_hand() == 3


# -- commits


def commits(rig: Rig) -> list[tuple[object, ...]]:
    return rig.consumer.of("commit")


def test_commits_go_out_about_ten_times_a_second_and_only_if_something_settled() -> None:
    rig = Rig(group_of(50)).assigned(0)
    rig.consumer.before_poll = lambda: rig.group.produce()  # so that no poll waits
    for offset in range(20):
        rig.settle(offset)
        rig.clock.now += 0.025
        rig.step()
    assert 4 <= len(commits(rig)) <= 6
    assert all(asynchronous for asynchronous, _ in commits(rig))
    rig.clock.now += 1
    rig.step()
    sent = len(commits(rig))
    rig.clock.now += 1
    rig.step(5)
    assert len(commits(rig)) == sent


def test_the_watermark_waits_for_the_slow_one() -> None:
    rig = Rig(group_of(5)).assigned(0)
    rig.settle(1, 2, 4)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 0}
    assert decode(0, rig.group.metadata[0]) == [(1, 3), (4, 5)]
    rig.settle(0)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 3}


def test_the_next_owner_skips_what_is_settled_above_the_watermark_and_counts_it() -> None:
    skipped = METRICS.redeliveries_skipped_total._value
    before = skipped.get()
    rig = Rig(group_of(6)).assigned(0)
    rig.settle(1, 2, 4)
    rig.clock.now += 1
    rig.step()
    restarted = Rig(rig.group).assigned(0)
    assert restarted.offsets() == [0, 3, 5]
    assert skipped.get() - before == 3
    restarted.settle(0, 3, 5)
    restarted.clock.now += 1
    restarted.step()
    assert (rig.group.committed, rig.group.metadata) == ({0: 6}, {0: ""})


def test_metadata_that_somebody_else_wrote_means_nothing() -> None:
    group = group_of(6)
    group.metadata[0] = "moved by hand, see ticket 7"
    assert Rig(group).assigned(0).offsets() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "retriable", "metric"),
    [
        ("REQUEST_TIMED_OUT", True, "error"),
        ("_TRANSPORT", False, "error"),
        ("REBALANCE_IN_PROGRESS", False, "lost"),
        ("ILLEGAL_GENERATION", False, "lost"),
    ],
)
def test_a_commit_refused_for_one_partition_is_sent_again_for_that_one(
    name: str, retriable: bool, metric: str
) -> None:
    rig = Rig(group_of(2, partitions=2)).assigned(0, 1)
    before = count(metric)
    rig.consumer.commit_errors[0] = kafka_error(name, retriable=retriable)
    rig.settle(0, 1)
    rig.settle(0, 1, partition=1)
    for _ in range(3):
        rig.clock.now += 1
        rig.step()
    assert commits(rig) == [(True, {0: 2, 1: 2}), (True, {0: 2})]
    assert rig.group.committed == {0: 2, 1: 2}
    assert count(metric) == before + 1
    assert rig.loop.stopped == []


def test_a_commit_that_cannot_even_be_sent_is_sent_again() -> None:
    rig = Rig(group_of(2)).assigned(0)
    rig.consumer.failures["commit"] = [kafka_error("_WAIT_COORD")]
    rig.settle(0, 1)
    for _ in range(2):
        rig.clock.now += 1
        rig.step()
    assert rig.group.committed == {0: 2}


def test_nothing_to_commit_is_no_mistake() -> None:
    rig = Rig(group_of(2)).assigned(0)
    before = count("ok")
    rig.consumer.failures["commit"] = [kafka_error("_NO_OFFSET")]
    rig.settle(0)
    rig.clock.now += 1
    rig.step(2)
    assert count("ok") == before + 1
    assert rig.loop.stopped == []


@pytest.mark.parametrize(
    ("name", "restart"), [("OFFSET_METADATA_TOO_LARGE", False), ("GROUP_AUTHORIZATION_FAILED", False)]
)
def test_a_commit_that_can_never_succeed_stops(name: str, restart: bool) -> None:
    rig = Rig(group_of(2)).assigned(0)
    rig.consumer.commit_errors[0] = kafka_error(name)
    rig.settle(0)
    rig.clock.now += 1
    rig.step(2)
    assert [stop[1] for stop in rig.loop.stopped] == [restart]


# -- revoke


def test_a_revoke_waits_for_what_was_dispatched_and_commits_it_before_the_partition_goes() -> None:
    rig = Rig(group_of(10)).assigned(0)
    dispatched = iter([(0,), (1, 2), (4,), (3,)])

    def release(ownerships: Sequence[Ownership]) -> None:
        rig.intake.released(rig.loop.accepted[5:])

    rig.loop.on_release = release
    rig.while_waiting = lambda: rig.settle(*next(dispatched))
    rig.consumer.revoke(0)
    before = rig.clock.now
    rig.step()
    assert rig.group.committed == {0: 5}
    assert commits(rig) == [(False, {0: 5})], "synchronously, inside the callback"
    assert rig.clock.now - before < 1, "and no longer than needed"
    assert [o.live for o in rig.loop.forgotten] == [False]
    assert rig.in_hand() == 0


def test_a_revoke_of_an_idle_partition_takes_no_time() -> None:
    rig = Rig(group_of(0)).assigned(0)
    rig.consumer.revoke(0)
    before = len(rig.waits)
    rig.step()
    assert len(rig.waits) == before


def test_a_revoke_waits_no_longer_than_its_time_and_commits_what_is_settled() -> None:
    rig = Rig(group_of(10), revoke_s=2.0).assigned(0)
    rig.settle(0, 1, 5)
    progress = rig.intake.progress_at
    rig.consumer.rebalance("revoke", 0)
    assert sum(rig.waits) == pytest.approx(2.0, abs=0.06)
    assert rig.intake.progress_at > progress, "it is no hang"
    assert rig.group.committed == {0: 2}


def test_what_may_wait_for_brokers_does_not_look_stuck() -> None:
    rig = Rig(group_of(10, partitions=3), revoke_s=2.0).assigned(0, 1, 2)
    seen: dict[str, float] = {}
    committed, commit = rig.consumer.committed, rig.consumer.commit

    def committed_later(*arguments: object, **more: object) -> object:
        seen["positions"] = rig.intake.progress_at - rig.clock.now
        return committed(*arguments, **more)  # type: ignore[arg-type]  # handed on as it came

    def commit_later(*arguments: object, **more: object) -> object:
        seen["commit"] = rig.intake.progress_at - rig.clock.now
        return commit(*arguments, **more)  # type: ignore[arg-type]  # handed on as it came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.consumer, "committed", committed_later)
        patch.setattr(rig.consumer, "commit", commit_later)
        rig.settle(0, 1, 5)
        rig.consumer.rebalance("revoke", 0)
        rig.consumer.rebalance("assign", 0)
    assert seen["commit"] >= 60, "the client's synchronous commit blocks for so long"
    assert seen["positions"] >= 2 * 2, "one question for all, one for the partition"


def test_a_revoke_leaves_the_other_partitions_alone() -> None:
    rig = Rig(group_of(3, partitions=2)).assigned(0, 1)
    rig.settle(0, 1, 2)
    rig.settle(0, partition=1)
    rig.consumer.revoke(0)
    rig.step()
    assert rig.in_hand() == 2
    rig.settle(1, 2, partition=1)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 3, 1: 3}


@pytest.mark.parametrize("name", ["UNKNOWN_MEMBER_ID", "_TIMED_OUT", "_NO_OFFSET", "_STATE"])
@pytest.mark.parametrize("raised", [True, False])
def test_a_revoke_whose_commit_fails_lets_go_all_the_same(name: str, raised: bool) -> None:
    rig = Rig(group_of(3)).assigned(0)
    rig.settle(0, 1, 2)
    if raised:
        rig.consumer.failures["commit"] = [kafka_error(name)]
    else:
        rig.consumer.commit_errors[0] = kafka_error(name)
    rig.consumer.rebalance("revoke", 0)
    assert rig.in_hand() == 0
    assert not rig.loop.accepted[0].ownership.live
    assert rig.group.committed == {0: 0}


def test_a_revoke_does_not_block_on_a_coordinator_that_is_silent() -> None:
    rig = Rig(group_of(4)).assigned(0)
    rig.consumer.answering = False
    rig.settle(0)
    rig.clock.now += 1
    rig.step()
    rig.clock.now += 10
    rig.settle(1, 2, 3)
    rig.consumer.rebalance("revoke", 0)
    assert commits(rig) == [(True, {0: 1}), (True, {0: 4})]


def test_a_partition_without_a_position_can_be_revoked() -> None:
    rig = Rig(group_of(3))
    rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")] * 10
    rig.consumer.assign(0)
    rig.step(2)
    rig.consumer.revoke(0)
    rig.step(2)
    rig.consumer.failures.clear()
    rig.step(2)
    assert rig.consumer.of("seek") == []
    assert commits(rig) == []
    assert rig.loop.stopped == []


# -- lost and late


def test_a_lost_partition_is_let_go_and_never_committed() -> None:
    rig = Rig(group_of(3)).assigned(0)
    rig.settle(0, 1)
    rig.consumer.lose(0)
    rig.consumer._serve()
    rig.settle(2)
    for _ in range(3):
        rig.clock.now += 1
        rig.step()
    assert commits(rig) == []
    assert [o.live for o in rig.loop.forgotten] == [False]
    assert rig.in_hand() == 0


def test_what_an_old_epoch_settles_late_is_never_committed() -> None:
    rig = Rig(group_of(3)).assigned(0)
    old = rig.loop.accepted[:3]
    rig.consumer.lose(0)
    rig.step()
    rig.assigned(0)
    assert rig.in_hand() == 3
    rig.intake.settled(old)
    rig.clock.now += 1
    rig.step()
    assert commits(rig) == []
    assert rig.in_hand() == 3


# -- callbacks never raise


def _raises(*_: object) -> None:
    raise RuntimeError("a defect")


def _release(intake: Intake, rig: Rig) -> None:
    rig.loop.on_release = _raises


def _forget(intake: Intake, rig: Rig) -> None:
    rig.loop.on_forget = _raises


def _assign(intake: Intake, rig: Rig) -> None:
    rig.consumer.failures["assign"] = [kafka_error("_STATE")]


def _settle_twice(intake: Intake, rig: Rig) -> None:
    rig.settle(0)
    rig.settle(0)


@pytest.mark.parametrize(
    ("kind", "breaks"),
    [
        ("revoke", _release),
        ("revoke", _forget),
        ("revoke", _settle_twice),
        ("lost", _forget),
        ("assign", _assign),
        ("assign", _forget),
    ],
)
def test_an_exception_in_a_callback_stops_the_worker_and_does_not_come_out_of_poll(
    kind: str, breaks: Callable[[Intake, Rig], None]
) -> None:
    rig = Rig(group_of(3)).assigned(0)
    breaks(rig.intake, rig)
    if kind == "assign":
        rig.consumer.position.clear()
    rig.consumer.rebalance(kind, 0)
    assert [restart for _, restart in rig.loop.stopped] == [True]
    delivered = len(rig.loop.accepted)
    rig.loop.on_forget = lambda ownerships: None
    rig.consumer.position[0] = 0
    rig.step(3)
    assert len(rig.loop.accepted) == delivered, "and nothing more is delivered"


def test_a_commits_answer_that_makes_no_sense_does_not_come_out_of_poll() -> None:
    rig = Rig(group_of(3)).assigned(0)
    on_commit = rig.intake._config["on_commit"]
    assert callable(on_commit)
    on_commit(None, [object()])
    on_commit(kafka_error("_NO_OFFSET"), [])
    rig.settle(0, 1, 2)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 3}


def test_a_record_polled_before_the_partition_came_back_is_not_of_the_new_epoch() -> None:
    group = Group()
    group.committed[0] = 0
    group.produce(count=3)
    rig = Rig(group).assigned(0)  # 0, 1, 2 in hand
    group.produce()  # 3

    def rebalance() -> None:
        rig.consumer.before_consume = lambda: None
        rig.consumer.rebalance("lost", 0)
        rig.consumer.rebalance("assign", 0)

    rig.consumer.before_consume = rebalance
    rig.step(4)
    rig.settle(3)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 0}
    assert rig.offsets().count(0) == 2
