"""Transactional producers, and the coordinators behind them. What is `visible` is what a read_committed reader sees.

Errors have the flags that the real ones were seen to have. `faults` are met by the next calls of the operation of that
name: an error before it has any effect, or after it; or anything else that happens then.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from promptbus_worker.acknowledged_replies import DeliveryReport
from promptbus_worker.transactions import Transactions
from tests.unit.worker.fake_consumer import FakeClock, Group


def transaction_error(
    name: str, *, fatal: bool = False, retriable: bool = False, requires_abort: bool = False
) -> KafkaError:
    return KafkaError(getattr(KafkaError, name), f"about {name}", fatal, retriable, requires_abort)


TIMED_OUT = transaction_error("_TIMED_OUT", retriable=True)
ABORTABLE = transaction_error("ILLEGAL_GENERATION", requires_abort=True)
FENCED = transaction_error("_FENCED", fatal=True)


class Fault(NamedTuple):
    """`before` happens before the operation; it is done then or not; `error` is raised after that."""

    before: Callable[[], None] = lambda: None
    error: KafkaError | None = None
    done: bool = True


class FakeBrokers:
    """One transactional id, and the group whose offsets its transactions carry."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.visible: list[bytes] = []
        """Values of the records of committed transactions."""
        self.producers: list[FakeProducer] = []
        self.epoch = 0
        self.records: list[bytes] = []  # of the open transaction, if there is one
        self.offsets: list[TopicPartition] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.refuse: Callable[[str, bytes], str | None] = lambda topic, value: None
        """The name of the error with which a record is refused."""
        self.queue_size = 1000
        self.record_s = 0.0
        """How long it takes to write one record."""

    def transactions(self, clock: FakeClock, on_stop: Callable[[str, bool], None]) -> Transactions:
        """As a worker process makes them."""
        return Transactions(lambda: FakeProducer(self, clock), timeout_s=10, on_stop=on_stop, clock=clock)

    def resolve(self, *, commit: bool) -> None:
        """End the open transaction."""
        if commit:
            self.visible += self.records
            for partition in self.offsets:
                metadata = partition.metadata or ""
                self.group.check_commit(partition.partition, partition.offset, metadata)
                self.group.committed[partition.partition] = partition.offset
                self.group.metadata[partition.partition] = metadata
        self.records, self.offsets = [], []
        self.group.unstable = set()

    def time_out(self) -> None:
        """The transaction has lasted too long: aborted, and its producer fenced."""
        self.epoch += 1
        self.resolve(commit=False)


class FakeProducer:
    """One producer; it fences the ones before it."""

    def __init__(self, brokers: FakeBrokers, clock: FakeClock) -> None:
        self._brokers = brokers
        self._clock = clock
        self._epoch = -1
        self._queue: list[tuple[str, bytes, DeliveryReport]] = []
        self._state = "new"  # → ready → open → ready
        self._must_abort: KafkaError | None = None
        self._timed_out: str | None = None
        self.calls: list[str] = []
        brokers.producers.append(self)

    def _operate(self, name: str, timeout: float, effect: Callable[[], None]) -> None:
        self.calls.append(name)
        if self._timed_out not in (None, name):
            raise KafkaException(transaction_error("_CONFLICT"))
        self._timed_out = None
        fault = self._brokers.faults[name].popleft() if self._brokers.faults[name] else Fault()
        fault.before()
        if fault.done:
            if name != "init_transactions" and self._epoch != self._brokers.epoch:
                raise KafkaException(FENCED)
            effect()
        if fault.error is not None:
            if fault.error.retriable():
                self._clock.now += timeout
                self._timed_out = name if name != "send_offsets_to_transaction" else None
            elif fault.error.txn_requires_abort():
                self._must_abort = fault.error
            raise KafkaException(fault.error)

    def init_transactions(self, timeout: float) -> None:
        if self._state == "ready" and self._timed_out == "init_transactions":
            self._timed_out = None  # it had come through
            return
        assert self._state == "new"

        def effect() -> None:
            self._brokers.epoch += 1
            self._brokers.resolve(commit=False)
            self._epoch = self._brokers.epoch
            self._state = "ready"

        self._operate("init_transactions", timeout, effect)

    def begin_transaction(self) -> None:
        assert self._state == "ready", "the last one has no end yet"
        assert not self._brokers.records, "records of another transaction are open"
        self._operate("begin_transaction", 0, lambda: None)
        self._state = "open"

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        callback: DeliveryReport,
        on_delivery: None,
        timestamp: int,
        headers: list[tuple[str, bytes | None]],
    ) -> None:
        assert self._state == "open"
        if self._must_abort is not None:
            raise KafkaException(transaction_error("_STATE"))
        if len(self._queue) >= self._brokers.queue_size:
            raise BufferError("queue full")
        self._queue.append((topic, value or b"", callback))

    def poll(self, timeout: float) -> int:
        if not self._brokers.record_s:
            self._clock.now += timeout
        return self._deliver(timeout) if self._state == "open" else 0

    def flush(self, timeout: float) -> int:
        self.calls.append("flush")
        if self._brokers.faults["flush"]:
            fault = self._brokers.faults["flush"].popleft()
            fault.before()
            if not fault.done:
                self._clock.now += timeout
                return len(self._queue)
        self._deliver(timeout)
        return len(self._queue)

    def _deliver(self, timeout: float) -> int:
        takes = self._brokers.record_s
        count = min(len(self._queue), int(timeout / takes)) if takes else len(self._queue)
        queue, self._queue = self._queue[:count], self._queue[count:]
        self._clock.now += timeout if takes and self._queue else count * takes
        for topic, value, report in queue:
            name = self._brokers.refuse(topic, value)
            if name is None and self._epoch == self._brokers.epoch:
                self._brokers.records.append(value)
            else:
                self._must_abort = transaction_error(name or "_FENCED", requires_abort=True)
                report(transaction_error(name or "_FENCED"), None)
        return len(queue)

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: object, timeout: float
    ) -> None:
        assert isinstance(group_metadata, bytes)
        assert not self._queue, "flush first"
        (generation,) = struct.unpack_from("=i", group_metadata, 7)
        assert generation >= 0, "nobody checks the offsets of one that is no member"

        def effect() -> None:
            if self._must_abort is not None:
                raise KafkaException(self._must_abort)
            if generation != self._brokers.group.generation:
                self._must_abort = ABORTABLE
                raise KafkaException(ABORTABLE)
            self._brokers.offsets = positions
            self._brokers.group.unstable = {partition.partition for partition in positions}

        self._operate("send_offsets_to_transaction", timeout, effect)

    def commit_transaction(self, timeout: float) -> None:
        if self._must_abort is not None:
            raise KafkaException(self._must_abort)

        def effect() -> None:
            self._brokers.resolve(commit=True)
            self._state = "ready"

        if self._state == "ready" and self._timed_out == "commit_transaction":
            self._timed_out = None  # it had come through
            return
        self._operate("commit_transaction", timeout, effect)

    def abort_transaction(self, timeout: float) -> None:
        def effect() -> None:
            self._queue = []
            self._must_abort = None
            self._brokers.resolve(commit=False)
            self._state = "ready"

        if self._state == "ready" and self._timed_out == "abort_transaction":
            self._timed_out = None
            return
        self._operate("abort_transaction", timeout, effect)
