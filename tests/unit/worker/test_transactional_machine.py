"""Intake, ledger, transactions and their brokers, in any order of events: every request has one visible reply in the end.

Whatever fails, and wherever: nothing that is visible is written a second time, no commit passes what has no reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from promptbus_worker.commit_metadata import decode, encode
from promptbus_worker.record import Pending, Record
from promptbus_worker.reply_records import Outgoing
from tests.unit.worker.fake_consumer import Rig
from tests.unit.worker.fake_transactions import ABORTABLE, TIMED_OUT, FakeBrokers, Fault
from tests.unit.worker.group_machine import PARTITION, GroupMachine

MAX_RECORDS = 6
OPERATIONS = ["begin_transaction", "flush", "send_offsets_to_transaction", "commit_transaction"]
FOR_EVER = 40
"""So many time-outs are longer than any budget."""


class Crash(BaseException):
    """The process ends here."""


class TransactionalMachine(GroupMachine):
    """The event loop's part is played here; an answer's value is its record's place."""

    def __init__(self) -> None:
        super().__init__()
        self.brokers = FakeBrokers(self.group)
        self.new_process()

    def new_process(self) -> None:
        for faults in self.brokers.faults.values():
            faults.clear()
        self.group.generation += 1
        make = self.brokers.transactions
        self.use(Rig(self.group, max_records=MAX_RECORDS, revoke_s=0.5, make_transactions=make))

    def answered_of(self, partition: int) -> set[int]:
        places = [value.split(b"/") for value in [*self.brokers.visible, *self.brokers.records]]
        return {int(offset) for number, offset, _ in places if int(number) == partition}

    # -- Kafka

    @rule(partition=PARTITION)
    def assign(self, partition: int) -> None:
        self._serve()
        if partition not in self.rig.consumer.position:
            self.group.generation += 1
            self.rig.consumer.assign(partition)

    @rule(partition=PARTITION, data=st.data())
    def revoke(self, partition: int, data: st.DataObject) -> None:
        consumer = self.rig.consumer
        self._serve()
        if partition not in consumer.position:
            return
        mine = [r for r in self.in_hand if r.ownership.partition == partition]
        fates = data.draw(
            st.lists(st.sampled_from(["release", "answer", "keep"]), min_size=len(mine), max_size=len(mine))
        )
        self.giving_back = [r for r, fate in zip(mine, fates, strict=True) if fate == "release"]
        answering = [r for r, fate in zip(mine, fates, strict=True) if fate == "answer"]

        def answer_one() -> None:
            if answering:
                self._answer(answering.pop())

        self.rig.while_waiting = answer_one
        self._or_crash(lambda: consumer.rebalance("revoke", partition))
        self.rig.while_waiting = lambda: None

    @rule(partition=PARTITION, late=st.booleans())
    def lose(self, partition: int, late: bool) -> None:
        """`late`: the next owner has worked on it before we hear of it."""
        self._serve()
        if partition in self.rig.consumer.position:
            if late:
                self._next_owner_answers_one(partition)
            self.rig.consumer.rebalance("lost", partition)

    def _next_owner_answers_one(self, partition: int) -> None:
        self.group.generation += 1
        if partition in self.group.unstable:  # it waits until the transaction is over
            self.brokers.time_out()
        position = self.group.committed.get(partition, 0)
        runs = decode(position, self.group.metadata.get(partition))
        open_ones = [o for o in self.group.log[partition] if o >= position]
        following = [o for o in open_ones if not any(first <= o < end for first, end in runs)]
        if following:
            self.brokers.visible.append(b"%d/%d/other" % (partition, following[0]))
            left = following[1] if following[1:] else self.group.end(partition)
            metadata = encode(left, [run for run in runs if run[0] > left])
            self.check_commit(partition, left, metadata)
            self.group.committed[partition] = left
            self.group.metadata[partition] = metadata

    # -- faults in the middle of a transaction

    @rule(
        operation=st.sampled_from([*OPERATIONS[1:], "abort_transaction", "init_transactions"]),
        done=st.booleans(),
        times=st.sampled_from([1, 2, FOR_EVER]),
    )
    def no_answer_in_time(self, operation: str, done: bool, times: int) -> None:
        self.brokers.faults[operation] += [Fault(error=TIMED_OUT, done=False)] * (times - 1)
        self.brokers.faults[operation].append(Fault(error=TIMED_OUT, done=done and operation != "flush"))

    @rule(operation=st.sampled_from(OPERATIONS[2:]))
    def an_abortable_error(self, operation: str) -> None:
        self.brokers.faults[operation].append(Fault(error=ABORTABLE, done=False))

    @rule(operation=st.sampled_from([*OPERATIONS, "abort_transaction"]))
    def a_crash(self, operation: str) -> None:
        self.brokers.faults[operation].append(Fault(self._crash))

    def _crash(self) -> None:
        raise Crash

    @rule(operation=st.sampled_from(OPERATIONS), partition=PARTITION, lasts=st.booleans())
    def a_freeze(self, operation: str, partition: int, lasts: bool) -> None:
        """The group goes on meanwhile, and is heard of only at the next poll. `lasts`: longer than a transaction."""

        def freeze() -> None:
            if lasts:
                self.brokers.time_out()
            self.group.generation += 1
            if partition in self.rig.consumer.position:
                self._next_owner_answers_one(partition)
                self.rig.consumer.lose(partition)

        self.brokers.faults[operation].append(Fault(freeze))

    @rule(left=st.booleans())
    def no_member_for_a_while(self, left: bool) -> None:
        self.rig.consumer.generation = -1 if left else self.group.generation

    @rule(partition=PARTITION)
    def a_record_is_refused(self, partition: int) -> None:
        left = [1]

        def refuse(topic: str, value: bytes) -> str | None:
            if left and value.startswith(b"%d/" % partition):
                return "MSG_SIZE_TOO_LARGE" if left.pop() else None
            return None

        self.brokers.refuse = refuse

    # -- the worker

    def _or_crash(self, step: object) -> None:
        assert callable(step)
        try:
            step()
        except Crash:
            self.new_process()
        if self.rig.loop.stopped:
            assert all(restart for _, restart in self.rig.loop.stopped), self.rig.loop.stopped
            self.new_process()

    def _serve(self) -> None:
        self._or_crash(self.rig.consumer._serve)

    @rule(times=st.integers(1, 3))
    def poll(self, times: int) -> None:
        for _ in range(times):
            self.rig.clock.now += 0.06
            self._or_crash(self.rig.step)
            self._remake_refused()
            new = self.rig.loop.accepted[self.seen :]
            self.seen += len(new)
            self.in_hand += new

    def _remake_refused(self) -> None:
        refused, self.rig.loop.refused_records = self.rig.loop.refused_records, []
        for records, too_large in refused:
            assert too_large
            for record in records:
                record.value = (record.value or b"") + b"!"
            self.rig.intake.write(records)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        for record in data.draw(st.lists(st.sampled_from(self.in_hand), unique_by=id, min_size=1)):
            self._answer(record)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release([data.draw(st.sampled_from(self.in_hand))])

    def _answer(self, record: Record) -> None:
        self.in_hand = [other for other in self.in_hand if other is not record]
        value = b"%d/%d/reply" % (record.ownership.partition, record.offset)
        pending = Pending(record, "id", "reply", "results")
        self.rig.intake.write([Outgoing(pending, "results", None, value, [], False)])

    def _release(self, records: Sequence[Record]) -> None:
        gone = set(map(id, records))
        self.in_hand = [other for other in self.in_hand if id(other) not in gone]
        self.rig.intake.released(list(records))

    @rule()
    def finish(self) -> None:
        self._serve()
        self.rig.intake.finish()
        self._or_crash(self.rig.intake.run)
        self.new_process()

    @invariant()
    def nothing_is_seen_twice(self) -> None:
        places = Counter(value.rsplit(b"/", 1)[0] for value in self.brokers.visible)
        assert not [place for place, count in places.items() if count > 1], "answered twice"
        assert self.rig.in_hand() <= MAX_RECORDS

    def teardown(self) -> None:
        """A last owner reads all that is not committed, answers it, and commits the end of every log."""
        self.brokers.refuse = lambda topic, value: None
        self.brokers.time_out()
        self.new_process()
        for _ in range(20 + sum(map(len, self.group.log.values()))):
            self.poll(1)
            for record in list(self.in_hand):
                self._answer(record)
        for partition, log in self.group.log.items():
            assert self.answered_of(partition) == set(log), "an offset was forgotten"
            assert self.group.committed[partition] == self.group.end(partition)
        self.nothing_is_seen_twice()


TransactionalMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=45, deadline=None)
TestTransactional = TransactionalMachine.TestCase
