"""The worker's whole path in this process, between the in-memory Kafka and a model, and the account of what it did.

`Path`, `Intake`, `Replies` and the Kafka clients are the real ones; only the process around them is not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

from confluent_kafka import Consumer, Producer, TopicPartition

from promptbus.messages import Headers, Reply, decode_reply
from promptbus_worker.metrics import Metrics
from promptbus_worker.model import InferenceClient
from promptbus_worker.path import Path
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Surroundings
from promptbus_worker.worker_process import Exit
from tests.faults.mock_kafka import MockKafka

PARTITIONS = 2
TICK_S = 0.1
QUIET = logging.getLogger("promptbus.tests.kafka")
SESSION_TIMEOUT_MS = 2_200
"""The in-memory Kafka lets a group that rebalances wait for a second less than this; below what settings take."""
SOCKET_TIMEOUT_MS = 1_800
LATE_MS = 2_500
"""An answer after this long is too late."""


async def eventually(what: str, condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


class Line:
    """Topics on one Kafka, what was asked there, and the workers that answer, one at a time."""

    def __init__(self, kafka: MockKafka, triton: InferenceClient, **settings: object) -> None:
        self.kafka = kafka
        self.triton = triton
        for topic in ("requests", "results", "dead"):
            kafka.create(topic, PARTITIONS)
        self._settings = self._settings_with(settings)
        self.asked: dict[str, str] = {}
        self.stopped: list[tuple[Exit, str]] = []
        self.metrics = Metrics(self._settings.models)
        self._path: Path | None = None
        self._ticker: asyncio.Task[None] | None = None

    def _settings_with(self, settings: dict[str, object]) -> Settings:
        known: dict[str, object] = {
            "kafka_bootstrap": self.kafka.bootstrap,
            "kafka_group_id": "line",
            "kafka_request_topic": "requests",
            "kafka_reply_topic": "results",
            "kafka_dead_letter_topic": "dead",
            "worker_revoke_s": 1.0,
            "worker_instance": "line",
            "kafka_client": {
                "socket_timeout_ms": f"{SOCKET_TIMEOUT_MS}",
                # Metadata in mid-stream, not only at the start.
                "topic_metadata_refresh_interval_ms": "300",
                "reconnect_backoff_max_ms": "200",
            },
        }
        made = Settings(_env_file=None, **(known | settings))  # type: ignore[arg-type]  # by name, as they come
        return made.model_copy(update={"kafka_session_timeout_ms": SESSION_TIMEOUT_MS})

    async def ask(self, count: int, prompt: str = "", headers: Headers | None = None) -> list[str]:
        """Publish so many requests, with a producer that is gone afterwards; their ids."""
        ids = [f"r{len(self.asked) + number}" for number in range(count)]
        self.asked |= {i: f"{prompt} {uuid4().hex} of {i}" for i in ids}
        await asyncio.to_thread(self._publish, ids, headers)
        return ids

    def _publish(self, ids: list[str], headers: Headers | None) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap}, logger=QUIET)
        for number, i in enumerate(ids):
            value = json.dumps({"request_id": i, "prompt": self.asked[i]}).encode()
            producer.produce("requests", value, None, number % PARTITIONS, headers=list(headers or ()))
        assert producer.flush(20) == 0

    async def start(self) -> None:
        """Begin to consume, as `worker.py` does it."""
        limits = dict.fromkeys(("requests", "results", "dead"), 1 << 20)
        specs = {"gpt4_nano": await self.triton.read_spec("gpt4_nano", None)}
        self._path = Path(
            self._settings,
            "line-0",
            self.triton,
            Surroundings(limits, specs),
            self.metrics,
            lambda code, why: self.stopped.append((code, why)),
        )
        self._ticker = asyncio.create_task(self._tick(self._path))
        await asyncio.to_thread(self._path.connect)
        self._path.start()

    async def _tick(self, path: Path) -> None:
        while True:
            path.dispatcher.freeze.tick(time.monotonic())
            path.dispatcher.update_gauges()
            await asyncio.sleep(TICK_S)

    async def stop(self, within_s: float = 5.0) -> bool:
        """Drain and leave; whether that went well."""
        assert self._path is not None
        assert self._ticker is not None
        drained = await self._path.drain(within_s)
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)
        self._path = None
        return drained

    @property
    def running(self) -> bool:
        """Whether a worker consumes."""
        return self._path is not None

    @property
    def settled(self) -> int:
        """Requests whose replies are acknowledged, by the worker's own metric."""
        return sum(int(series._value.get()) for series in self.metrics.requests_total.values())

    async def all_committed(self) -> None:
        """Wait until the group's commits have reached the end."""
        deadline = time.monotonic() + 20
        while left := (await asyncio.to_thread(self._look)).uncommitted:
            assert time.monotonic() < deadline, f"{left} are not committed"
            await asyncio.sleep(0.1)

    def _look(self) -> Topics:
        return Topics(self.kafka.bootstrap)

    async def account(self) -> Account:
        """What the topics hold, and what the group has committed."""
        return await asyncio.to_thread(Account, self)


class Topics:
    """What the topics hold now, and how much the group has not committed."""

    def __init__(self, bootstrap: str) -> None:
        config = {
            "bootstrap.servers": bootstrap,
            "group.id": "line",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        reader = Consumer(config, logger=QUIET)
        try:
            self.dead_letters = len(_read(reader, "dead"))
            self.replies = [decode_reply(value) for value in _read(reader, "results")]
            self.uncommitted = _uncommitted(reader)
        finally:
            reader.close()


class Account:
    """Every request held against its replies. Fails if one is lost or was answered in two ways."""

    def __init__(self, line: Line) -> None:
        topics = Topics(line.kafka.bootstrap)
        self.dead_letters, self.uncommitted, replies = topics.dead_letters, topics.uncommitted, topics.replies
        by_id = defaultdict[str, list[Reply]](list)
        for reply in replies:
            by_id[reply.request_id].append(reply)
        assert by_id.keys() == line.asked.keys(), f"lost: {sorted(line.asked.keys() - by_id.keys())[:5]}"
        self.most_replies = max(map(len, by_id.values()))
        self.repeated = [i for i, several in by_id.items() if len(several) > 1]
        self.first = {i: several[0] for i, several in by_id.items()}
        for i, several in by_id.items():
            assert len({reply.reply_id for reply in several}) == 1, f"{i} has two different replies"
            # Once answered well, a request stays answered well; the reader keeps the first.
            assert len({reply.status for reply in several}) == 1, f"{i} was answered in two ways"

    @property
    def codes(self) -> Counter[str]:
        """How many requests ended how."""
        return Counter("ok" if r.error is None else r.error.code for r in self.first.values())

    def right(self, line: Line, answer: Callable[[str], str]) -> None:
        """Every answer is the one to its own prompt."""
        wrong = [
            reply
            for i, reply in self.first.items()
            if reply.ok and not (reply.response or "").startswith(answer(line.asked[i]))
        ]
        assert wrong == []


def _read(reader: Consumer, topic: str) -> list[bytes | None]:
    partitions = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    ends = [reader.get_watermark_offsets(partition, 10)[1] for partition in partitions]
    reader.assign(partitions)
    values: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while len(values) < sum(ends):
        assert time.monotonic() < deadline, f"only {len(values)} of {sum(ends)} records of {topic}"
        values += [message.value() for message in reader.consume(1000, 0.1) if message.error() is None]
    reader.unassign()
    return values


def _uncommitted(reader: Consumer) -> int:
    partitions = [TopicPartition("requests", number) for number in range(PARTITIONS)]
    left = 0
    for partition in reader.committed(partitions, 10):
        assert partition.error is None
        left += reader.get_watermark_offsets(partition, 10)[1] - max(0, partition.offset)
    return left


@asynccontextmanager
async def line(triton: InferenceClient, **settings: object) -> AsyncIterator[Line]:
    """A line that ends with the block."""
    with MockKafka() as kafka:
        made = Line(kafka, triton, **settings)
        try:
            yield made
        finally:
            if made.running:
                await made.stop()
