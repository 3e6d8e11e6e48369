"""The whole system as a test sees it: topics of its own, workers as processes, requests in, replies counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # exported without __all__

from promptbus.messages import Headers, Reply, decode_reply
from promptbus.settings import DURABLE
from stack.kafka import Kafka
from stack.triton import Triton

T = TypeVar("T")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_QUIET = {"log_level": 0}
CLASSIC, CONSUMER = "classic", "consumer"
GROUP_PROTOCOL = os.environ.get("TEST_GROUP_PROTOCOL", CLASSIC)
"""What workers use where a test does not choose; `make test PROTOCOL=consumer` sets it."""
SHORT_SESSIONS = {
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}
"""Properties of a broker: what workers with KAFKA_GROUP_PROTOCOL=consumer cannot ask for themselves, and how often it
looks for transactions that are too old."""

# `promptbus worker` with another program as its worker process.
SUPERVISOR = """
import sys
from promptbus.settings import load
from promptbus_worker import supervisor
from promptbus_worker.settings import Settings
sys.exit(supervisor.run(load(Settings), [sys.executable, "-c", sys.argv[1]]))
"""


def eventually(what: str, condition: Callable[[], T], within_s: float = 60.0) -> T:
    """Wait for a condition; its first true value."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what} (last seen: {value!r})")
        time.sleep(0.05)


class Workers:
    """A supervisor with its worker processes."""

    def __init__(self, env: Mapping[str, str], log: Path, program: str | None = None) -> None:
        self.log = log
        arguments = ["-m", "promptbus", "worker"] if program is None else ["-c", SUPERVISOR, program]
        with log.open("ab") as output:
            self._log_begins = output.tell()  # behind what others have left in this folder
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env=env,
                stdout=output,
                stderr=output,
                process_group=0,  # as a shell does for the terminal's foreground job: Ctrl-C is for this group
            )

    @cached_property
    def port(self) -> int:
        """Of /metrics, read from the log (METRICS_PORT=0 takes any)."""

        def find() -> int:
            for line in self.lines():
                if "metrics and health on" in line["message"]:
                    return int(line["message"].split("//")[1].split(" ")[0].split(":")[1])
            return 0

        return eventually("the metrics port in the log", find)

    def lines(self) -> list[dict[str, str]]:
        """The log's JSON lines, from this start on, without those being written, or cut short by a SIGKILL."""
        with self.log.open("rb") as log:
            log.seek(self._log_begins)
            written = log.read().decode(errors="replace")
        found = []
        for line in written.splitlines():
            if line.startswith("{"):
                with suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of /metrics, /live, /ready."""
        try:
            with _DIRECT.open(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def ready(self, within_s: float = 60.0) -> Workers:
        """Wait until /ready says so."""
        eventually("workers are ready", lambda: self.get("/ready")[0] == 200, within_s)
        return self

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its full name with labels; none while it does not answer."""
        samples = {}
        status, body = self.get("/metrics")
        for line in body.splitlines() if status == 200 else []:
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def children(self) -> list[psutil.Process]:
        """The worker processes."""
        return psutil.Process(self.process.pid).children()

    def terminate(self, within_s: float = 40.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """End it whatever it does, with its children."""
        if self.process.poll() is None:
            children = self.children()
            self.process.kill()
            self.process.wait()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@dataclass
class System:
    """Topics of one test's own on a running Kafka, and what a test does with them."""

    kafka: Kafka
    triton_url: str
    folder: Path
    partitions: int = 6
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = uuid4().hex[:8]
        self.requests, self.replies, self.dead = f"req-{name}", f"rep-{name}", f"dlq-{name}"
        self.group = f"group-{name}"
        self.workers: list[Workers] = []
        self._admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap, **_QUIET})
        self.create(self.requests, self.partitions)
        self.create(self.replies, self.partitions)
        self.create(self.dead, 1)
        self._producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap,
                "linger.ms": 5,
                **DURABLE,  # a broker that dies must not make two requests of one, nor none
                "partitioner": "murmur2_random",
                **_QUIET,
            }
        )
        self._reader = Reader(self.kafka.bootstrap, self.replies, self.partitions)
        self._dead_reader = Reader(self.kafka.bootstrap, self.dead, 1)
        self._readers: list[Reader] = []

    def create(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Make a topic."""
        topics = [NewTopic(topic, partitions, config=dict(config or {}))]
        for future in self._admin.create_topics(topics).values():
            future.result(30)
        # The controller has acknowledged; the broker learns of it a moment later.
        eventually(
            "the topic is there", lambda: self._admin.list_topics(topic, 30).topics[topic].error is None
        )

    def environment(self, **more: str) -> dict[str, str]:
        """What a worker of this system is started with."""
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("KAFKA_", "TRITON_", "WORKER_"))}
        made = {
            **clean,
            "KAFKA_BOOTSTRAP": self.kafka.bootstrap,
            "KAFKA_REQUEST_TOPIC": self.requests,
            "KAFKA_REPLY_TOPIC": self.replies,
            "KAFKA_DEAD_LETTER_TOPIC": self.dead,
            "KAFKA_GROUP_ID": self.group,
            "TRITON_URL": self.triton_url,
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
            "KAFKA_SESSION_TIMEOUT_MS": "6000",
            "KAFKA_GROUP_PROTOCOL": GROUP_PROTOCOL,
            **self.env,
            **more,
        }
        # Transactions need a name of its own for each supervisor.
        made.setdefault("WORKER_INSTANCE", f"{self.group}-{len(self.workers)}")
        if made.get("KAFKA_GROUP_PROTOCOL") == CONSUMER:
            del made["KAFKA_SESSION_TIMEOUT_MS"]  # see SHORT_SESSIONS
        return made

    def start(self, program: str | None = None, **more: str) -> Workers:
        """Start a supervisor; it is ended with the test. `program`: runs as the worker process in place of ours."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        workers = Workers(self.environment(**more), log, program)
        self.workers.append(workers)
        return workers

    def publish(
        self,
        values: Sequence[bytes | Mapping[str, object]],
        *,
        headers: Headers | None = None,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> None:
        """Publish, and wait until the broker has them all."""
        failures: list[str] = []
        for value in values:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            while True:
                try:
                    self._producer.produce(
                        self.requests,
                        body,
                        key,
                        -1 if partition is None else partition,  # -1: as the key says
                        headers=list(headers or []),
                        on_delivery=lambda error, _: failures.append(str(error)) if error else None,
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        assert self._producer.flush(60) == 0
        assert not failures, failures[:3]

    def send(self, sendings: Sequence[Sending], within_s: float = 120.0) -> list[tuple[int, int]]:
        """Publish each as it is, and wait until the broker has them all; the partition and offset of each."""
        places: list[tuple[int, int] | None] = [None] * len(sendings)
        failures: list[str] = []

        def delivered(index: int, error: KafkaError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is not None or partition is None or offset is None:
                failures.append(str(error))
            else:
                places[index] = (partition, offset)

        for index, sending in enumerate(sendings):
            while True:
                try:
                    self._producer.produce(
                        self.requests,
                        sending.value,
                        sending.key,
                        sending.partition,
                        headers=list(sending.headers),
                        on_delivery=partial(delivered, index),
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        assert self._producer.flush(within_s) == 0
        assert not failures, failures[:3]
        return [place for place in places if place is not None]

    def ask(self, ids: Sequence[str], **options: object) -> None:
        """Requests whose prompt names their id."""
        self.publish([{"request_id": i, "prompt": f"tell me about {i}", **options} for i in ids])

    def collect(self, count: int, within_s: float = 120.0) -> Replies:
        """Read replies until `count` different requests have one."""
        return self._reader.until(count, within_s)

    def collected(self, for_s: float = 1.0) -> Replies:
        """All replies so far, after nothing new came for a while."""
        return self._reader.quiet(for_s)

    def reply_records(self, count: int, within_s: float = 120.0) -> list[Read]:
        """Reply records as they stand on the topic, from its beginning. Not together with `collect`."""
        return self._reader.records(count, within_s)

    def all_reply_records(self, for_s: float = 1.0) -> list[Read]:
        """As `reply_records`, whatever is there after nothing new came for a while."""
        return self._reader.all_records(for_s)

    def reply_to(self, request_id: str, within_s: float = 60.0) -> Read:
        """The first reply record to this request. Not together with `collect`."""
        return self._reader.find(
            lambda record: record.headers.get("request-id") == request_id.encode(), within_s
        )

    def reader(self, topic: str, partitions: int) -> Reader:
        """A reader of another topic; it is closed with the test."""
        reader = Reader(self.kafka.bootstrap, topic, partitions)
        self._readers.append(reader)
        return reader

    def dead_letters(self, count: int, within_s: float = 30.0) -> list[Read]:
        """Read dead letters until there are `count`."""
        return self._dead_reader.records(count, within_s)

    def every_dead_letter(self, within_s: float = 60.0) -> list[Read]:
        """All dead letters that are there now."""
        return self._dead_reader.everything(within_s)

    def all_dead_letters(self, for_s: float = 1.0) -> list[Read]:
        """All dead letters, after nothing new came for a while."""
        return self._dead_reader.all_records(for_s)

    def committed(self) -> int:
        """The sum of the group's committed offsets over all partitions."""
        config = {"bootstrap.servers": self.kafka.bootstrap, "group.id": self.group, **_QUIET}
        consumer = Consumer(config)
        try:
            partitions = [TopicPartition(self.requests, number) for number in range(self.partitions)]
            return sum(max(0, p.offset) for p in consumer.committed(partitions, 10))
        finally:
            consumer.close()

    def close(self) -> None:
        """End every worker."""
        for workers in self.workers:
            workers.kill()
        self._reader.close()
        self._dead_reader.close()
        for reader in self._readers:
            reader.close()


@dataclass(frozen=True)
class Sending:
    """A record to publish. `partition` -1: as the key says."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int = -1


@dataclass(frozen=True)
class Read:
    """A record that was read. `headers`: of names given twice, the last one; `pairs`: all, in their order."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    pairs: tuple[tuple[str, bytes | None], ...] = ()
    partition: int = -1
    timestamp_ms: int = -1
    offset: int = -1


@dataclass
class Replies:
    """What was read from the reply topic."""

    by_id: dict[str, list[Reply]]

    @property
    def first(self) -> dict[str, Reply]:
        """The first reply of each request."""
        return {i: replies[0] for i, replies in self.by_id.items()}

    @property
    def codes(self) -> Counter[str]:
        """How many requests ended how."""
        return Counter("ok" if r.error is None else r.error.code for r in self.first.values())

    @property
    def repeated(self) -> list[str]:
        """Requests with more than one reply. Each must repeat the same reply id, or it is another reply."""
        for i, replies in self.by_id.items():
            assert len({reply.reply_id for reply in replies}) == 1, f"{i} has two different replies"
        return [i for i, replies in self.by_id.items() if len(replies) > 1]


class Reader:
    """Reads a topic from its beginning, without a group."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        config = {
            "bootstrap.servers": bootstrap,
            "group.id": f"reader-{uuid4().hex}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            **_QUIET,
        }
        self._consumer = Consumer(config)
        self._partitions = [TopicPartition(topic, number, 0) for number in range(partitions)]
        self._consumer.assign(self._partitions)
        self._read_to: dict[int, int] = {}
        self._seen = set[tuple[int, int]]()
        self.read: list[Read] = []
        self._replies: dict[str, list[Reply]] = defaultdict(list)

    def _poll(self, timeout_s: float) -> int:
        messages = []
        for message in self._consumer.consume(1000, timeout_s):
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.name() == "_PARTITION_EOF":
                self._read_to[message.partition() or 0] = message.offset() or 0
        for message in messages:
            # After a broker died the client may begin anew; a record is not there twice for being read twice.
            place = message.partition() or 0, -1 if (offset := message.offset()) is None else offset
            if place in self._seen:
                continue
            self._seen.add(place)
            headers = message.headers() or []
            pairs = headers.items() if isinstance(headers, dict) else headers
            self.read.append(
                Read(
                    message.key(),
                    message.value(),
                    dict(pairs),  # type: ignore[arg-type]  # always bytes
                    tuple(pairs),  # type: ignore[arg-type]  # always bytes
                    place[0],
                    message.timestamp()[1],
                    place[1],
                )
            )
        return len(messages)

    def _parse(self) -> Replies:
        for record in self.read:
            reply = decode_reply(record.value)
            self._replies[reply.request_id].append(reply)
        self.read = []
        return Replies(dict(self._replies))

    def until(self, count: int, within_s: float) -> Replies:
        """Until `count` different requests have a reply."""
        deadline = time.monotonic() + within_s
        while len(replies := self._parse().by_id) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"only {len(replies)} of {count} requests were answered within {within_s:g} s"
            self._poll(min(0.2, left))
        return self._parse()

    def quiet(self, for_s: float) -> Replies:
        """Until nothing new came for a while."""
        while self._poll(for_s):
            pass
        return self._parse()

    def find(self, wanted: Callable[[Read], bool], within_s: float) -> Read:
        """The first record that is `wanted`."""
        deadline = time.monotonic() + within_s
        while True:
            for record in self.read:
                if wanted(record):
                    return record
            left = deadline - time.monotonic()
            assert left > 0, f"not among {len(self.read)} records within {within_s:g} s"
            self._poll(min(0.2, left))

    def all_records(self, for_s: float) -> list[Read]:
        """Until nothing new came for a while."""
        while self._poll(for_s):
            pass
        return self.read

    def records(self, count: int, within_s: float) -> list[Read]:
        """Until there are `count` records."""
        deadline = time.monotonic() + within_s
        while len(self.read) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"only {len(self.read)} of {count} records within {within_s:g} s"
            self._poll(min(0.2, left))
        return self.read

    def everything(self, within_s: float) -> list[Read]:
        """All records up to where the topic ends now. Offsets do not tell how many: transactions leave marks."""
        ends = [
            self._consumer.get_watermark_offsets(partition, within_s)[1] for partition in self._partitions
        ]
        deadline = time.monotonic() + within_s
        while unread := [n for n, end in enumerate(ends) if end > self._read_to.get(n, 0)]:
            assert time.monotonic() < deadline, f"partitions {unread} were not read within {within_s:g} s"
            self._poll(0.2)
        return self.read

    def close(self) -> None:
        """Let go."""
        self._consumer.close()


@contextmanager
def system(kafka: Kafka, triton: Triton | str, folder: Path, **options: object) -> Iterator[System]:
    """A system that ends with the block."""
    url = triton if isinstance(triton, str) else triton.url
    made = System(kafka, url, folder, **options)  # type: ignore[arg-type]  # partitions and env, as they come
    try:
        yield made
    finally:
        made.close()
