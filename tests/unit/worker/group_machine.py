"""What the state machines of the consumer's thread share: a group's log, and how every commit is checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from promptbus_worker.commit_metadata import decode
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Record
from tests.unit.worker.fake_consumer import Group, Rig

PARTITIONS = [0, 1]
PARTITION = st.sampled_from(PARTITIONS)


class GroupMachine(RuleBasedStateMachine):
    """A broker that checks each commit as it comes in; the event loop's part is played by those who inherit this."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group(len(PARTITIONS))
        self.group.check_commit = self.check_commit

    def use(self, rig: Rig) -> None:
        """From now on this is the worker."""
        self.rig = rig
        self.rig.loop.on_release = self.on_release
        self.seen = 0
        self.in_hand: list[Record] = []  # handed over, neither answered nor released
        self.rig.consumer.assign(*PARTITIONS)

    @abstractmethod
    def answered_of(self, partition: int) -> set[int]:
        """The offsets of this partition that have a reply."""

    @abstractmethod
    def _release(self, records: Sequence[Record]) -> None:
        """The loop gives these back."""

    @abstractmethod
    def _next_owner_answers_one(self, partition: int) -> None:
        """Another member has this partition, answers the first open request and commits."""

    def check_commit(self, partition: int, offset: int, metadata: str) -> None:
        unanswered = set(self.group.log[partition]) - self.answered_of(partition)
        assert all(o >= offset for o in unanswered), "a commit passed what has no reply"
        for first, end in decode(offset, metadata):
            assert not [o for o in unanswered if first <= o < end], "what has no reply is called settled"
        assert offset >= self.group.committed.get(partition, 0), "a commit went backwards"

    @abstractmethod
    def poll(self, times: int) -> None:
        """The consumer's thread takes so many steps."""

    @initialize(records=st.integers(0, 8))
    def begin(self, records: int) -> None:
        for partition in PARTITIONS:
            self.group.produce(partition, count=records)
        self.poll(1)

    @rule(partition=PARTITION, gaps=st.lists(st.integers(1, 3), min_size=1, max_size=5))
    def produce(self, partition: int, gaps: list[int]) -> None:
        for gap in gaps:
            self.group.produce(partition, gap=gap)

    @rule(partition=PARTITION)
    def another_member_goes_on(self, partition: int) -> None:
        if partition not in self.rig.consumer.position:
            self._next_owner_answers_one(partition)

    giving_back: Sequence[Record] = ()
    """What the loop gives back when a partition is being taken away."""

    def on_release(self, ownerships: Sequence[Ownership]) -> None:
        self._release(self.giving_back)
        self.giving_back = ()
