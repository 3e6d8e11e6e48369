"""A Kafka consumer and the group's side of the broker, on the caller's thread and in the caller's time.

It does what confluent_kafka.Consumer was seen to do: callbacks run inside `poll` and `consume`, an exception in one
comes out of them, errors are elements among the messages, a commit is answered per partition.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty
from typing import Protocol, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from promptbus_worker.intake import Intake
from promptbus_worker.lag_report import LagReport
from promptbus_worker.ledger import Ownership
from promptbus_worker.metrics import Metrics
from promptbus_worker.positions import Positions
from promptbus_worker.record import Record
from promptbus_worker.reply_records import Outgoing
from promptbus_worker.transactions import Transactions

TOPIC = "requests"
METRICS = Metrics(["gpt4_nano"])  # the counts of all tests together: making one costs more than a test


def kafka_error(name: str, *, fatal: bool = False, retriable: bool = False) -> KafkaError:
    return KafkaError(getattr(KafkaError, name), f"about {name}", fatal, retriable)


class FakeClock:
    """Monotonic seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Group:
    """One topic's logs, and what a consumer group has committed of them."""

    def __init__(self, partitions: int = 1) -> None:
        self.log: dict[int, list[int]] = {partition: [] for partition in range(partitions)}
        self.low = dict.fromkeys(self.log, 0)
        self.committed: dict[int, int] = {}
        self.metadata: dict[int, str] = {}
        self.check_commit: Callable[[int, int, str], None] = lambda partition, offset, metadata: None
        self.generation = 1
        self.unstable: set[int] = set()
        """Partitions with offsets in a transaction that is not resolved: their commits cannot be read."""

    def produce(self, partition: int = 0, *, count: int = 1, gap: int = 1) -> None:
        """Records at the end; `gap` more than 1 leaves offsets out."""
        for _ in range(count):
            log = self.log[partition]
            log.append(log[-1] + gap if log else gap - 1)

    def end(self, partition: int) -> int:
        log = self.log[partition]
        return log[-1] + 1 if log else self.low[partition]


@dataclass
class Answer:
    """A partition in an answer; confluent_kafka lets nobody set `error` on its own."""

    topic: str
    partition: int
    offset: int
    error: KafkaError | None = None
    metadata: str = ""


class Callbacks(Protocol):
    def __call__(self, consumer: Consumer, partitions: list[TopicPartition], /) -> None: ...


def _nothing() -> None: ...


@dataclass
class FakeConsumer:
    """The consumer. Tests read `calls` and `position`, and put into the queues what is to happen next."""

    config: dict[str, object]
    group: Group
    clock: FakeClock
    calls: list[tuple[object, ...]] = field(default_factory=list)
    position: dict[int, int] = field(default_factory=dict)
    """Assigned partitions, and where each is read next."""
    paused: set[int] = field(default_factory=set)
    closed: bool = False
    events: deque[Callable[[], None]] = field(default_factory=deque)
    """Served, oldest first, by the next poll or consume."""
    fetched_end: dict[int, int] = field(default_factory=dict)
    """What the client knows of a log's end without asking: as of the last poll while it was not paused."""
    errors: deque[KafkaError] = field(default_factory=deque)
    """Delivered as messages before any record."""
    messages: deque[Message] = field(default_factory=deque)
    """Delivered as they are before any record."""
    failures: dict[str, list[KafkaError]] = field(default_factory=dict)
    """Raised by the next calls of the method of that name."""
    commit_errors: dict[int, KafkaError] = field(default_factory=dict)
    """The next commit of a partition is answered with this."""
    committed_errors: dict[int, KafkaError] = field(default_factory=dict)
    end_errors: dict[int, KafkaError] = field(default_factory=dict)
    """The next question for an end of a partition's log is answered with this."""
    answering: bool = True
    """Whether asynchronous commits are ever answered."""
    generation: int = 1
    before_poll: Callable[[], None] = _nothing
    before_consume: Callable[[], None] = _nothing

    # -- confluent_kafka.Consumer

    def subscribe(
        self, topics: list[str], *, on_assign: Callbacks, on_revoke: Callbacks, on_lost: Callbacks
    ) -> None:
        assert topics == [TOPIC]
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}

    def poll(self, timeout: float) -> Message | None:
        self._called("poll", timeout)
        self.before_poll()
        self._serve()
        message = self._next()
        if message is None:
            self.clock.now += timeout
        return message

    def consume(self, count: int, timeout: float) -> list[Message]:
        self._called("consume", count, timeout)
        self.before_consume()
        self._serve()
        messages: list[Message] = []
        while len(messages) < count and (message := self._next()) is not None:
            messages.append(message)
        return messages

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[Answer] | None:
        self._called("commit", asynchronous, {p.partition: p.offset for p in offsets})
        answers = []
        for partition in offsets:
            error = self.commit_errors.pop(partition.partition, None)
            if error is None and partition.partition not in self.position:
                error = kafka_error("ILLEGAL_GENERATION")
            if error is None:
                metadata = partition.metadata or ""
                self.group.check_commit(partition.partition, partition.offset, metadata)
                self.group.committed[partition.partition] = partition.offset
                self.group.metadata[partition.partition] = metadata
            answers.append(Answer(partition.topic, partition.partition, partition.offset, error))
        if not asynchronous:
            return answers
        if not self.answering:
            return None
        on_commit = cast(Callable[[KafkaError | None, list[Answer]], None], self.config["on_commit"])
        self.events.append(lambda: on_commit(None, answers))
        return None

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[Answer]:
        self._called("committed", sorted(p.partition for p in partitions))
        return [
            Answer(
                p.topic,
                p.partition,
                self.group.committed.get(p.partition, -1001),
                self.committed_errors.pop(p.partition, None)
                or (kafka_error("_TIMED_OUT") if p.partition in self.group.unstable else None),
                self.group.metadata.get(p.partition, ""),
            )
            for p in partitions
        ]

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = 0.0, *, cached: bool = False
    ) -> tuple[int, int]:
        assert cached, "asked for both ends, it may give one for the other"
        return -1001, self.fetched_end.get(partition.partition, -1001)

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[Answer]:
        assert all(partition.offset in (OFFSET_BEGINNING, OFFSET_END) for partition in partitions)
        self._called("ends", sorted(p.partition for p in partitions))
        return [
            Answer(
                p.topic,
                p.partition,
                self.group.end(p.partition) if p.offset == OFFSET_END else self.group.low[p.partition],
                error=self.end_errors.pop(p.partition, None),
            )
            for p in partitions
        ]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._called("assign", {p.partition: p.offset for p in partitions})
        for p in partitions:
            assert p.partition not in self.position
            assert p.offset >= 0, "what has to be looked up can override a seek"
            self.position[p.partition] = p.offset
            self.paused.discard(p.partition)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._called("pause", sorted(p.partition for p in partitions))
        self.paused.update(p.partition for p in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._called("resume", sorted(p.partition for p in partitions))
        self.paused.difference_update(p.partition for p in partitions)

    def seek(self, partition: TopicPartition) -> None:
        self._called("seek", partition.partition, partition.offset)
        self.position[partition.partition] = partition.offset

    def consumer_group_metadata(self) -> bytes:
        """As the real one: a mark, the generation, and the names of group and member."""
        return b"CGMDv2:" + struct.pack("=i", self.generation) + b"g\0\0\1"

    def unsubscribe(self) -> None:
        """Without it the real client does not leave a group in which it owns nothing."""
        self.calls.append(("unsubscribe",))

    def close(self) -> None:
        self.calls.append(("close",))
        if self.position:
            self.rebalance("revoke", *self.position)
        self._serve()
        self.closed = True

    # -- what a test makes happen

    def assign(self, *partitions: int) -> None:
        self.events.append(lambda: self.rebalance("assign", *partitions))

    def revoke(self, *partitions: int) -> None:
        self.events.append(lambda: self.rebalance("revoke", *partitions))

    def lose(self, *partitions: int) -> None:
        self.events.append(lambda: self.rebalance("lost", *partitions))

    def rebalance(self, kind: str, *partitions: int) -> None:
        """The callback, and what the client does after it."""
        if kind == "assign":
            self.generation = self.group.generation
        try:
            self._callbacks[kind](cast(Consumer, self), [TopicPartition(TOPIC, p) for p in partitions])
        finally:
            if kind != "assign":
                for partition in partitions:
                    self.position.pop(partition, None)
                    self.paused.discard(partition)

    def of(self, name: str) -> list[tuple[object, ...]]:
        """The arguments of the calls of that name so far."""
        return [call[1:] for call in self.calls if call[0] == name]

    def _called(self, name: str, *arguments: object) -> None:
        assert not self.closed
        self.calls.append((name, *arguments))
        if self.failures.get(name):
            raise KafkaException(self.failures[name].pop(0))

    def _serve(self) -> None:
        while self.events:
            self.events.popleft()()

    def _next(self) -> Message | None:
        if self.messages:
            return self.messages.popleft()
        if self.errors:
            return Message(error=self.errors.popleft())
        for partition in sorted(set(self.position) - self.paused):
            self.fetched_end[partition] = self.group.end(partition)
            position = self.position[partition]
            if position < self.group.low[partition] or position > self.group.end(partition):
                return Message(error=kafka_error("_AUTO_OFFSET_RESET"))
            offset = next((o for o in self.group.log[partition] if o >= position), None)
            if offset is not None:
                self.position[partition] = offset + 1
                return Message(TOPIC, partition, offset, key=b"k", value=b"{}", timestamp=(1, 5))
        return None


class RecordingLoop:
    """The event loop's side; what it does about a release is up to the test."""

    def __init__(self) -> None:
        self.accepted: list[Record] = []
        self.forgotten: list[Ownership] = []
        self.drained: list[list[Ownership]] = []
        self.stopped: list[tuple[str, bool]] = []
        self.troubles: list[str] = []
        self.written_records: list[Outgoing] = []
        self.dropped_records: list[Outgoing] = []
        self.refused_records: list[tuple[list[Outgoing], list[Outgoing]]] = []
        self.on_release: Callable[[Sequence[Ownership]], None] = lambda ownerships: None
        self.on_forget: Callable[[Sequence[Ownership]], None] = lambda ownerships: None

    def accept(self, records: list[Record]) -> None:
        self.accepted += records

    def release(self, ownerships: Sequence[Ownership]) -> None:
        self.on_release(ownerships)

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        self.forgotten += ownerships
        self.on_forget(ownerships)

    def drain_now(self, ownerships: Sequence[Ownership]) -> None:
        self.drained.append(list(ownerships))

    def written(self, records: list[Outgoing]) -> None:
        self.written_records += records

    def dropped(self, records: list[Outgoing]) -> None:
        self.dropped_records += records

    def refused(self, records: list[Outgoing], too_large: list[Outgoing]) -> None:
        self.refused_records.append((records, too_large))

    def stop(self, reason: str, restart: bool) -> None:
        self.stopped.append((reason, restart))

    def trouble(self, error: str, text: str) -> None:
        self.troubles.append(f"{error}: {text}")


class _DoneQueue:
    """The queue of settled records: waiting costs no time, and lets the test play the event loop meanwhile."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._items: deque[object] = deque()

    def put(self, item: object) -> None:
        self._items.append(item)

    def get_nowait(self) -> object:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def get(self, timeout: float) -> object:
        if not self._items:
            self._rig.waits.append(timeout)
            self._rig.while_waiting()
        if not self._items:
            self._rig.clock.now += timeout
        return self.get_nowait()


class Rig:
    """An intake that is stepped by hand."""

    def __init__(
        self,
        group: Group | None = None,
        *,
        max_records: int = 100,
        max_bytes: int = 1 << 20,
        revoke_s: float = 5.0,
        start_at_end: bool = False,
        lag_report: LagReport | None = None,
        clock: FakeClock | None = None,
        make_transactions: Callable[[FakeClock, Callable[[str, bool], None]], Transactions] | None = None,
        protocol: str = "classic",
    ) -> None:
        self.group = group if group is not None else Group()
        self.clock = clock or FakeClock()
        self.loop = RecordingLoop()
        self.waits: list[float] = []
        self.while_waiting: Callable[[], None] = _nothing
        self.made: list[FakeConsumer] = []
        self.intake = Intake(
            {"group.id": "g", "group.protocol": protocol},
            TOPIC,
            positions=Positions(start_at_end=start_at_end),
            loop=self.loop,
            metrics=METRICS,
            max_records=lambda: max_records,
            max_bytes=max_bytes,
            revoke_s=revoke_s,
            lag_report=lag_report,
            make_transactions=None if make_transactions is None else partial(make_transactions, self.clock),
            clock=self.clock,
            make_consumer=self._make,
        )
        self.intake._done = _DoneQueue(self)  # type: ignore[assignment]  # the real one waits in real time
        self.consumer = FakeConsumer(self.intake._config, self.group, self.clock)
        self.consumer.subscribe(
            [TOPIC],
            on_assign=self.intake._on_assign,
            on_revoke=self.intake._on_revoke,
            on_lost=self.intake._on_lost,
        )

    def _make(self, config: dict[str, object]) -> Consumer:
        assert config["group.id"] == "g"
        return cast(Consumer, self.consumer)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.intake._step(cast(Consumer, self.consumer))

    def assigned(self, *partitions: int) -> Rig:
        """These partitions are assigned, and the first poll is over."""
        self.consumer.assign(*partitions)
        self.step()
        return self

    def offsets(self, partition: int = 0) -> list[int]:
        """What was handed to the event loop."""
        return [r.offset for r in self.loop.accepted if r.ownership.partition == partition]

    def settle(self, *offsets: int, partition: int = 0) -> None:
        """The event loop settles these, of whichever epoch delivered them last."""
        found = {r.offset: r for r in self.loop.accepted if r.ownership.partition == partition}
        self.intake.settled([found[offset] for offset in offsets])

    def in_hand(self) -> int:
        return self.intake._ledger.records_in_hand
