"""How the consumer thread polls: as much as there is room for, paused only when it must be, never raising."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import Consumer, Message

from promptbus_worker.intake import MAX_POLL_RECORDS, POLL_S, WAIT_FOR_ROOM_S, Intake
from promptbus_worker.ledger import LedgerError
from promptbus_worker.pausing import PAUSE_AFTER_S
from promptbus_worker.positions import Positions
from tests.unit.worker.fake_consumer import (
    METRICS,
    TOPIC,
    Group,
    RecordingLoop,
    Rig,
    kafka_error,
)


def busy(records: int, *, max_records: int = 100, max_bytes: int = 1 << 20) -> Rig:
    """One partition from offset 0 on, with so many records in it."""
    group = Group()
    group.committed[0] = 0
    group.produce(count=records)
    return Rig(group, max_records=max_records, max_bytes=max_bytes)


# -- room


def test_waits_for_one_and_takes_what_else_is_there() -> None:
    rig = busy(7, max_records=10).assigned(0)
    assert rig.consumer.of("poll") == [(POLL_S,)]
    assert rig.consumer.of("consume") == [(9, 0)]
    assert rig.offsets() == list(range(7))
    rig.step()
    assert rig.consumer.of("consume") == [(9, 0)], "nothing came, so nothing more is asked for"


def test_asks_for_exactly_the_room_there_is() -> None:
    rig = busy(4, max_records=10).assigned(0)
    rig.group.produce(count=100)
    rig.step()
    assert rig.consumer.of("consume")[-1] == (5, 0)
    assert rig.in_hand() == 10
    rig.settle(0, 1, 2)
    rig.step()
    assert rig.consumer.of("consume")[-1] == (2, 0)
    rig.settle(3)
    rig.step()
    assert len(rig.consumer.of("consume")) == 3, "room for one is poll's alone"
    assert rig.offsets() == list(range(14))


def test_a_poll_is_bounded_however_much_room_there_is() -> None:
    rig = busy(3 * MAX_POLL_RECORDS, max_records=10 * MAX_POLL_RECORDS).assigned(0)
    assert len(rig.offsets()) == MAX_POLL_RECORDS


def test_without_room_it_waits_for_settled_records_instead_of_polling() -> None:
    rig = busy(50, max_records=5).assigned(0)
    polls = len(rig.consumer.of("poll"))
    rig.step(3)
    assert len(rig.consumer.of("poll")) == polls
    assert rig.waits == [WAIT_FOR_ROOM_S] * 3
    assert rig.consumer.of("pause") == []
    rig.while_waiting = lambda: rig.settle(0)
    rig.step(2)
    assert rig.offsets() == list(range(6)), "and goes on as soon as there is some"


def test_bytes_in_hand_are_bounded_too() -> None:
    rig = busy(50, max_records=200, max_bytes=3000).assigned(0)
    rig.group.produce(count=50)
    held = rig.in_hand()
    rig.step()
    assert rig.in_hand() == held, "over the limit: nothing more"
    assert rig.waits


def test_starved_for_two_seconds_it_pauses_and_polls_on_until_there_is_room() -> None:
    rig = busy(50, max_records=5).assigned(0)
    since = rig.clock.now
    polls = len(rig.consumer.of("poll"))
    while not rig.consumer.of("pause"):
        assert rig.clock.now - since <= PAUSE_AFTER_S + WAIT_FOR_ROOM_S
        rig.step()
    assert rig.clock.now - since >= PAUSE_AFTER_S
    rig.step(20)
    assert len(rig.consumer.of("poll")) >= polls + 20, "a paused consumer that does not poll loses its place"
    assert rig.consumer.of("pause") == [([0],)], "pausing once is enough"
    assert rig.offsets() == list(range(5))
    rig.settle(*range(5))
    rig.step()
    assert rig.consumer.paused == set()
    rig.step()
    assert rig.offsets() == list(range(10))


def test_poll_soon_polls_once_without_room_and_asks_for_one_record_at_most() -> None:
    rig = busy(50, max_records=5).assigned(0)
    polls, consumes = len(rig.consumer.of("poll")), len(rig.consumer.of("consume"))
    rig.intake.poll_soon()
    before = rig.clock.now
    rig.step(2)
    assert len(rig.consumer.of("poll")) == polls + 1
    assert len(rig.consumer.of("consume")) == consumes
    assert rig.intake.polled_at >= before
    assert rig.in_hand() <= 6


# -- pausing on request


def test_held_partitions_are_paused_and_polled_on() -> None:
    rig = busy(5, max_records=10).assigned(0)
    rig.intake.hold(True)
    rig.group.produce(count=5)
    polls = len(rig.consumer.of("poll"))
    rig.step(10)
    assert rig.consumer.paused == {0}
    assert len(rig.consumer.of("poll")) == polls + 10
    assert rig.offsets() == list(range(5))
    rig.intake.hold(False)
    rig.step()
    assert rig.consumer.paused == set()
    assert rig.offsets() == list(range(10))


def test_a_partition_that_comes_while_held_is_paused_too_and_goes_on_with_the_others() -> None:
    group = Group(2)
    group.committed = {0: 0, 1: 0}
    rig = Rig(group).assigned(0)
    rig.intake.hold(True)
    rig.step()
    rig.consumer.assign(1)
    rig.step()
    group.produce(1, count=3)
    rig.step(2)
    assert rig.consumer.paused == {0, 1}
    assert rig.offsets(1) == []
    rig.intake.hold(False)
    rig.step()
    assert rig.consumer.paused == set()
    assert rig.offsets(1) == [0, 1, 2]


def test_a_partition_that_comes_while_starved_is_paused_and_resumed_with_the_others() -> None:
    group = Group(2)
    group.committed = {0: 0, 1: 0}
    group.produce(0, count=50)
    rig = Rig(group, max_records=5).assigned(0)
    rig.step(int(PAUSE_AFTER_S / WAIT_FOR_ROOM_S) + 5)
    assert rig.consumer.paused == {0}
    rig.consumer.assign(1)
    rig.step(2)
    assert rig.consumer.paused == {0, 1}
    rig.settle(*range(5))
    rig.step()
    assert rig.consumer.paused == set()


def test_a_pause_that_fails_is_tried_again() -> None:
    rig = busy(0).assigned(0)
    rig.consumer.failures["pause"] = [kafka_error("_UNKNOWN_PARTITION")]
    rig.intake.hold(True)
    rig.step()
    assert rig.consumer.paused == set()
    rig.step()
    assert rig.consumer.paused == {0}
    assert rig.loop.stopped == []


# -- records and errors


def test_a_record_delivered_twice_is_taken_once() -> None:
    rig = busy(5).assigned(0)
    rig.consumer.position[0] = 2
    rig.step()
    assert rig.offsets() == list(range(5))


def test_gaps_between_offsets_are_nothing_special() -> None:
    rig = busy(0)
    rig.group.produce(count=3, gap=4)
    rig.assigned(0)
    assert rig.offsets() == [3, 7, 11]
    rig.settle(3, 7, 11)
    rig.clock.now += 1
    rig.step()
    assert rig.group.committed == {0: 12}


def test_an_error_among_the_messages_costs_no_record() -> None:
    rig = busy(1).assigned(0)
    rig.group.produce(count=3)
    rig.consumer.before_consume = lambda: rig.consumer.errors.append(kafka_error("_TRANSPORT"))
    rig.step()
    assert rig.offsets() == list(range(4))
    rig.consumer.errors.append(kafka_error("_ALL_BROKERS_DOWN"))
    rig.step()
    assert rig.loop.stopped == []


def test_a_committed_offset_out_of_range_stops_with_the_way_out() -> None:
    rig = busy(10)
    rig.group.low[0] = 5
    rig.group.committed[0] = 3
    rig.assigned(0)
    ((reason, restart),) = rig.loop.stopped
    assert "out of range" in reason
    assert "--reset-offsets" in reason
    assert not restart, "starting again would find the same"
    assert rig.offsets() == []


def test_after_a_stop_nothing_more_is_delivered_and_it_is_said_once() -> None:
    rig = busy(0).assigned(0)
    for _ in range(2):
        rig.consumer.errors.append(kafka_error("TOPIC_AUTHORIZATION_FAILED"))
    rig.group.produce(count=5)
    rig.step(5)
    assert len(rig.loop.stopped) == 1
    assert "READ" in rig.loop.stopped[0][0]
    assert rig.offsets() == []


def test_when_the_group_went_on_without_us_every_epoch_is_over() -> None:
    rig = busy(5).assigned(0)
    rig.consumer.errors.append(kafka_error("_MAX_POLL_EXCEEDED"))
    rig.step()
    assert not rig.loop.accepted[0].ownership.live
    assert rig.loop.forgotten == [rig.loop.accepted[0].ownership]
    assert rig.in_hand() == 0
    rig.settle(*range(5))
    rig.consumer.lose(0)
    rig.clock.now += 1
    rig.step(2)
    assert rig.consumer.of("commit") == []
    rig.assigned(0)
    assert rig.offsets() == [*range(5), *range(5)], "its next owner, us again, reads what was not committed"


def test_a_fatal_error_of_the_client_stops() -> None:
    rig = busy(0).assigned(0)
    callback = rig.intake._config["error_cb"]
    assert callable(callback)
    callback(kafka_error("_ALL_BROKERS_DOWN"))
    assert rig.loop.stopped == []
    assert [why.split(":")[0] for why in rig.loop.troubles] == ["_ALL_BROKERS_DOWN"]
    callback(kafka_error("_FATAL", fatal=True))
    assert [restart for _, restart in rig.loop.stopped] == [True]


def test_a_record_whose_headers_cannot_be_read_is_delivered_with_the_problem() -> None:
    class Unreadable:
        """What the client hands out for a header name that is not UTF-8."""

        def __getattr__(self, name: str) -> object:
            message = Message(TOPIC, 0, 0, key=None, value=b"{}", timestamp=(1, 5))
            return getattr(message, name)

        def headers(self) -> None:
            raise SystemError("returned a result with an exception set")

    rig = busy(0).assigned(0)
    record = rig.intake._polling._record(cast(Message, Unreadable()), rig.clock())
    assert record is not None
    assert record.headers is None
    assert record.problem
    assert record.value == b"{}"


# -- the end


def test_a_drain_delivers_nothing_more_but_settles_commits_and_polls_on() -> None:
    rig = busy(5).assigned(0)
    rig.intake.drain()
    rig.group.produce(count=5)
    rig.step(3)
    assert [[o.partition for o in ownerships] for ownerships in rig.loop.drained] == [[0]], "told once"
    assert rig.offsets() == list(range(5))
    assert rig.consumer.paused == {0}
    polls = len(rig.consumer.of("poll"))
    rig.settle(0, 1)
    rig.clock.now += 1
    rig.step()
    assert len(rig.consumer.of("poll")) == polls + 1
    assert rig.group.committed == {0: 2}


def test_run_polls_until_told_to_finish_then_commits_and_closes() -> None:
    rig = busy(5)
    rig.consumer.assign(0)

    def script() -> None:
        match len(rig.consumer.of("poll")):
            case 2:
                rig.settle(*range(5))
                rig.intake.finish()

    rig.consumer.before_poll = script
    rig.intake.run()
    assert rig.group.committed == {0: 5}
    assert rig.consumer.closed
    assert rig.loop.stopped == []


def test_finishing_does_not_wait_for_what_will_never_settle() -> None:
    rig = busy(5)
    rig.consumer.assign(0)
    rig.consumer.before_poll = lambda: rig.intake.finish() if rig.loop.accepted else None
    rig.intake.run()
    assert rig.consumer.closed
    assert sum(rig.waits) < rig.intake._revoke_s / 2, "the loop has given up already"


def test_a_last_commit_that_is_refused_for_now_is_tried_again_on_leaving() -> None:
    rig = busy(5)
    rig.consumer.assign(0)

    def script() -> None:
        if rig.loop.accepted and not rig.intake._finishing.is_set():
            rig.settle(*range(5))
            rig.consumer.commit_errors[0] = kafka_error("REQUEST_TIMED_OUT", retriable=True)
            rig.intake.finish()

    rig.consumer.before_poll = script
    rig.intake.run()
    assert rig.group.committed == {0: 5}


def test_a_poll_that_raises_ends_in_a_stop_and_a_closed_consumer() -> None:
    rig = busy(5)
    rig.consumer.failures["poll"] = [kafka_error("_STATE")]
    rig.intake.run()
    ((reason, restart),) = rig.loop.stopped
    assert "failed" in reason
    assert restart
    assert rig.consumer.closed


def test_settling_what_was_never_delivered_is_a_defect_that_stops() -> None:
    rig = busy(5)
    rig.consumer.assign(0)

    def script() -> None:
        if rig.loop.accepted:
            rig.settle(0)
            rig.settle(0)

    rig.consumer.before_poll = script
    rig.intake.run()
    assert len(rig.loop.stopped) == 1
    with pytest.raises(LedgerError):
        rig.intake._ledger.begin(rig.loop.accepted[0].ownership, 0, committed=True)


def test_a_consumer_that_cannot_be_made_is_a_stop() -> None:
    def refuses(config: dict[str, object]) -> Consumer:
        raise ValueError("no such property")

    loop = RecordingLoop()
    Intake(
        {},
        TOPIC,
        positions=Positions(start_at_end=False),
        loop=loop,
        metrics=METRICS,
        max_records=lambda: 1,
        max_bytes=1,
        revoke_s=1,
        make_consumer=refuses,
    ).run()
    assert "no such property" in loop.stopped[0][0]
