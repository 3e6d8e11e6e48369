"""Sends what the ledger lets be committed, and understands the answers. On the consumer's thread.

Commits are asynchronous and frequent. The ones that matter most, before a partition goes, are waited for, but never
longer than their time: the client's own synchronous commit blocks for 45 s and more when the coordinator is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from promptbus_worker.deadline import Clock, Deadline
from promptbus_worker.kafka_outcomes import CommitAction, commit_verdict, needs_operator, stop_sentence
from promptbus_worker.ledger import Commit, Ledger, Ownership

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.1
SLOW_COORDINATOR_S = 2.0
"""A commit unanswered for this long: do not block on another one."""


class Commits:
    """The way of offsets to the broker."""

    def __init__(
        self, ledger: Ledger, metrics: Metrics, on_stop: Callable[[str, bool], None], clock: Clock
    ) -> None:
        """`on_stop` hears why the worker cannot go on, and whether a restart may mend it."""
        self._ledger = ledger
        self._metrics = metrics
        self._on_stop = on_stop
        self._clock = clock
        self._due_at = float("-inf")
        self._unanswered = 0
        self._unanswered_since = 0.0

    def send_if_due(self, consumer: Consumer) -> None:
        """Every 100 ms, whatever moved."""
        now = self._clock()
        if now >= self._due_at:
            self._due_at = now + COMMIT_EVERY_S
            self._send(consumer, self._ledger.take_commits())

    def send_for(self, consumer: Consumer, ownerships: Sequence[Ownership]) -> None:
        """Before these partitions go. Inside a callback, where polling for the answer is not possible."""
        commits = self._ledger.take_commits(ownerships)
        if not commits:
            return
        if self._unanswered and self._clock() - self._unanswered_since > SLOW_COORDINATOR_S:
            # Still in order: on its connection the commit goes before the request to rejoin.
            self._send(consumer, commits)
            return
        try:
            answers = consumer.commit(offsets=_offsets(commits), asynchronous=False)
        except KafkaException as error:
            self._refused(commits, error.args[0])
        else:
            self._count(None, answers or ())

    def send_last(self, consumer: Consumer, budget_s: float) -> None:
        """Before the consumer closes: send, and poll until all is answered or the budget is used up."""
        deadline = Deadline(budget_s, self._clock)
        self._send(consumer, self._ledger.take_commits())
        while self._unanswered and not deadline.expired:
            consumer.poll(deadline.remaining_s(at_most=0.1))

    def answered(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        """The client's commit callback, inside poll. Never raises."""
        self._unanswered = max(0, self._unanswered - 1)
        self._unanswered_since = self._clock()
        try:
            self._count(error, partitions)
        except Exception:
            log.exception("a commit's answer could not be understood")

    def _send(self, consumer: Consumer, commits: Sequence[Commit]) -> None:
        if not commits:
            return
        if not self._unanswered:
            self._unanswered_since = self._clock()
        try:
            consumer.commit(offsets=_offsets(commits), asynchronous=True)
        except KafkaException as error:
            self._refused(commits, error.args[0])
        else:
            self._unanswered += 1

    def _count(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        """Each partition has its own answer: some may be committed although the call failed."""
        for partition in partitions:
            self._answer(partition.topic, partition.partition, partition.error or error)

    def _refused(self, commits: Sequence[Commit], error: KafkaError) -> None:
        for commit in commits:
            self._answer(commit.topic, commit.partition, error)

    def _answer(self, topic: str, partition: int, error: KafkaError | None) -> None:
        if error is None:
            self._metrics.commits_total["ok"].inc()
            return
        name = error.name()
        where = {"topic": topic, "partition": partition, "error": name}
        match commit_verdict(name, fatal=error.fatal(), retriable=error.retriable()):
            case CommitAction.OK:
                self._metrics.commits_total["ok"].inc()
            case CommitAction.LOST:
                # Not the end of the epoch yet: the callback that follows says whose the partition is.
                self._metrics.commits_total["lost"].inc()
                self._ledger.commit_failed(topic, partition)
                log.warning("a commit came too late: the group has moved on", extra=where)
            case CommitAction.RETRY:
                self._metrics.commits_total["error"].inc()
                self._ledger.commit_failed(topic, partition)
                log.warning("a commit failed, trying again", extra=where)
            case CommitAction.STOP:
                self._metrics.commits_total["error"].inc()
                self._on_stop(stop_sentence(name, error.str()), not needs_operator(name))


def _offsets(commits: Sequence[Commit]) -> list[TopicPartition]:
    return [TopicPartition(commit.topic, commit.partition, commit.offset) for commit in commits]
