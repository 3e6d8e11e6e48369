"""Where reading begins: at what was committed, else at an explicit end of the log, and never at a guess."""

from __future__ import annotations

from typing import cast

import pytest

from promptbus_worker.ledger import Ownership
from promptbus_worker.positions import READ_TIMEOUT_S, Consumer, Position, Positions
from tests.unit.worker.fake_consumer import TOPIC, FakeClock, FakeConsumer, Group, kafka_error


def consumer_of(group: Group) -> tuple[FakeConsumer, Consumer]:
    fake = FakeConsumer({}, group, FakeClock())
    return fake, cast(Consumer, fake)


def owned(partitions: int) -> list[Ownership]:
    return [Ownership(TOPIC, partition, 1) for partition in range(partitions)]


def test_all_partitions_are_asked_for_in_one_call() -> None:
    group = Group(3)
    group.committed = {0: 5, 1: 0, 2: 7}
    fake, consumer = consumer_of(group)
    partitions = owned(3)
    found = Positions(start_at_end=False).find(consumer, partitions)
    assert found == {
        partitions[0]: Position(5, committed=True),
        partitions[1]: Position(0, committed=True),
        partitions[2]: Position(7, committed=True),
    }
    assert fake.of("committed") == [([0, 1, 2],)]
    assert fake.of("ends") == [], "offset 0 is a committed offset like any other"


@pytest.mark.parametrize(("at_end", "start"), [(False, 4), (True, 10)])
def test_where_nothing_is_committed_the_log_itself_says_where_it_begins(at_end: bool, start: int) -> None:
    group = Group(2)
    group.produce(1, count=10)
    group.low[1] = 4
    group.committed = {0: 5}
    _, consumer = consumer_of(group)
    partitions = owned(2)
    found = Positions(start_at_end=at_end).find(consumer, partitions)
    assert found[partitions[0]] == Position(5, committed=True)
    assert found[partitions[1]] == Position(start, committed=False)


@pytest.mark.parametrize("name", ["_TIMED_OUT", "_WAIT_COORD", "GROUP_AUTHORIZATION_FAILED"])
def test_failing_to_read_gives_no_position_and_no_exception(name: str) -> None:
    group = Group(2)
    group.committed = {0: 5, 1: 6}
    fake, consumer = consumer_of(group)
    partitions = owned(2)
    fake.failures["committed"] = [kafka_error(name)]
    assert Positions(start_at_end=False).find(consumer, partitions) == {}
    fake.committed_errors[0] = kafka_error(name)
    assert Positions(start_at_end=False).find(consumer, partitions) == {
        partitions[1]: Position(6, committed=True)
    }


def test_a_log_whose_ends_cannot_be_read_has_no_position_yet() -> None:
    fake, consumer = consumer_of(Group(1))
    fake.failures["ends"] = [kafka_error("_TRANSPORT")]
    positions = Positions(start_at_end=False)
    assert positions.find(consumer, owned(1)) == {}
    fake.end_errors[0] = kafka_error("TOPIC_AUTHORIZATION_FAILED")
    assert positions.find(consumer, owned(1)) == {}
    assert list(positions.find(consumer, owned(1)).values()) == [Position(0, committed=False)]


def test_every_question_is_bounded_in_time() -> None:
    assert READ_TIMEOUT_S <= 5, "it blocks the polling thread, inside a rebalance"


def test_known_partitions_begin_at_their_positions_and_unknown_ones_paused() -> None:
    """At a number: an offset that the client has to look up can override the seek that follows."""
    fake, consumer = consumer_of(Group(2))
    partitions = owned(2)
    Positions(start_at_end=False).begin(consumer, {partitions[0]: Position(5, committed=True)}, partitions)
    assert fake.of("assign") == [({0: 5, 1: 0},)]
    assert fake.of("pause") == [([1],)]


def test_moving_seeks_and_then_lets_go_on() -> None:
    fake, consumer = consumer_of(Group(1))
    (partition,) = owned(1)
    fake.paused.add(0)
    positions = Positions(start_at_end=False)
    for method in ("seek", "resume"):
        fake.failures[method] = [kafka_error("_STATE")]
        assert not positions.move(consumer, partition, Position(3, committed=True))
        assert fake.paused == {0}
    assert positions.move(consumer, partition, Position(3, committed=True))
    assert fake.position[0] == 3
    assert fake.paused == set()
