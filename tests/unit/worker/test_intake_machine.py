"""Intake, ledger and a broker together, in any order of events: no commit passes an unsettled offset, none is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from promptbus_worker.commit_metadata import decode, encode
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Record
from tests.unit.worker.fake_consumer import Rig, kafka_error
from tests.unit.worker.group_machine import PARTITION, PARTITIONS, GroupMachine

PASSING = ["REQUEST_TIMED_OUT", "_TRANSPORT", "REBALANCE_IN_PROGRESS", "UNKNOWN_MEMBER_ID"]
MAX_RECORDS = 6


class IntakeMachine(GroupMachine):
    """The event loop's part is played here."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: dict[int, set[int]] = {partition: set() for partition in PARTITIONS}
        self.new_process()

    def new_process(self) -> None:
        self.use(Rig(self.group, max_records=MAX_RECORDS, revoke_s=0.5))
        self.settled: set[tuple[Ownership, int]] = set()  # in their own epoch
        self.age = 0
        self.polls_wanted = 0

    def answered_of(self, partition: int) -> set[int]:
        return self.answered[partition]

    # -- Kafka

    @rule(partition=PARTITION)
    def assign(self, partition: int) -> None:
        self.rig.consumer._serve()
        if partition not in self.rig.consumer.position:
            self.rig.consumer.assign(partition)

    @rule(partition=PARTITION, data=st.data())
    def revoke(self, partition: int, data: st.DataObject) -> None:
        """The loop gives some back, settles some while the callback waits, and is too slow for the rest."""
        consumer = self.rig.consumer
        consumer._serve()
        if partition not in consumer.position:
            return
        mine = [r for r in self.in_hand if r.ownership.partition == partition]
        fates = data.draw(
            st.lists(st.sampled_from(["release", "settle", "keep"]), min_size=len(mine), max_size=len(mine))
        )
        self.giving_back = [r for r, fate in zip(mine, fates, strict=True) if fate == "release"]
        settling = [r for r, fate in zip(mine, fates, strict=True) if fate == "settle"]

        def answer_one() -> None:
            if settling:
                self._settle(settling.pop())

        self.rig.while_waiting = answer_one
        consumer.rebalance("revoke", partition)
        self.rig.while_waiting = lambda: None

    @rule(partition=PARTITION, too_late=st.booleans())
    def lose(self, partition: int, too_late: bool) -> None:
        """`too_late`: the next owner has worked on it before we hear of it."""
        consumer = self.rig.consumer
        consumer._serve()
        if partition in consumer.position:
            if too_late:
                self._next_owner_answers_one(partition)
            commits = len(consumer.of("commit"))
            consumer.rebalance("lost", partition)
            assert len(consumer.of("commit")) == commits, "a lost partition was committed"

    def _next_owner_answers_one(self, partition: int) -> None:
        position = self.group.committed.get(partition, 0)
        following = [o for o in self.group.log[partition] if o >= position]
        if following:
            runs = decode(position, self.group.metadata.get(partition))
            self.answered[partition].add(following[0])
            metadata = encode(following[0] + 1, [run for run in runs if run[0] > following[0]])
            self.check_commit(partition, following[0] + 1, metadata)
            self.group.committed[partition] = following[0] + 1
            self.group.metadata[partition] = metadata

    @rule(times=st.integers(1, 3))
    def committed_offsets_cannot_be_read(self, times: int) -> None:
        self.rig.consumer.failures["committed"] = [kafka_error("_TIMED_OUT")] * times

    @rule(partition=PARTITION, name=st.sampled_from(PASSING), whole=st.booleans())
    def a_commit_fails(self, partition: int, name: str, whole: bool) -> None:
        if whole:
            self.rig.consumer.failures["commit"] = [kafka_error(name)]
        else:
            self.rig.consumer.commit_errors[partition] = kafka_error(name)

    @precondition(lambda self: self.in_hand)
    @rule()
    def the_group_goes_on_without_us(self) -> None:
        self.rig.consumer.errors.append(kafka_error("_MAX_POLL_EXCEEDED"))
        self.poll(1)
        for partition in list(self.rig.consumer.position):
            self.rig.consumer.rebalance("lost", partition)

    # -- the worker

    @rule(times=st.integers(1, 3))
    def poll(self, times: int) -> None:
        self.age += 1
        for _ in range(times):
            self.rig.clock.now += 0.05
            self.rig.step()
            new = self.rig.loop.accepted[self.seen :]
            self.seen += len(new)
            for record in new:
                assert record.ownership.live
                self.in_hand.append(record)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        for record in data.draw(st.lists(st.sampled_from(self.in_hand), unique_by=id, min_size=1)):
            self._settle(record)

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release([data.draw(st.sampled_from(self.in_hand))])

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.rig.intake.hold(held)

    @rule()
    def poll_soon(self) -> None:
        self.rig.intake.poll_soon()
        self.polls_wanted += 1

    def _settle(self, record: Record) -> None:
        # The broker has acknowledged the reply, whoever owns the partition by now.
        self.answered[record.ownership.partition].add(record.offset)
        if record.ownership.live:
            self.settled.add((record.ownership, record.offset))
        self._done(record)
        self.rig.intake.settled([record])

    def _release(self, records: Sequence[Record]) -> None:
        for record in records:
            self._done(record)
        self.rig.intake.released(list(records))

    def _done(self, record: Record) -> None:
        self.in_hand = [other for other in self.in_hand if other is not record]

    # -- the end of a process

    @precondition(lambda self: self.age > 4)
    @rule()
    def crash(self) -> None:
        self.new_process()

    @precondition(lambda self: self.age > 2)
    @rule()
    def finish(self) -> None:
        """Drained: all is committed that has no unsettled offset below it."""
        consumer = self.rig.consumer
        consumer.failures.clear()
        consumer.commit_errors.clear()
        consumer._serve()
        self.rig.intake.finish()
        epochs = {record.ownership for record in self.rig.loop.accepted if record.ownership.live}
        self.rig.intake.run()
        assert consumer.closed
        for epoch in epochs:
            delivered = [r.offset for r in self.rig.loop.accepted if r.ownership is epoch]
            open_ones = [offset for offset in delivered if (epoch, offset) not in self.settled]
            committed = self.group.committed[epoch.partition]
            # Without one, it may lie beyond all that was delivered: what an earlier owner has settled is skipped.
            assert committed <= min(open_ones, default=committed)
            runs = decode(committed, self.group.metadata[epoch.partition])
            known = {o for o in delivered if o < committed or any(first <= o < end for first, end in runs)}
            assert known == set(delivered) - set(open_ones), "settled, and not committed"
        assert self.rig.loop.stopped == []
        self.new_process()

    @invariant()
    def nothing_stops_and_room_is_kept(self) -> None:
        assert self.rig.loop.stopped == []
        assert self.rig.in_hand() <= MAX_RECORDS + self.polls_wanted, (
            "more only if asked to poll without room"
        )

    def teardown(self) -> None:
        """A last owner reads all that is not committed, answers it, and commits the end of every log."""
        self.rig.intake.hold(False)
        self.new_process()
        records = sum(map(len, self.group.log.values()))
        for _ in range(20 + records):
            self.poll(1)
            for record in list(self.in_hand):
                self._settle(record)
            self.rig.clock.now += 0.2
        for partition, log in self.group.log.items():
            assert self.answered[partition] >= set(log), "an offset was forgotten"
            assert self.group.committed[partition] == self.group.end(partition)


IntakeMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=45, deadline=None)
TestIntake = IntakeMachine.TestCase
