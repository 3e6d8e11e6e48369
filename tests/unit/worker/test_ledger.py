"""The ledger against a model that remembers everything: nothing unsettled is passed, nothing forgotten or repeated."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from promptbus_worker.commit_metadata import Runs, decode
from promptbus_worker.ledger import Commit, Ledger, LedgerError, Ownership, Tracked

TOPIC = "requests"
PARTITIONS = [0, 1, 2]


class LedgerMachine(RuleBasedStateMachine):
    """Any interleaving of assign, track, settle, release, revoke, lost, commit, failed commit and restart.

    The model of a partition is its log: which offsets exist, which were ever settled, and what is committed, metadata
    included. Kafka's part is played here too: a new epoch reads from the committed offset on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[int, list[int]] = {partition: [] for partition in PARTITIONS}
        self.answered: dict[int, set[int]] = {partition: set() for partition in PARTITIONS}
        self.committed: dict[int, Commit] = {}
        self.new_process()

    def new_process(self) -> None:
        self.ledger = Ledger()
        self.owned: dict[int, Ownership] = {}
        self.next_read: dict[int, int] = {}
        self.in_hand: dict[Ownership, set[int]] = {}
        self.settled_before: dict[Ownership, set[int]] = {}
        self.settled: dict[Ownership, set[int]] = {}

    records = Bundle("records")

    @rule(partition=st.sampled_from(PARTITIONS), gaps=st.lists(st.integers(1, 3), min_size=1, max_size=5))
    def produce(self, partition: int, gaps: list[int]) -> None:
        for gap in gaps:  # compaction and transaction markers leave gaps
            log = self.log[partition]
            log.append((log[-1] if log else -1) + gap)

    @rule(partition=st.sampled_from(PARTITIONS))
    def assign(self, partition: int) -> None:
        if partition in self.owned:
            with pytest.raises(LedgerError):
                self.ledger.assign(TOPIC, partition)
            return
        ownership = self.ledger.assign(TOPIC, partition)
        assert self.ledger.track(ownership, 10**9, 1) is Tracked.STALE, "the position is not known yet"
        start = self.committed_offset(partition)
        self.ledger.begin(
            ownership,
            start,
            committed=partition in self.committed,
            settled_before=self.committed_runs(partition),
        )
        self.owned[partition] = ownership
        self.next_read[partition] = start
        self.in_hand[ownership] = set()
        self.settled[ownership] = set()
        self.settled_before[ownership] = {o for o in self.log[partition] if self.is_committed(partition, o)}

    def committed_offset(self, partition: int) -> int:
        return self.committed[partition].offset if partition in self.committed else 0

    def committed_runs(self, partition: int) -> Runs:
        commit = self.committed.get(partition)
        return decode(commit.offset, commit.metadata) if commit else []

    def is_committed(self, partition: int, offset: int) -> bool:
        """Whether the next owner knows that this one is settled."""
        runs = self.committed_runs(partition)
        return offset < self.committed_offset(partition) or any(first <= offset < end for first, end in runs)

    @rule(target=records, partition=st.sampled_from(PARTITIONS), count=st.integers(1, 4))
    def poll(self, partition: int, count: int) -> object:
        ownership = self.owned.get(partition)
        if ownership is None:
            return multiple()
        polled = [o for o in self.log[partition] if o >= self.next_read[partition]][:count]
        new = []
        for offset in polled:
            tracked = self.ledger.track(ownership, offset, 10)
            assert self.ledger.track(ownership, offset, 10) is Tracked.STALE, "delivered twice, taken once"
            self.next_read[partition] = offset + 1
            if offset in self.settled_before[ownership]:
                assert tracked is Tracked.SETTLED_BEFORE, "it will be answered a second time"
            else:
                assert tracked is Tracked.NEW
                self.in_hand[ownership].add(offset)
                new.append((ownership, offset))
        return multiple(*new)

    @rule(record=consumes(records))
    def settle(self, record: tuple[Ownership, int]) -> None:
        ownership, offset = record
        current = self.owned.get(ownership.partition) is ownership
        if current and offset not in self.in_hand[ownership]:
            with pytest.raises(LedgerError):
                self.ledger.settle(ownership, offset)
            return
        assert self.ledger.settle(ownership, offset) == current
        if current:
            self.answered[ownership.partition].add(offset)
            self.settled[ownership].add(offset)
            self.in_hand[ownership].discard(offset)

    @rule(record=records)
    def release(self, record: tuple[Ownership, int]) -> None:
        ownership, offset = record
        current = self.owned.get(ownership.partition) is ownership
        expected = current and offset in self.in_hand[ownership]
        assert self.ledger.release(ownership, offset) == expected
        if current:
            self.in_hand[ownership].discard(offset)

    def _take(self, ownerships: list[Ownership] | None = None) -> list[Commit]:
        commits = self.ledger.take_commits(ownerships)
        for commit in commits:
            assert commit.partition in self.owned
            unanswered = [o for o in self.log[commit.partition] if o not in self.answered[commit.partition]]
            assert all(offset >= commit.offset for offset in unanswered), (
                "a commit passed an unsettled offset"
            )
            assert commit.offset >= self.committed_offset(commit.partition), "a commit went backwards"
            runs = decode(commit.offset, commit.metadata)
            assert bool(runs) == bool(commit.metadata)
            for first, end in runs:
                assert not [o for o in unanswered if first <= o < end], (
                    "an unsettled offset is called settled"
                )
        return commits

    @rule(fails=st.booleans())
    def commit(self, fails: bool) -> None:
        for commit in self._take():
            if fails:
                self.ledger.commit_failed(commit.topic, commit.partition)
            else:
                self.committed[commit.partition] = commit

    @rule(partition=st.sampled_from(PARTITIONS))
    def revoke(self, partition: int) -> None:
        ownership = self.owned.get(partition)
        if ownership is not None:
            for commit in self._take([ownership]):
                self.committed[partition] = commit
            for offset in self.settled[ownership] | self.settled_before[ownership]:
                assert self.is_committed(partition, offset), "the next owner will answer it a second time"
            self._end(partition)

    @rule(partition=st.sampled_from(PARTITIONS))
    def lose(self, partition: int) -> None:
        if partition in self.owned:
            self._end(partition)

    def _end(self, partition: int) -> None:
        ownership = self.owned.pop(partition)
        self.ledger.end(ownership)
        assert not ownership.live

    @rule()
    def restart(self) -> None:
        for ownership in self.owned.values():
            ownership.live = False
        self.new_process()

    @precondition(lambda self: self.owned)
    @invariant()
    def in_hand_adds_up(self) -> None:
        expected = sum(len(self.in_hand[ownership]) for ownership in self.owned.values())
        assert self.ledger.records_in_hand == expected == self.ledger.in_hand(self.owned.values())
        assert self.ledger.bytes_in_hand == 10 * expected

    def teardown(self) -> None:
        """However it went: a last owner that settles all it reads commits the end of every log."""
        self.new_process()
        for partition in PARTITIONS:
            self.assign(partition)
            ownership = self.owned[partition]
            self.poll(partition, len(self.log[partition]))
            rest = sorted(self.in_hand[ownership])
            assert set(self.log[partition]) - self.answered[partition] <= set(rest), "an offset was forgotten"
            for offset in reversed(rest):
                self.settle((ownership, offset))
        for commit in self._take():
            self.committed[commit.partition] = commit
        for partition, log in self.log.items():
            if log:
                assert self.committed[partition] == Commit(TOPIC, partition, log[-1] + 1)


LedgerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestLedger = LedgerMachine.TestCase


def begun(ledger: Ledger, watermark: int = 0) -> Ownership:
    ownership = ledger.assign(TOPIC, 0)
    ledger.begin(ownership, watermark, committed=True)
    return ownership


def test_commits_the_next_unsettled_offset_across_gaps() -> None:
    ledger = Ledger()
    ownership = begun(ledger, 5)
    for offset in (7, 10, 15):
        ledger.track(ownership, offset, 1)
    ledger.settle(ownership, 10)
    (commit,) = ledger.take_commits()
    assert commit.offset == 7
    assert decode(commit.offset, commit.metadata) == [(8, 15)]
    ledger.settle(ownership, 7)
    assert ledger.take_commits() == [Commit(TOPIC, 0, 15)]
    ledger.settle(ownership, 15)
    assert ledger.take_commits() == [Commit(TOPIC, 0, 16)]
    assert ledger.take_commits() == []


def test_a_start_that_was_never_committed_is_committed_at_once() -> None:
    ledger = Ledger()
    ownership = ledger.assign(TOPIC, 0)
    ledger.begin(ownership, 42, committed=False)
    assert ledger.take_commits() == [Commit(TOPIC, 0, 42)]


def test_an_offset_settles_once() -> None:
    ledger = Ledger()
    ownership = begun(ledger)
    ledger.track(ownership, 0, 1)
    ledger.settle(ownership, 0)
    with pytest.raises(LedgerError):
        ledger.settle(ownership, 0)


def test_results_of_an_old_epoch_change_nothing() -> None:
    ledger = Ledger()
    old = begun(ledger)
    ledger.track(old, 0, 1)
    ledger.end(old)
    new = begun(ledger)
    ledger.track(new, 0, 1)
    assert not ledger.settle(old, 0)
    assert ledger.records_in_hand == 1
    assert ledger.take_commits() == []


def test_one_slow_record_under_100_000_settled_ones_costs_each_of_them_the_same() -> None:
    ledger = Ledger()
    ownership = begun(ledger)
    for offset in range(100_001):
        ledger.track(ownership, offset, 1)
    for offset in range(1, 100_001):
        ledger.settle(ownership, offset)
    (commit,) = ledger.take_commits()
    assert commit.offset == 0
    assert decode(0, commit.metadata) == [(1, 100_001)]
    ledger.settle(ownership, 0)
    assert ledger.take_commits() == [Commit(TOPIC, 0, 100_001)]
    assert ledger.records_in_hand == 0


def test_what_an_earlier_owner_has_settled_stays_settled_until_it_lies_below_the_watermark() -> None:
    ledger = Ledger()
    ownership = ledger.assign(TOPIC, 0)
    ledger.begin(ownership, 5, committed=True, settled_before=[(7, 9), (11, 20)])
    tracked = [ledger.track(ownership, offset, 1) for offset in range(5, 13)]
    new, skipped = Tracked.NEW, Tracked.SETTLED_BEFORE
    assert tracked == [new, new, skipped, skipped, new, new, skipped, skipped]
    assert ledger.take_commits() == [], "nothing that the broker does not know"
    ledger.settle(ownership, 9)
    (commit,) = ledger.take_commits()
    assert (commit.offset, decode(5, commit.metadata)) == (5, [(7, 10), (11, 20)])
    for offset in (5, 6, 10):
        ledger.settle(ownership, offset)
    (commit,) = ledger.take_commits()
    assert (commit.offset, decode(13, commit.metadata)) == (13, [(13, 20)])
    for offset in range(13, 20):
        assert ledger.track(ownership, offset, 1) is Tracked.SETTLED_BEFORE
    assert ledger.take_commits() == [Commit(TOPIC, 0, 20)]


def test_what_does_not_fit_into_the_metadata_never_holds_the_commit_back() -> None:
    ledger = Ledger()
    ownership = begun(ledger)
    for offset in range(20_000):
        ledger.track(ownership, offset, 1)
    for offset in range(1, 20_000, 2):
        ledger.settle(ownership, offset)
    (commit,) = ledger.take_commits()
    assert len(commit.metadata) <= 4_000
    kept = decode(0, commit.metadata)
    assert kept == [(offset, offset + 1) for offset in range(1, 2 * len(kept), 2)], (
        "the nearest runs are kept"
    )
    assert len(kept) > 1_000
    ledger.settle(ownership, 0)
    assert ledger.take_commits()[0].offset == 2
