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
from promptbus_worker.kafka_outcomes import (
    CommitAction,
    commit_verdict,
    needs_operator,
    right_to_read,
    stop_sentence,
)
from promptbus_worker.ledger import Commit, Ledger, Ownership

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.1
SYNCHRONOUS_COMMIT_S = 120.0
"""What the client's own commit may take when the coordinator is gone: two of its socket time-outs."""
SLOW_COORDINATOR_S = 2.0
"""A commit unanswered for this long: do not block on another one."""


class Commits:
    """The way of offsets to the broker."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        *,
        on_stop: Callable[[str, bool], None],
        may_wait: Callable[[float], None],
        clock: Clock,
        group: str,
    ) -> None:
        """`on_stop` hears why the worker cannot go on, and whether a restart may mend it; `may_wait`, for how many
        seconds the thread may stand still. `group` is named to who has to grant a right on it."""
        self._ledger = ledger
        self._metrics = metrics
        self._on_stop = on_stop
        self._may_wait = may_wait
        self._clock = clock
        self._group = group
        self._due_at = float("-inf")
        self._unanswered = 0
        self._unanswered_since = 0.0

    def send_if_due(self, consumer: Consumer) -> None:
        """Every 100 ms, whatever moved."""
        now = self._clock()
        if now >= self._due_at:
            self._due_at = now + COMMIT_EVERY_S
            self._send(consumer, self._ledger.take_commits())

    def send_meanwhile(self, consumer: Consumer, ownerships: Sequence[Ownership], budget_s: float) -> None:
        """While these partitions are about to go: one commit at the end will do."""

    def send_for(self, consumer: Consumer, ownerships: Sequence[Ownership], budget_s: float) -> None:
        """Before these partitions go. Inside a callback, where polling for the answer is not possible.

        It takes as long as the client's own synchronous commit does, for that cannot be told a time.
        """
        self._may_wait(SYNCHRONOUS_COMMIT_S)
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
        """Before the consumer closes: send, and poll until all is committed or the budget is used up.

        While the group rebalances, the coordinator answers a commit only after it has answered our request to join,
        and then refuses it for its old generation: send it again, for whoever takes over would answer all of it twice.
        """
        deadline = Deadline(budget_s, self._clock)
        while True:
            if not self._unanswered:
                commits = self._ledger.take_commits()
                if not commits:
                    return
                self._send(consumer, commits)
            if deadline.expired:
                return
            consumer.poll(deadline.remaining_s(at_most=0.1))

    def wait_s(self, at_most: float) -> float:
        """How long the thread may wait for something else."""
        return at_most

    def forget(self) -> None:
        """Epochs are over: the ledger knows, and that is all."""

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
        self._answers([(p.topic, p.partition, p.error or error) for p in partitions])

    def _refused(self, commits: Sequence[Commit], error: KafkaError) -> None:
        self._answers([(commit.topic, commit.partition, error) for commit in commits])

    def _answers(self, answers: Sequence[tuple[str, int, KafkaError | None]]) -> None:
        failed: dict[tuple[str, str], list[int]] = {}
        for topic, partition, error in answers:
            action = CommitAction.OK
            if error is not None:
                action = commit_verdict(error.name(), fatal=error.fatal(), retriable=error.retriable())
            if error is None or action is CommitAction.OK:
                self._metrics.commits_total["ok"].inc()
                continue
            self._metrics.commits_total["lost" if action is CommitAction.LOST else "error"].inc()
            if action is CommitAction.STOP:
                right = right_to_read(error.name(), topic, self._group)
                self._on_stop(
                    stop_sentence(error.name(), error.str(), right), not needs_operator(error.name())
                )
                continue
            # LOST is not the end of the epoch yet: the callback that follows says whose the partition is. While we
            # join a new generation, the old one's commits come back like this although nothing is lost.
            self._ledger.commit_failed(topic, partition)
            failed.setdefault((topic, error.name()), []).append(partition)
        for (topic, name), numbers in failed.items():
            log.info(
                "a commit was refused, trying again",
                extra={"topic": topic, "partitions": numbers, "error": name},
            )


def _offsets(commits: Sequence[Commit]) -> list[TopicPartition]:
    return [TopicPartition(*commit) for commit in commits]
