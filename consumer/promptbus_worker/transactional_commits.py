"""Exactly-once, the consumer's side: puts outcomes and the offsets that they settle into one transaction.

An outcome is all that one request is answered with. It stays here until a transaction with it is committed, or until
the epoch of its partition is over; after an abort it goes into the next one. It is in hand for as long, so that what
waits here is bounded. An outcome whose offset the commit's metadata cannot name any more is held back until it can, for
the next owner would answer it again (DESIGN rule 2).

What a slow broker does not take within a transaction's time would not be taken in the next one either. So after a
time-out a transaction has half as many outcomes as the one before, and after a commit twice as many.

Transactions run between polls and, before partitions go, in the callback; so no rebalance happens within one. Offsets
travel with the group's metadata, so that the brokers refuse those of a process that stood still while its partitions
were given away. A process that is no member any more has metadata that no broker checks; it commits nothing.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import Consumer, TopicPartition

from promptbus_worker.deadline import Clock, Deadline
from promptbus_worker.kafka_outcomes import CommitAction, commit_verdict
from promptbus_worker.ledger import Ledger, Ownership, Plan
from promptbus_worker.record import Pending
from promptbus_worker.reply_records import Outgoing
from promptbus_worker.transactions import TIMED_OUT, Ended, Result, Transactions

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

EVERY_S = 0.05
"""From the end of one transaction to the next: several batches share one."""
AFTER_ABORT_S = 0.2
LOOK_EVERY_S = 0.005
"""While answers are awaited: how long a poll may keep them waiting."""
_METADATA = b"CGMDv2:"
_GENERATION = struct.Struct("=i")


class Loop(Protocol):
    """The event loop's side. Each method may be called from the consumer thread and returns at once."""

    def written(self, records: list[Outgoing]) -> None:
        """These are committed."""
        ...

    def dropped(self, records: list[Outgoing]) -> None:
        """The epochs of these are over."""
        ...

    def refused(self, records: list[Outgoing], too_large: list[Outgoing]) -> None:
        """All records of some requests, and which of them are larger than their topics take."""
        ...


class TransactionalCommits:
    """As `commits.Commits`, and takes outcomes besides."""

    def __init__(
        self,
        ledger: Ledger,
        transactions: Transactions,
        *,
        loop: Loop,
        metrics: Metrics,
        read_anew: Callable[[Consumer], None],
        may_wait: Callable[[float], None],
        clock: Clock,
    ) -> None:
        """`read_anew` ends all epochs and begins new ones where the group's commits say; `may_wait` hears for how many
        seconds the thread may stand still."""
        self._ledger = ledger
        self._transactions = transactions
        self._loop = loop
        self._metrics = metrics
        self._read_anew = read_anew
        self._may_wait = may_wait
        self._clock = clock
        self._outcomes: dict[Pending, list[Outgoing]] = {}
        self._most: int | None = None  # outcomes in a transaction; None: all there are
        self._due_at = float("-inf")

    def take(self, records: Sequence[Outgoing]) -> None:
        """All records of some requests, to be written."""
        for outgoing in records:
            self._outcomes.setdefault(outgoing.pending, []).append(outgoing)

    def forget(self) -> None:
        """Epochs are over."""
        over = [request for request in self._outcomes if not request.record.ownership.live]
        dropped = [outgoing for request in over for outgoing in self._outcomes.pop(request)]
        if dropped:
            self._loop.dropped(dropped)

    def wait_s(self, at_most: float) -> float:
        """How long the thread may wait for something else."""
        if self._outcomes:
            return min(at_most, max(LOOK_EVERY_S, self._due_at - self._clock()))
        return min(at_most, LOOK_EVERY_S) if self._ledger.records_in_hand else at_most

    def send_if_due(self, consumer: Consumer) -> None:
        """One transaction of what there is."""
        if self._clock() >= self._due_at and self._transactions.ready():
            self._run(consumer, self._transactions.budget_s)

    def send_meanwhile(self, consumer: Consumer, ownerships: Sequence[Ownership], budget_s: float) -> None:
        """While these partitions are about to go: what is in hand of them is in hand until it is committed."""
        if self._clock() >= self._due_at:
            self.send_for(consumer, ownerships, budget_s)

    def send_for(self, consumer: Consumer, ownerships: Sequence[Ownership], budget_s: float) -> None:
        """Before these partitions go, in the callback."""
        if self._transactions.ready():
            self._run(consumer, budget_s, ownerships)

    def send_last(self, consumer: Consumer, budget_s: float) -> None:
        """Before the consumer closes."""
        deadline = Deadline(budget_s, self._clock)
        while True:
            if self._clock() >= self._due_at and self._transactions.ready():
                nothing = not self._run(consumer, deadline.remaining_s())
                if nothing and not self._outcomes:
                    return
            if deadline.expired or self._transactions.over:
                return
            consumer.poll(deadline.remaining_s(at_most=EVERY_S))

    def _run(
        self, consumer: Consumer, budget_s: float, ownerships: Sequence[Ownership] | None = None
    ) -> bool:
        """False: there was nothing to commit."""
        self.forget()
        plans = self._ledger.plan(self._offsets(ownerships))
        if ownerships is not None:
            plans = [plan for plan in plans if plan.ownership in ownerships]
        if not plans:
            if self._outcomes:  # held back, all of them
                self._due_at = self._clock() + EVERY_S
            return False
        chosen = {(plan.ownership, offset) for plan in plans for offset in plan.offsets}
        requests = [r for r in self._outcomes if (r.record.ownership, r.record.offset) in chosen]
        records = [outgoing for request in requests for outgoing in self._outcomes[request]]
        self._may_wait(budget_s)
        result = self._transactions.run(
            records,
            [TopicPartition(*plan.commit) for plan in plans],
            lambda: _membership(consumer),
            budget_s,
        )
        self._count(result, len(plans))
        match result.ended:
            case Ended.COMMITTED:
                self._committed(plans, requests, records)
            case Ended.ABORTED:
                self._aborted(result, len(requests))
            case Ended.UNKNOWN:
                self._read_anew(consumer)
        self._due_at = self._clock() + (EVERY_S if result.ended is Ended.COMMITTED else AFTER_ABORT_S)
        return True

    def _offsets(self, ownerships: Sequence[Ownership] | None) -> Mapping[Ownership, Sequence[int]]:
        offsets: dict[Ownership, list[int]] = {}
        mine = (
            request.record
            for request in self._outcomes
            if ownerships is None or request.record.ownership in ownerships
        )
        for record in islice(mine, self._most):
            offsets.setdefault(record.ownership, []).append(record.offset)
        return offsets

    def _committed(self, plans: Sequence[Plan], requests: Sequence[Pending], records: list[Outgoing]) -> None:
        for plan in plans:
            self._ledger.committed(plan)
        for request in requests:
            del self._outcomes[request]
        if self._most is not None:
            self._most = self._most * 2 if self._outcomes else None
        if records:
            self._loop.written(records)

    def _aborted(self, result: Result, outcomes: int) -> None:
        if result.error == TIMED_OUT:
            self._most = max(1, outcomes // 2)
        log.info(
            "a transaction was aborted; its outcomes go into the next one", extra={"error": result.error}
        )
        if result.refused:
            requests = dict.fromkeys(outgoing.pending for outgoing in result.refused)
            records = [outgoing for request in requests for outgoing in self._outcomes.pop(request)]
            self._loop.refused(records, result.refused)

    def _count(self, result: Result, partitions: int) -> None:
        kind = "ok"
        if result.ended is not Ended.COMMITTED:
            lost = commit_verdict(result.error or "", fatal=False, retriable=False) is CommitAction.LOST
            kind = "lost" if lost else "error"
        self._metrics.commits_total[kind].inc(partitions)


def _membership(consumer: Consumer) -> object | None:
    """The group's metadata; None without a generation, for a broker would take the offsets of anybody then."""
    metadata = consumer.consumer_group_metadata()
    return metadata if generation(metadata) >= 0 else None


def generation(metadata: object) -> int:
    """The group's generation, or the member's epoch; -1 outside of a group. Raises ValueError if it is not in there."""
    if not isinstance(metadata, bytes) or not metadata.startswith(_METADATA):
        raise ValueError("this version of the Kafka client describes a group in a way that is not understood")
    (number,) = _GENERATION.unpack_from(metadata, len(_METADATA))
    return int(number)
