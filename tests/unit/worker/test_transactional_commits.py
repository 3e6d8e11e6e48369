"""What goes into one transaction when brokers are slow."""

from __future__ import annotations

from typing import cast

from confluent_kafka import Consumer

from promptbus_worker.ledger import Ledger
from promptbus_worker.metrics import Metrics
from promptbus_worker.record import Pending, Record
from promptbus_worker.reply_records import Outgoing
from promptbus_worker.transactional_commits import TransactionalCommits
from promptbus_worker.transactions import TO_WRITE
from tests.unit.worker.fake_consumer import FakeClock, Group
from tests.unit.worker.fake_transactions import FENCED, FakeBrokers, Fault

OUTCOMES = 100
STEP_S = 0.25


class Member:
    """What is used of a consumer."""

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:\1\0\0\0g\0\0\1"


class Loop:
    """Notes how many outcomes each transaction had."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def written(self, records: list[Outgoing]) -> None:
        self.sizes.append(len(records))

    def dropped(self, records: list[Outgoing]) -> None:
        raise AssertionError("the epoch goes on")

    def refused(self, records: list[Outgoing], too_large: list[Outgoing]) -> None:
        raise AssertionError("all are small")


class Rig:
    """Outcomes of one partition."""

    def __init__(self) -> None:
        self.clock, self.ledger, self.loop = FakeClock(), Ledger(), Loop()
        group = Group()
        group.generation = 1
        self.brokers = FakeBrokers(group)
        self.ownership = self.ledger.assign("requests", 0)
        self.ledger.begin(self.ownership, 0, committed=True)
        self.commits = TransactionalCommits(
            self.ledger,
            self.brokers.transactions(self.clock, lambda reason, restart: self.stopped.append(reason)),
            loop=self.loop,
            metrics=Metrics(["m"]),
            read_anew=lambda consumer: None,
            may_wait=lambda seconds: None,
            clock=self.clock,
        )
        self.answered = 0
        self.stopped: list[str] = []

    def answer(self, count: int) -> None:
        for offset in range(self.answered, self.answered + count):
            self.ledger.track(self.ownership, offset, 1)
            record = Record(self.ownership, offset, 0, None, b"", None, 0, 0.0)
            pending = Pending(record, f"r{offset}", "reply", "results")
            self.commits.take([Outgoing(pending, "results", None, b"%d" % offset, [], False)])
        self.answered += count

    def run_for(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.commits.send_if_due(cast(Consumer, Member()))
            self.clock.now += STEP_S
        assert self.stopped == []


def test_what_a_slow_broker_does_not_take_in_one_transaction_it_takes_in_several() -> None:
    rig = Rig()
    rig.brokers.record_s = 0.5  # 12 records in the 9 s that a transaction has, until its commit
    rig.answer(OUTCOMES)
    rig.run_for(1000)
    assert rig.brokers.visible == [b"%d" % offset for offset in range(OUTCOMES)]
    assert rig.brokers.group.committed == {0: OUTCOMES}
    assert max(rig.loop.sizes) <= 9 * TO_WRITE / rig.brokers.record_s


def test_once_it_is_fast_again_a_transaction_takes_all_there_is() -> None:
    rig = Rig()
    rig.brokers.record_s = 0.5
    rig.answer(OUTCOMES)
    rig.run_for(60)
    rig.brokers.record_s = 0.0
    rig.run_for(10)
    assert len(rig.brokers.visible) == OUTCOMES
    rig.answer(OUTCOMES)
    rig.run_for(1)
    assert rig.loop.sizes[-1] == OUTCOMES


def test_a_worker_that_begins_no_transaction_any_more_does_not_wait_for_its_last_one() -> None:
    rig = Rig()
    rig.brokers.faults["commit_transaction"].append(Fault(error=FENCED, done=False))
    rig.answer(1)
    began = rig.clock.now
    rig.commits.send_last(cast(Consumer, Member()), 20)
    assert len(rig.stopped) == 1
    assert rig.clock.now - began < 1
