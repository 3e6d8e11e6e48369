"""The one thread that touches the Kafka consumer: poll, rebalance, pause, commit.

It owns the consumer and the ledger. Polled records go to the event loop, one hop per poll; settled and released ones
come back through a thread-safe queue that is emptied between polls. So the ledger needs no lock, and a rebalance
callback, which runs inside poll, sees a consistent picture. Callbacks never raise: the client would deliver on as
if nothing had happened; they note why the worker has to stop, and the loop stops.

Rebalances are here. What is polled is in `polling`, where reading begins in `positions`, pauses in `pausing`, commits in
`commits` and `transactional_commits`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from promptbus_worker.commits import Commits
from promptbus_worker.deadline import Clock, Deadline
from promptbus_worker.kafka_outcomes import (
    ConsumerAction,
    consumer_verdict,
    needs_operator,
    right_to_read,
    stop_sentence,
)
from promptbus_worker.lag_report import LagReport
from promptbus_worker.ledger import Ledger, Ownership
from promptbus_worker.pausing import Pausing
from promptbus_worker.polling import Polling
from promptbus_worker.positions import READ_TIMEOUT_S, Position, Positions
from promptbus_worker.record import Record
from promptbus_worker.reply_records import Outgoing
from promptbus_worker.transactional_commits import Loop as TransactionsLoop
from promptbus_worker.transactional_commits import TransactionalCommits
from promptbus_worker.transactions import Transactions

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.1
WAIT_FOR_ROOM_S = 0.02
"""Answering makes room too, and nobody tells (`room`): so it is looked for again before what waits has all left."""
MAX_POLL_RECORDS = 500
CLOSING_COMMIT_S = 3.0
LAST_COMMIT_S = 1.0
"""Before a partition goes, whatever is left of the time for that."""


class Loop(TransactionsLoop, Protocol):
    """The event loop's side. Each method may be called from the consumer thread and returns at once."""

    def accept(self, records: list[Record]) -> None:
        """Records to answer."""
        ...

    def release(self, ownerships: Sequence[Ownership]) -> None:
        """These partitions are being taken away: give back what was not dispatched."""
        ...

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over."""
        ...

    def drain_now(self, ownerships: Sequence[Ownership]) -> None:
        """Nothing more will come: give back what was not dispatched of these partitions."""
        ...

    def stop(self, reason: str, restart: bool) -> None:
        """The worker cannot go on; `reason` is a sentence for the operator. `restart`: a new process may mend it."""
        ...

    def trouble(self, error: str, text: str) -> None:
        """The client has an error that it deals with itself, by name and in its words; brokers may be gone."""
        ...


class Intake:
    """Runs `run` in a thread of its own. What other threads may call is marked so."""

    def __init__(
        self,
        consumer_config: dict[str, object],
        topic: str,
        *,
        positions: Positions,
        loop: Loop,
        metrics: Metrics,
        max_records: Callable[[], int],
        max_bytes: int,
        revoke_s: float,
        lag_report: LagReport | None = None,
        make_transactions: Callable[[Callable[[str, bool], None]], Transactions] | None = None,
        clock: Clock = time.monotonic,
        make_consumer: Callable[[dict[str, object]], Consumer] = Consumer,
    ) -> None:
        """`max_records` (asked at each poll) and `max_bytes` bound what is in hand; the consumer is made in `run`.
        `make_transactions` is given what hears why the worker cannot go on; with it, outcomes come by `write` and are
        not `settled`."""
        self._config = {**consumer_config, "error_cb": self._client_error}
        self._topic = topic
        self._group = str(consumer_config.get("group.id", ""))
        # KIP-848's client tells nothing of an assignment without partitions: whoever polls may be a member.
        self._hears_of_nothing = consumer_config.get("group.protocol") != "consumer"
        self._positions = positions
        self._loop = loop
        self._metrics = metrics
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._revoke_s = revoke_s
        self._lag_report = lag_report
        self._clock = clock
        self._make_consumer = make_consumer
        self._ledger = Ledger()
        self._polling = Polling(
            self._ledger, positions, metrics, on_error=self._consumer_error, on_stop=self._stop, clock=clock
        )
        self._pausing = Pausing(self._ledger, positions, metrics)
        self._commits = self._make_commits(make_transactions)
        self._done: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what the event loop has to say
        self._poll_wanted = False
        self._stopped = False
        self._drain_wanted = False
        self._draining = False
        self._closing_s = CLOSING_COMMIT_S
        self._finishing = threading.Event()
        self.progress_at = clock()
        self.polled_at = float("-inf")
        self.joined = False
        """Whether it is a member of the group, be it without partitions."""

    def _make_commits(
        self, make_transactions: Callable[[Callable[[str, bool], None]], Transactions] | None
    ) -> Commits | TransactionalCommits:
        if make_transactions is None:
            commits = Commits(
                self._ledger,
                self._metrics,
                on_stop=self._stop,
                may_wait=self._may_wait,
                clock=self._clock,
                group=self._group,
            )
            self._config["on_commit"] = commits.answered
            return commits
        return TransactionalCommits(
            self._ledger,
            make_transactions(self._stop),
            loop=self._loop,
            metrics=self._metrics,
            read_anew=self._read_anew,
            may_wait=self._may_wait,
            clock=self._clock,
        )

    # -- called by the event loop's thread

    def settled(self, records: list[Record]) -> None:
        """Everything these records ask for is acknowledged."""
        self._done.put(partial(self._settle, records))

    def write(self, records: list[Outgoing]) -> None:
        """All that some requests are answered with: to be written and settled in one transaction."""
        assert isinstance(self._commits, TransactionalCommits), "it was made with transactions"
        self._done.put(partial(self._commits.take, records))

    def released(self, records: list[Record]) -> None:
        """These records will not be answered in this epoch."""
        self._done.put(partial(self._release, records))

    def hold(self, held: bool) -> None:
        """Pause all partitions (and keep polling), or go on."""
        self._pausing.held = held

    def poll_soon(self) -> None:
        """Poll once even if there is no room."""
        self._poll_wanted = True

    def drain(self) -> None:
        """Fetch nothing more, tell the loop (`Loop.drain_now`); go on polling, settling and committing."""
        self._drain_wanted = True

    def finish(self, commit_s: float = CLOSING_COMMIT_S) -> None:
        """Settle what is there, commit within `commit_s`, leave the group, end the thread."""
        self._closing_s = max(commit_s, CLOSING_COMMIT_S)
        self._finishing.set()

    # -- the thread

    def run(self) -> None:
        """Poll until told to finish. Never raises: what stops the worker goes to `Loop.stop`."""
        try:
            consumer = self._make_consumer(self._config)
            try:
                consumer.subscribe(
                    [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
                while not self._finishing.is_set():
                    self.progress_at = self._clock()
                    self._step(consumer)
                self._take_done(0)
                self._commits.send_last(consumer, self._closing_s)
            finally:
                with suppress(KafkaException):
                    consumer.unsubscribe()
                consumer.close()
        except Exception as error:
            log.exception("the consumer thread failed")
            self._stop(f"The Kafka consumer failed: {error}", restart=True)

    def _step(self, consumer: Consumer) -> None:
        self._take_done(0)
        if self._drain_wanted and not self._draining:
            self._draining = self._polling.discarding = True
            self._loop.drain_now(self._ledger.ownerships())
        now = self._clock()
        self._commits.send_if_due(consumer)
        self._find_positions(consumer)
        room = self._room()
        self._pausing.update(consumer, room, now, done=self._polling.discarding)
        paused = self._pausing.paused
        if self._lag_report is not None:
            self._lag_report.send_if_due(consumer, self._ledger, fetching=not paused)
        if room <= 0 and not paused and not self._poll_wanted:
            self._take_done(self._commits.wait_s(WAIT_FOR_ROOM_S))
            return
        began = self._clock()
        records = self._polling.poll(consumer, max(1, room), self._commits.wait_s(POLL_S))
        self._poll_wanted = False
        self.polled_at = began
        if not self._hears_of_nothing:
            self.joined = True
        if records:
            self._loop.accept(records)

    def _room(self) -> int:
        if self._ledger.bytes_in_hand >= self._max_bytes:
            return 0
        return min(MAX_POLL_RECORDS, self._max_records() - self._ledger.records_in_hand)

    def _client_error(self, error: KafkaError) -> None:
        """The error callback, inside poll: the only place where a fatal error says that it is one."""
        if error.fatal():
            self._stop(stop_sentence(error.name(), error.str()), restart=not needs_operator(error.name()))
        else:
            self._loop.trouble(error.name(), error.str())

    def _consumer_error(self, error: KafkaError) -> None:
        name = error.name()
        match consumer_verdict(name, fatal=error.fatal(), retriable=error.retriable()):
            case ConsumerAction.STOP:
                right = right_to_read(name, self._topic, self._group)
                self._stop(stop_sentence(name, error.str(), right), restart=not needs_operator(name))
            case ConsumerAction.LOST:
                log.warning("the group went on without this worker", extra={"error": name})
                self._end(self._ledger.ownerships())
            case ConsumerAction.CARRY_ON:
                log.info("Kafka", extra={"error": name, "detail": error.str()})

    def _stop(self, reason: str, restart: bool) -> None:
        if not self._stopped:
            self._stopped = self._polling.discarding = True
            self._loop.stop(reason, restart)

    # -- settled records

    def _take_done(self, timeout_s: float) -> None:
        """Empty the queue of what the event loop has done; if it is empty, wait up to `timeout_s` for the first."""
        with suppress(Empty):
            take = self._done.get(timeout=timeout_s) if timeout_s else self._done.get_nowait()
            while True:
                take()
                take = self._done.get_nowait()

    def _settle(self, records: list[Record]) -> None:
        for record in records:
            self._ledger.settle(record.ownership, record.offset)

    def _release(self, records: list[Record]) -> None:
        for record in records:
            self._ledger.release(record.ownership, record.offset)

    # -- rebalance, on this thread inside poll and close

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances_total["assign"].inc()
        self.joined = True
        try:
            new = [self._begin_epoch(partition) for partition in partitions]
            self._may_wait(READ_TIMEOUT_S * (1 + len(new)))
            found = self._positions.find(consumer, new)
            self._positions.begin(consumer, found, new)
            for ownership, position in found.items():
                self._begin(ownership, position)
            self._pausing.assigned(consumer, new)
            self._log_owned("assigned", partitions)
        except Exception as error:
            log.exception("partitions could not be taken over")
            self._stop(f"Partitions could not be taken over: {error}", restart=True)

    def _begin_epoch(self, partition: TopicPartition) -> Ownership:
        old = self._ledger.owned(partition.topic, partition.partition)
        if old is not None:  # assigned again without a word: whatever we hold is of an old epoch
            self._end([old])
        return self._ledger.assign(partition.topic, partition.partition)

    def _begin(self, ownership: Ownership, position: Position) -> None:
        self._ledger.begin(
            ownership, position.offset, committed=position.committed, settled_before=position.settled_before
        )

    def _find_positions(self, consumer: Consumer) -> None:
        unknown = self._positions.unknown
        if not unknown:
            return
        self._may_wait(READ_TIMEOUT_S * (1 + len(unknown)))
        found = self._positions.find(consumer, unknown)
        for ownership, position in found.items():
            if self._positions.move(consumer, ownership, position):
                self._begin(ownership, position)
                self._pausing.paused = None

    def _read_anew(self, consumer: Consumer) -> None:
        """Nobody knows what was committed last: begin new epochs where the group's commits say, as after a restart."""
        old = self._ledger.ownerships()
        self._end(old)
        self._positions.look_again(consumer, [self._ledger.assign(o.topic, o.partition) for o in old])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances_total["revoke"].inc()
        self.polled_at = self._clock()  # the group has spoken: what waits for that after a freeze may go on
        try:
            ownerships = self._owned(partitions)
            deadline = Deadline(self._revoke_s, self._clock)
            self._loop.release(ownerships)
            while self._ledger.in_hand(ownerships) and not deadline.expired and not self._finishing.is_set():
                self._take_done(deadline.remaining_s(at_most=0.05))
                self.progress_at = self._clock()
                self._commits.send_meanwhile(consumer, ownerships, deadline.remaining_s())
            self._take_done(0)
            self._commits.send_for(consumer, ownerships, max(LAST_COMMIT_S, deadline.remaining_s()))
            left = self._ledger.in_hand(ownerships)
            self._end(self._owned(partitions))
            self._log_owned("revoked", partitions, unfinished=left)
        except Exception as error:
            log.exception("partitions could not be handed over")
            self._stop(f"Partitions could not be handed over: {error}", restart=True)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances_total["lost"].inc()
        try:
            self._end(self._owned(partitions))
            self._log_owned("lost", partitions)
        except Exception as error:
            log.exception("lost partitions could not be let go")
            self._stop(f"Lost partitions could not be let go: {error}", restart=True)

    def _may_wait(self, seconds: float) -> None:
        """What follows waits for brokers for up to so long: that is no sign that this thread is stuck."""
        self.progress_at = self._clock() + seconds

    def _owned(self, partitions: Sequence[TopicPartition]) -> list[Ownership]:
        found = (self._ledger.owned(partition.topic, partition.partition) for partition in partitions)
        return [ownership for ownership in found if ownership is not None]

    def _end(self, ownerships: Sequence[Ownership]) -> None:
        for ownership in ownerships:
            self._ledger.end(ownership)
        self._positions.forget()
        self._commits.forget()
        self._loop.forget(ownerships)
        if self._lag_report is not None:
            self._lag_report.keep_only(self._ledger)
        self._pausing.update_gauges()

    def _log_owned(self, event: str, partitions: Sequence[TopicPartition], **more: object) -> None:
        self._pausing.update_gauges()
        names = sorted(partition.partition for partition in partitions)
        log.info("partitions %s", event, extra={"topic": self._topic, "partitions": names, **more})
