"""`promptbus doctor` at a real Kafka and a real Triton, and with each piece missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported, not by its __all__
    AdminClient,
    NewTopic,
)

from promptbus.rights import Right
from promptbus_worker import doctor
from promptbus_worker.settings import Settings
from stack.kafka import Kafka
from stack.security import OPEN_UNTIL_RULED
from stack.triton import Triton
from tests.integration.rules import Rules


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    with Kafka(properties=OPEN_UNTIL_RULED) as running:
        yield running


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    with Triton(engine="canned") as running:
        yield running


@pytest.fixture
def admin(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap})


class Place:
    """Topics of one test's own, and the settings that name them."""

    def __init__(self, name: str, kafka: Kafka, triton: Triton, admin: AdminClient) -> None:
        self.request, self.reply, self.dead = f"{name}-in", f"{name}-out", f"{name}-dlq"
        self.group = f"{name}-group"
        self.kafka, self.triton, self.admin = kafka, triton, admin

    def settings(self, **more: object) -> Settings:
        values: dict[str, object] = {
            "kafka_bootstrap": self.kafka.bootstrap,
            "kafka_request_topic": self.request,
            "kafka_reply_topic": self.reply,
            "kafka_dead_letter_topic": self.dead,
            "kafka_group_id": self.group,
            "triton_url": self.triton.url,
            **more,
        }
        return Settings(_env_file=None, **values)  # type: ignore[arg-type]  # pydantic takes and checks them

    def create(self, *names: str, partitions: int = 2) -> None:
        config = {"max.message.bytes": str(2 << 20)}
        topics = [
            NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
            for name in names or (self.request, self.reply, self.dead)
        ]
        for future in self.admin.create_topics(topics).values():
            future.result(20)
        # The controller has acknowledged; the broker learns of it a moment later.
        wanted = TopicCollection([topic.topic for topic in topics])
        _until(
            lambda: all(
                future.result(20).partitions for future in self.admin.describe_topics(wanted).values()
            )
        )

    def commit(self, offset: int) -> None:
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": self.group})
        offsets = [TopicPartition(self.request, 0, offset)]
        # A new cluster's first group: its coordinator comes into being with the first question for it.
        _until(lambda: consumer.commit(offsets=offsets, asynchronous=False))
        consumer.close()

    def publish(self, count: int, ahead_s: float = 0.0) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap})
        for _ in range(count):
            producer.produce(self.request, b"{}", partition=0, timestamp=int((time.time() + ahead_s) * 1000))
        assert producer.flush(20) == 0


def _until(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if attempt():
                return
        except KafkaException:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place(request: pytest.FixtureRequest, kafka: Kafka, triton: Triton, admin: AdminClient) -> Place:
    return Place(f"t{abs(hash(request.node.name)) % 10**9}", kafka, triton, admin)


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    return Examine(capsys)


class Examine:
    """Runs the doctor in time, and gives its exit code and its lines."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, settings: Settings) -> tuple[int, list[str]]:
        begun = time.monotonic()
        code = doctor.run(settings)
        assert time.monotonic() - begun < 17
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return code, captured.out.splitlines()

    def until_fails(self, settings: Settings, count: int) -> list[str]:
        """The lines of the first examination with `count` FAILs: rules take a moment to reach the broker."""
        deadline = time.monotonic() + 20
        while True:
            code, lines = self(settings)
            if code == 1 and len(failing(lines)) == count:
                return lines
            assert time.monotonic() < deadline, lines


def failing(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


def test_all_in_place(place: Place, examine: Examine) -> None:
    place.create()
    place.publish(3)
    place.commit(1)
    code, lines = examine(place.settings())
    assert code == 0, lines
    assert not failing(lines)
    for part in (
        "ok    Kafka answers: 1 broker",
        f"ok    topic {place.request}: 2 partitions, 1 replica",
        f"ok    group {place.group}: committed offsets are in the log, 2 records wait",
        "is live",
        "answered a real prompt in",
        "start with `promptbus worker`",
    ):
        assert any(part in line for line in lines), (part, lines)


def test_a_cluster_that_never_had_a_group_is_no_trouble(triton: Triton, examine: Examine) -> None:
    with Kafka() as fresh:
        admin = AdminClient({"bootstrap.servers": fresh.bootstrap})
        place = Place("first", fresh, triton, admin)
        place.create()
        code, lines = examine(place.settings())
    assert code == 0, lines
    assert any("has committed nothing yet" in line for line in lines), lines


def test_missing_topics_come_with_their_command(place: Place, examine: Examine) -> None:
    place.create(place.request)
    code, lines = examine(place.settings())
    assert code == 1
    assert len(failing(lines)) == 2
    assert f"--create --topic {place.reply} --partitions 3 --replication-factor 1" in failing(lines)[0]
    code, lines = examine(place.settings(kafka_create_topics=True))
    assert code == 0, lines


def test_too_small_topics_and_too_few_partitions_are_worth_a_word(place: Place, examine: Examine) -> None:
    place.create()
    code, lines = examine(place.settings(request_max_bytes=2 << 20, worker_processes=5, batch_max_size=64))
    assert code == 0, lines
    warned = [line for line in lines if line.startswith("warn")]
    assert any(place.dead in line and "--add-config max.message.bytes=" in line for line in warned)
    assert any("WORKER_PROCESSES is 5" in line for line in warned)
    assert any("BATCH_MAX_SIZE is 64" in line for line in warned)


@pytest.mark.parametrize("offset", [5, 100])
def test_a_committed_offset_out_of_the_log_fails(place: Place, examine: Examine, offset: int) -> None:
    place.create()
    place.publish(10)
    place.admin.delete_records([TopicPartition(place.request, 0, 8)])[
        TopicPartition(place.request, 0)
    ].result(20)
    place.commit(offset)
    code, lines = examine(place.settings())
    assert code == 1
    (line,) = failing(lines)
    assert f"committed offset {offset} of {place.request}[0] is outside of the log (8 to 10)" in line
    assert "--reset-offsets" in line


def test_requests_from_the_future_are_noticed(place: Place, examine: Examine) -> None:
    place.create()
    place.publish(1, ahead_s=600)
    code, lines = examine(place.settings())
    assert code == 0
    assert any("in the future" in line for line in lines)


def test_missing_rights_are_named(place: Place, examine: Examine) -> None:
    place.create()
    Rules(place.admin).put("ANONYMOUS", Right("DESCRIBE", "topic", place.request))
    Rules(place.admin).put("ANONYMOUS", Right("READ", "topic", place.reply))
    Rules(place.admin).put("ANONYMOUS", Right("WRITE", "topic", place.dead))
    Rules(place.admin).put("ANONYMOUS", Right("DESCRIBE", "group", place.group))
    told = "\n".join(failing(examine.until_fails(place.settings(), 3)))
    assert f"no right to READ on topic {place.request}" in told
    assert f"no right to WRITE on topic {place.reply}" in told
    assert f"no right to READ on group {place.group}" in told
    grant = f"--add --allow-principal User:ANONYMOUS --operation Read --group {place.group}"
    assert f"kafka-acls --bootstrap-server {place.settings().kafka_bootstrap} {grant}" in told


def test_a_topic_or_group_that_may_not_be_seen_is_named(place: Place, examine: Examine) -> None:
    place.create()
    Rules(place.admin).put("somebody", Right("WRITE", "topic", place.dead))
    Rules(place.admin).put("somebody", Right("READ", "group", place.group))
    told = "\n".join(failing(examine.until_fails(place.settings(), 2)))
    assert f"topic {place.dead}: this user may not see it" in told
    assert f"no right to READ on group {place.group}" in told


def test_a_wrong_security_protocol_is_named_with_the_right_one(place: Place, examine: Examine) -> None:
    code, lines = examine(place.settings(kafka_security_protocol="SSL"))
    assert code == 1
    assert "does not speak TLS, but KAFKA_SECURITY_PROTOCOL is SSL: set it to PLAINTEXT" in failing(lines)[0]


def test_one_of_two_bootstrap_brokers_away_is_worth_a_word(place: Place, examine: Examine) -> None:
    place.create()
    code, lines = examine(place.settings(kafka_bootstrap=f"127.0.0.1:9,{place.kafka.bootstrap}"))
    assert code == 0, lines
    assert any(line.startswith("warn  Kafka 127.0.0.1:9: connection refused") for line in lines)


def test_an_unknown_model_names_those_that_are_there(place: Place, examine: Examine) -> None:
    place.create()
    code, lines = examine(place.settings(triton_model="gpt4_nano,gpt5"))
    assert code == 1
    (line,) = failing(lines)
    assert "model gpt5 is not served: Triton has gpt4_nano" in line
    assert any("model gpt4_nano answered a real prompt" in line for line in lines)


def test_something_else_on_tritons_port_is_recognised(place: Place, examine: Examine) -> None:
    place.create()
    code, lines = examine(place.settings(triton_url=place.triton.grpc_url))
    assert code == 1
    assert "is TRITON_URL the HTTP port" in failing(lines)[0]


def test_kafka_alone_is_examined_to_the_end_without_triton(place: Place, examine: Examine) -> None:
    place.create()
    code, lines = examine(place.settings(triton_url="127.0.0.1:9"))
    assert code == 1
    assert failing(lines)[0].startswith("FAIL  Triton 127.0.0.1:9: connection refused")
    assert any(line.startswith("ok    group") for line in lines)


def test_triton_alone_is_examined_to_the_end_without_kafka(place: Place, examine: Examine) -> None:
    code, lines = examine(place.settings(kafka_bootstrap="127.0.0.1:9"))
    assert code == 1
    assert any("answered a real prompt" in line for line in lines)
