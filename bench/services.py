"""The Kafka and the Triton that every contender works with, and the topics between them."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from bench import backlog, prompts
from bench.contenders.contender import Contender, Place
from bench.workloads import HELD, HELD_MS, INSTANT, REAL, SLOW, SLOW_INSTANCES, SLOW_MS, Workload
from promptbus.kafka_errors import error_of, passes
from stack.kafka import Kafka
from stack.topics import NewTopicSettings, create_topics
from stack.triton import MODELS, Triton

PARTITIONS = 6
MODEL = Path(__file__).with_name("model")
BENCH_MODELS = {
    INSTANT: {"instances": 2, "latency_ms": 0},
    SLOW: {"instances": SLOW_INSTANCES, "latency_ms": SLOW_MS},
    HELD: {"instances": 1, "latency_ms": HELD_MS},
}
MODEL_HEADER: tuple[str, str | bytes | None] = ("mlserver-model", "triton")


class Services:
    """A context manager: started on entry, and nothing is left of them on exit."""

    def __init__(self, *, engine: str | None, say: Callable[[str], None], long_run: bool = False) -> None:
        """`engine`: what gpt4_nano answers with; None: that model is not loaded. `long_run`: of many minutes."""
        self._engine = engine
        self._long_run = long_run
        self._say = say
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self._filled: dict[tuple[str, prompts.Make], str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="promptbus-bench-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._say("starting Kafka and Triton")
            # As brokers that are there for days: what they do often is compiled thoroughly, which takes them minutes.
            self.kafka = stack.enter_context(Kafka(java_options=()) if self._long_run else Kafka())
            self.triton = stack.enter_context(Triton(repository=self._repository(), engine=self._engine))
            self._client: dict[str, str | int | float | bool] = {
                "bootstrap.servers": self.kafka.bootstrap,
                "log_level": 0,
            }
            self._admin = AdminClient(dict(self._client))
            self._counter = Consumer({**self._client, "group.id": "counting"})
            stack.callback(self._counter.close)
            self.dead = self._topic("dead", 1)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def triton_port(self) -> int:
        """Of its HTTP endpoint."""
        return int(self.triton.url.rpartition(":")[2])

    def backlog(self, workload: Workload, record: prompts.Make = prompts.request) -> str:
        """The topic with the workload's requests; filled the first time that anybody wants it."""
        known = self._filled.get((workload.name, record))
        if known:
            return known
        topic = self._topic("requests", workload.partitions)
        self._say(f"{workload.name}: writing {workload.records:,} requests")
        self.fill(topic, workload, record, range(workload.records))
        self._filled[workload.name, record] = topic
        return topic

    def fill(self, topic: str, workload: Workload, record: prompts.Make, numbers: range) -> None:
        """Write the requests of these numbers to a topic."""
        headers = [MODEL_HEADER] if record is prompts.tensor_request else []
        size, tokens = workload.prompt_bytes, workload.max_tokens

        def make(number: int) -> prompts.Record:
            made = record(number, size, tokens)
            return prompts.for_model(HELD, made) if workload.held_back and number == 0 else made

        backlog.fill(self.kafka.bootstrap, topic, numbers, make, headers, self._say)

    def place(self, workload: Workload, contender: Contender, concurrency: int = 0) -> Place:
        """A place of its own for one run: a fresh reply topic, group and folder.

        The requests are the workload's, or an empty topic for who reads only what comes later, and for latency.
        """
        number = next(self._numbers)
        folder = self.folder / f"run-{number}"
        folder.mkdir()
        requests = replies = ""
        if contender.through_kafka:
            replies = self._topic("replies", PARTITIONS)
            if contender.reads_new_only_after or workload.rates:
                requests = self._topic("requests", workload.partitions)
            else:
                requests = self.backlog(workload, contender.record)
        return Place(
            bootstrap=self.kafka.bootstrap,
            requests=requests,
            replies=replies,
            dead=self.dead,
            group=f"group-{number}",
            triton_url=self.triton.url,
            model=workload.models,
            folder=folder,
            prompt_bytes=workload.prompt_bytes,
            max_tokens=workload.max_tokens,
            concurrency=concurrency,
        )

    def clear(self, place: Place) -> None:
        """Remove what only this run wrote."""
        topics = {place.requests, place.replies} - set(self._filled.values()) - {""}
        if topics:
            for future in self._admin.delete_topics(list(topics)).values():
                future.result(30)
        shutil.rmtree(place.folder, ignore_errors=True)

    def written(self, topic: str) -> int:
        """How many records the topic has got so far. Raises KafkaException."""
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        deadline = time.monotonic() + 30
        while True:
            try:
                return sum(self._counter.get_watermark_offsets(partition, 10)[1] for partition in partitions)
            except KafkaException as error:
                # A topic that was just made may have no leader yet.
                if not passes(error_of(error)) or time.monotonic() > deadline:
                    raise
                # What the client knows of a topic it keeps, even that half of it is missing: it is told to ask again.
                with suppress(KafkaException):
                    self._counter.list_topics(topic, 5)
                time.sleep(0.05)

    def sharing(self, group: str) -> int:
        """How many members of a group have partitions. Raises KafkaException."""
        found = self._admin.describe_consumer_groups([group])[group].result(10)
        return sum(bool(member.assignment.topic_partitions) for member in found.members)

    def read(self, topic: str, count: int, timeout_s: float = 10.0) -> list[Message]:
        """Up to `count` records from the beginning of the topic's partitions."""
        consumer = Consumer({**self._client, "group.id": "bench", "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
            found: list[Message] = []
            while len(found) < count:
                some = consumer.consume(count - len(found), timeout_s)
                if not some:
                    break
                found += [message for message in some if message.error() is None]
            return found
        finally:
            consumer.close()

    def _topic(self, kind: str, partitions: int) -> str:
        name = f"{kind}-{next(self._numbers)}"
        create_topics(self._client, {name: NewTopicSettings(partitions)})
        return name

    def _repository(self) -> Path:
        """The bench's models, and gpt4_nano only if it is measured: its real engine takes half a gigabyte."""
        folder = self.folder / "models"
        template = Template((MODEL / "config.pbtxt.template").read_text())
        for name, values in BENCH_MODELS.items():
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "config.pbtxt").write_text(template.substitute(values, name=name))
            shutil.copy(MODEL / "numbered.py", folder / name / "1" / "model.py")
        if self._engine is not None:
            (folder / REAL).symlink_to(MODELS / REAL)
        return folder
