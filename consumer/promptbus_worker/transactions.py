"""One transaction after the other: records and offsets of the request topic, both visible or neither.

Theory of operation. `ready` makes a producer and initialises it, which ends whatever an earlier one with the same
transactional id has left open, and fences it. `run` begins a transaction, writes the records and flushes them, adds the
offsets with the group's metadata of that very moment, and commits.

An error's flags decide what follows, never its code (`kafka_outcomes.transaction_verdict`):

    retriable           the same operation again, until the transaction's time is over
    requires abort      abort; nothing of it is ever visible
    fatal, or no flag   this producer works no more: the worker stops, and the next process fences what is left

A commit or an abort whose end is still not known when its time is over is answered by nothing else than a new producer:
the old one's request may be on its way, and Kafka's client has no means (KIP-890) against one that arrives during a
later transaction. For the same reason a producer that needed several attempts for one of them is replaced afterwards.

librdkafka sends offsets to the group's coordinator, and while it has no connection with that one, its time-out does not
hold: it waits for whatever a broker does next. That may be for ever, for after it has lost all brokers it waits for one
that it has itself forgotten. So a thread waits with it, and a producer that does not come back is given up as well.

All on the consumer's thread, but for that. Calls block, but no longer than they are told to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from enum import Enum, auto
from functools import partial
from typing import NamedTuple, Protocol

from confluent_kafka import KafkaException, TopicPartition

from promptbus_worker import acknowledged_replies
from promptbus_worker.acknowledged_replies import DeliveryError, produce
from promptbus_worker.deadline import Clock, Deadline
from promptbus_worker.kafka_outcomes import (
    DeliveryAction,
    TransactionAction,
    delivery_verdict,
    needs_operator,
    stop_sentence,
    transaction_verdict,
)
from promptbus_worker.reply_records import Outgoing

log = logging.getLogger(__name__)

SLICE_S = 1.0
"""How long one call may block; it is repeated until the time is over."""
PAUSE_S = 0.05
TO_WRITE = 0.7
"""The share of its time that a transaction may take until its commit."""
TIMED_OUT = "_TIMED_OUT"
"""The error's name of a transaction that did not get to its commit in time."""
INIT_S = 1.0
ABORT_S = 3.0
OVERDUE_S = 0.5
"""By how much a call may outlast its time before it counts as one that does not come back."""


class Flagged(DeliveryError, Protocol):
    """What is used of the errors that transactional operations raise."""

    def txn_requires_abort(self) -> bool: ...


class Producer(acknowledged_replies.Producer, Protocol):
    """What transactions use of confluent_kafka.Producer besides. All raise KafkaException."""

    def flush(self, timeout: float) -> int: ...
    def init_transactions(self, timeout: float) -> None: ...
    def begin_transaction(self) -> None: ...
    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: object, timeout: float
    ) -> None: ...
    def commit_transaction(self, timeout: float) -> None: ...
    def abort_transaction(self, timeout: float) -> None: ...


class Ended(Enum):
    """How a transaction ended."""

    COMMITTED = auto()
    ABORTED = auto()
    UNKNOWN = auto()
    """Committed or not: only the group's committed offsets can tell, once the next producer is ready."""


class Result(NamedTuple):
    """`refused`: records that are larger than their topics take; `error`: the name of what made it fail."""

    ended: Ended
    refused: list[Outgoing]
    error: str | None = None


class _OutOfTime(Exception):
    """An operation's time was over before it had an end."""


class _Overdue(Exception):
    """A call does not come back; its producer takes no other one meanwhile."""


class _Spoilt(Exception):
    """A transaction that takes no more records. Its text is the error's name."""


class Transactions:
    """One transactional producer, and its successors under the same id."""

    def __init__(
        self,
        make_producer: Callable[[], Producer],
        *,
        timeout_s: float,
        on_stop: Callable[[str, bool], None],
        clock: Clock,
        denied: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        """`timeout_s`: what the brokers allow a transaction. `on_stop` hears why the worker cannot go on, and whether a
        restart may mend it. `denied` knows, by an error's name, which right is missing, and may block for seconds."""
        self._make_producer = make_producer
        self._on_stop = on_stop
        self._clock = clock
        self._denied = denied
        self.budget_s = timeout_s * 0.9
        """How long `run` tries to commit, at most. An abort may take `ABORT_S` more."""
        self._producer: Producer | None = None
        self._initialised = False
        self._worn_out = False
        self.over = False
        """This process begins no transaction any more; why was told to `on_stop`."""
        self._refused: list[Outgoing] = []

    def ready(self) -> bool:
        """Have a producer that may begin a transaction; waits a second for that. False: not yet, or never again."""
        if self.over:
            return False
        if self._worn_out:
            self._give_up_producer()
        if self._producer is None:
            self._producer = self._make_producer()
        if not self._initialised:
            try:
                self._producer.init_transactions(INIT_S)
                self._initialised = True
            except KafkaException as failure:
                error: Flagged = failure.args[0]
                if self._verdict(error) is not TransactionAction.RESUME:
                    self._stop(error, "Transactions cannot be initialised.")
        return self._initialised

    def run(
        self,
        records: Iterable[Outgoing],
        offsets: Sequence[TopicPartition],
        group_metadata: Callable[[], object | None],
        budget_s: float,
    ) -> Result:
        """One transaction, only after `ready`. It has `budget_s` to commit, but never more than `self.budget_s`.

        `group_metadata` is asked for right before the offsets are sent; None: this process is no member any more.
        """
        producer = self._producer
        assert producer is not None, "ready() said so"
        assert self._initialised, "ready() said so"
        self._refused = []
        budget_s = min(budget_s, self.budget_s)
        to_commit, to_write = Deadline(budget_s, self._clock), Deadline(budget_s * TO_WRITE, self._clock)
        try:
            producer.begin_transaction()
            for outgoing in records:
                self._produce(producer, outgoing, to_write)
            while producer.flush(to_write.remaining_s(at_most=SLICE_S)):
                if to_write.expired:
                    raise _OutOfTime
            metadata = None if self._refused or self.over else group_metadata()
            if metadata is None:
                return self._abort(producer, None)
            self._resume(
                producer,
                lambda time_s: _come_back(
                    partial(producer.send_offsets_to_transaction, [*offsets], metadata, time_s),
                    max(time_s, to_write.remaining_s()) + OVERDUE_S,
                ),
                to_write,
            )
        except _OutOfTime:
            return self._abort(producer, TIMED_OUT)
        except _Overdue:
            self._unknown("its offsets")  # without a commit it is aborted, by whomever
            return Result(Ended.ABORTED, [], TIMED_OUT)
        except _Spoilt as spoilt:
            return self._abort(producer, str(spoilt))
        except KafkaException as failure:
            return self._failed(producer, failure.args[0])
        try:
            if self._resume(producer, producer.commit_transaction, to_commit):
                self._worn_out = True
        except _OutOfTime:
            return self._unknown("its commit")
        except KafkaException as failure:
            return self._failed(producer, failure.args[0])
        return Result(Ended.COMMITTED, [])

    # -- steps

    def _produce(self, producer: Producer, outgoing: Outgoing, deadline: Deadline) -> None:
        while True:
            try:
                produce(producer, outgoing, partial(self._delivered, outgoing))
                return
            except BufferError:
                if deadline.expired:
                    raise _OutOfTime from None
                producer.poll(deadline.remaining_s(at_most=PAUSE_S))
            except KafkaException as failure:
                error: Flagged = failure.args[0]
                if self._is_too_large(error):  # larger than the client allows at all
                    self._refused.append(outgoing)
                    return
                if error.fatal() or error.name() == "_FATAL":
                    raise
                # A record before it has failed. This error has no flags: that the transaction has to be aborted is
                # told by its other operations only.
                raise _Spoilt(error.name()) from failure

    def _delivered(self, outgoing: Outgoing, error: DeliveryError | None, _: object) -> None:
        if error is None:
            return
        if self._is_too_large(error):
            self._refused.append(outgoing)
        elif delivery_verdict(error.name(), fatal=False, retriable=False) is DeliveryAction.STOP:
            self._stop(error, f"Writing to {outgoing.topic} failed for good.")

    @staticmethod
    def _is_too_large(error: DeliveryError) -> bool:
        return delivery_verdict(error.name(), fatal=False, retriable=False) is DeliveryAction.TOO_LARGE

    def _resume(self, producer: Producer, operation: Callable[[float], None], deadline: Deadline) -> int:
        """Repeat an operation while its error asks for just that; how often it was repeated.

        Raises _OutOfTime, or the error that asks for something else.
        """
        repeated = 0
        while True:
            try:
                operation(max(PAUSE_S, deadline.remaining_s(at_most=SLICE_S)))
                return repeated
            except KafkaException as failure:
                if self._verdict(failure.args[0]) is not TransactionAction.RESUME:
                    raise
            if deadline.expired:
                raise _OutOfTime
            repeated += 1
            producer.poll(PAUSE_S)  # it may have failed at once

    def _failed(self, producer: Producer, error: Flagged) -> Result:
        if self._verdict(error) is TransactionAction.STOP:
            self._stop(error, "A transaction failed for good.")
            return Result(Ended.UNKNOWN, [], error.name())
        return self._abort(producer, error.name(), error)

    def _abort(self, producer: Producer, why: str | None, error: Flagged | None = None) -> Result:
        deadline = Deadline(ABORT_S, self._clock)
        try:
            if self._resume(producer, producer.abort_transaction, deadline):
                self._worn_out = True
        except _OutOfTime:
            self._unknown("its abort")  # without a commit it is aborted, by whomever
        except KafkaException as failure:
            if error is None or not needs_operator(error.name()):
                self._stop(failure.args[0], "A transaction could not be aborted.")
        if error is not None and needs_operator(error.name()):
            self._stop(error, "A transaction failed for good.")
        return Result(Ended.ABORTED, self._refused, why)

    def _unknown(self, what: str) -> Result:
        log.warning("a transaction is left unresolved: the brokers do not answer", extra={"waited_for": what})
        self._give_up_producer()
        return Result(Ended.UNKNOWN, [], "_TIMED_OUT")

    def _give_up_producer(self) -> None:
        self._producer, self._initialised, self._worn_out = None, False, False

    def _stop(self, error: DeliveryError, what: str) -> None:
        """Fenced is no reason to stay away: the other one may be ourselves, or the brokers after a long silence."""
        if self.over:
            return
        self.over = True
        name = error.name()
        denied = self._denied(name)
        restart = denied is None and (not needs_operator(name) or name == "_FENCED")
        self._on_stop(f"{what} {denied or stop_sentence(name, error.str())}", restart)

    @staticmethod
    def _verdict(error: Flagged) -> TransactionAction:
        return transaction_verdict(
            fatal=error.fatal(), requires_abort=error.txn_requires_abort(), retriable=error.retriable()
        )


def _come_back(call: Callable[[], None], within_s: float) -> None:
    """Run it in a thread of its own. Raises what it raises, or _Overdue; then the thread stays for as long as it takes."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            call()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="kafka-offsets", daemon=True).start()
    if not wait([ended], within_s).done:
        raise _Overdue
    ended.result()
