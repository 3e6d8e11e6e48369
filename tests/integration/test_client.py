"""The clients at a real Kafka: the whole contract, and what only a real broker does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, but the package has no __all__
    AdminClient,
    NewPartitions,
)

from promptbus import (
    AsyncPromptClient,
    ClientClosed,
    DeliveryFailed,
    KafkaUnavailable,
    MessageTooLarge,
    NotAllowed,
    PromptClient,
    ReplyTimeout,
    TopicMissing,
)
from promptbus.messages import Timings, Usage, encode_answer, reply_headers
from promptbus.reply_reader import ReplyReader
from promptbus.rights import Right
from promptbus.settings import KafkaSettings
from stack.kafka import Kafka
from stack.ports import free_ports
from stack.security import OPEN_UNTIL_RULED
from tests.integration.rules import Rules
from tests.unit.client.contract import ClientContract
from tests.unit.client.place import QUIET, environment_for, real_topics, settings_for
from tests.unit.client.responder import Responder

WAIT_S = 20.0
SOMEBODY_ELSE = "somebody-else"


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    with Kafka(properties=OPEN_UNTIL_RULED) as running:
        yield running


@pytest.fixture
def admin(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap}, logger=QUIET)


@pytest.fixture
def place(kafka: Kafka) -> KafkaSettings:
    return real_topics(kafka.bootstrap)


class TestClientsOnRealKafka(ClientContract):
    pass


def test_what_is_written_right_after_opening_is_read(place: KafkaSettings) -> None:
    """Assigned at a symbolic end instead of at explicit offsets, readers missed more than half of these."""
    topic = place.kafka_reply_topic
    producer = Producer({"bootstrap.servers": place.kafka_bootstrap, "linger.ms": 0}, logger=QUIET)
    producer.produce(topic, b"earlier")
    assert producer.flush(WAIT_S) == 0
    for number in range(20):
        reader = ReplyReader(place, topic)
        reader.open(WAIT_S)
        expected = {b"%d/%d" % (number, partition) for partition in range(4)}
        for partition in range(4):
            producer.produce(topic, b"%d/%d" % (number, partition), partition=partition)
        assert producer.flush(WAIT_S) == 0
        until = time.monotonic() + WAIT_S
        read: set[bytes | None] = set()
        while len(read) < 4:
            assert time.monotonic() < until, f"missed {expected - read}"
            read |= {message.value() for message in reader.read(0.05)}
        assert read == expected, "and nothing from before"
        reader.close()


def test_the_first_ask_right_after_construction_is_answered_200_times(place: KafkaSettings) -> None:
    """A fresh client each time."""
    took: list[float] = []
    with Responder(place):
        for number in range(200):
            started = time.monotonic()
            with PromptClient(settings=place, timeout_s=WAIT_S, explain_timeouts=False) as client:
                assert client.ask(f"p{number}").response == f"re: p{number}"
                took.append(time.monotonic() - started)
    assert sorted(took)[100] < 0.5, "half of them take less than 0.5 s with connecting"


async def test_the_first_async_ask_right_after_construction_is_answered_50_times(
    place: KafkaSettings,
) -> None:
    with Responder(place):
        for number in range(50):
            async with AsyncPromptClient(settings=place, timeout_s=WAIT_S, explain_timeouts=False) as client:
                assert (await client.ask(f"p{number}")).response == f"re: p{number}"


def test_close_hands_over_what_still_lingers(place: KafkaSettings) -> None:
    with Responder(place) as responder:
        with PromptClient(settings=place, linger_ms=5_000) as client:
            futures = [client.submit("silent") for _ in range(500)]
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert all(future.acknowledged for future in futures)
        assert all(isinstance(future.exception(0), ClientClosed) for future in futures)
        until = time.monotonic() + WAIT_S
        while len(responder.seen) < 500:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_partitions_added_later_are_read_from_their_beginning(
    place: KafkaSettings, admin: AdminClient
) -> None:
    with PromptClient(settings=place, refresh_s=0.2, explain_timeouts=False) as client:
        future = client.submit("silent", request_id="r-1", timeout_s=WAIT_S)
        topic = place.kafka_reply_topic
        admin.create_partitions([NewPartitions(topic, 6)])[topic].result(timeout=WAIT_S)
        producer = Producer({"bootstrap.servers": place.kafka_bootstrap}, logger=QUIET)
        producer.produce(
            topic,
            _answer("r-1"),
            partition=5,
            headers=[*reply_headers(request_id="r-1", reply_id="x", status="ok")],
        )
        assert producer.flush(WAIT_S) == 0
        assert future.result(WAIT_S).response == "late"


# ---- what is missing, in a sentence


def test_no_broker_is_said_at_construction() -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(
        KafkaUnavailable, match=rf"no Kafka broker answered at 127.0.0.1:{port} within 1 s.*refused"
    ):
        PromptClient(settings=settings_for(f"127.0.0.1:{port}"), connect_timeout_s=1)
    assert time.monotonic() - started < 5


async def test_no_broker_is_said_on_entering_and_again_on_asking() -> None:
    (port,) = free_ports(1)
    client = AsyncPromptClient(settings=settings_for(f"127.0.0.1:{port}"), connect_timeout_s=0.3)
    for _ in range(2):
        with pytest.raises(KafkaUnavailable):
            await client.ask("x")


@pytest.mark.parametrize("missing", ["KAFKA_REQUEST_TOPIC", "KAFKA_REPLY_TOPIC"])
def test_a_missing_topic_is_named(place: KafkaSettings, missing: str) -> None:
    lacking = place.model_copy(update={missing.lower(): "no-such-topic"})
    with pytest.raises(TopicMissing, match=f"'no-such-topic' does not exist.*{missing}"):
        PromptClient(settings=lacking)


def test_a_topic_deleted_meanwhile_fails_the_request(place: KafkaSettings, admin: AdminClient) -> None:
    with PromptClient(settings=place, delivery_timeout_s=5, explain_timeouts=False) as client:
        admin.delete_topics([place.kafka_request_topic])[place.kafka_request_topic].result(timeout=WAIT_S)
        with pytest.raises((TopicMissing, DeliveryFailed)) as raised:
            client.ask("x", timeout_s=WAIT_S)
        assert place.kafka_request_topic in str(raised.value)


def test_a_request_larger_than_its_topic_takes_names_the_limit(kafka: Kafka) -> None:
    place = real_topics(kafka.bootstrap, {"max.message.bytes": "100000"})
    with Responder(place), PromptClient(settings=place, timeout_s=WAIT_S) as client:
        neighbours = [client.submit("x" * 20_000) for _ in range(20)]
        with pytest.raises(MessageTooLarge, match=r"100,\d\d\d bytes.*takes 100,000 bytes") as raised:
            client.ask("x" * 100_000)
        assert raised.value.limit == 100_000
        assert client.ask("y" * 99_000).ok, "just below"
        assert all(future.result(WAIT_S).ok for future in neighbours)


async def test_a_large_request_is_refused_without_blocking_the_loop(place: KafkaSettings) -> None:
    async with AsyncPromptClient(settings=place) as client:
        with pytest.raises(MessageTooLarge, match="takes 1,048,588 bytes"):
            await client.ask("x" * 1_100_000)


def test_a_broker_that_dies_fails_requests_at_the_delivery_timeout() -> None:
    with Kafka() as kafka:
        place = real_topics(kafka.bootstrap)
        with Responder(place), PromptClient(settings=place, delivery_timeout_s=2, timeout_s=60) as client:
            assert client.ask("x").ok
            kafka.kill()
            started = time.monotonic()
            with pytest.raises(DeliveryFailed, match="did not acknowledge"):
                client.ask("y")
            assert time.monotonic() - started < 10
            with pytest.raises(ReplyTimeout, match=r"has not acknowledged.*Kafka could not be asked"):
                client.ask("z", timeout_s=0.5)
            kafka.start()
            assert client.ask("again").ok, "the same client goes on when the broker is back"


def test_a_timeout_says_that_nobody_consumes(place: KafkaSettings) -> None:
    place = place.model_copy(update={"kafka_group_id": "nobodys-group"})
    with (
        PromptClient(settings=place, timeout_s=0.3) as client,
        pytest.raises(
            ReplyTimeout, match=r"nobody consumes 'requests-\w+' in the consumer group 'nobodys-group'"
        ) as raised,
    ):
        client.ask("x")
    assert raised.value.consumers == 0


async def test_a_timeout_says_that_workers_are_there(place: KafkaSettings) -> None:
    place = place.model_copy(update={"kafka_group_id": "somebodys-group"})
    with Responder(place, group_id="somebodys-group"):
        async with AsyncPromptClient(settings=place, timeout_s=0.3) as client:
            with pytest.raises(ReplyTimeout, match="1 consumer of the group 'somebodys-group'") as raised:
                await client.ask("silent")
    assert raised.value.consumers == 1


# ---- access rules


def test_no_right_to_any_group_is_needed(place: KafkaSettings, admin: AdminClient) -> None:
    rule = {SOMEBODY_ELSE: Right("ALL", "group", "*")}
    with (
        Responder(place),
        _rules(admin, rule),
        PromptClient(settings=place, explain_timeouts=False) as client,
    ):
        assert sum(reply.ok for reply in client.map(["x"] * 20, timeout_s=WAIT_S)) == 20


def test_a_reply_topic_that_may_not_be_read_is_named(place: KafkaSettings, admin: AdminClient) -> None:
    rule = {SOMEBODY_ELSE: Right("ALL", "topic", place.kafka_reply_topic)}
    with _rules(admin, rule), pytest.raises(NotAllowed, match=place.kafka_reply_topic):
        PromptClient(settings=place)


def test_a_request_topic_that_may_not_be_written_is_named(place: KafkaSettings, admin: AdminClient) -> None:
    topic = place.kafka_request_topic
    rules = {SOMEBODY_ELSE: Right("WRITE", "topic", topic), "*": Right("DESCRIBE", "topic", topic)}
    with (
        _rules(admin, rules),
        PromptClient(settings=place) as client,
        pytest.raises(NotAllowed, match=f"lacks the right WRITE on topic '{topic}'"),
    ):
        client.ask("x")


# ---- processes


def test_a_forked_child_is_told_and_the_parent_goes_on(place: KafkaSettings) -> None:
    program = """
import os, sys
from promptbus import ForkedClient, PromptClient
client = PromptClient()
child = os.fork()
if child == 0:
    try:
        client.ask("x")
    except ForkedClient as error:
        client.close()
        print(error, flush=True)
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(client.ask("parent").response)
client.close()
"""
    with Responder(place):
        done = _python(place, program)
    assert done.returncode == 0, done.stderr
    assert "make a client in each process" in done.stdout
    assert "re: parent" in done.stdout
    assert done.stderr == ""


def test_a_client_never_closed_hands_over_its_requests_at_exit(place: KafkaSettings) -> None:
    program = """
from promptbus import PromptClient
client = PromptClient(linger_ms=5000)
for _ in range(50):
    client.submit("silent")
"""
    with Responder(place) as responder:
        done = _python(place, program)
        assert (done.returncode, done.stderr) == (0, "")
        until = time.monotonic() + WAIT_S
        while len(responder.seen) < 50:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_librdkafka_says_nothing_on_stderr() -> None:
    (port,) = free_ports(1)
    program = """
from promptbus import KafkaUnavailable, PromptClient
try:
    PromptClient(connect_timeout_s=1)
except KafkaUnavailable:
    print("said")
"""
    done = _python(settings_for(f"127.0.0.1:{port}"), program)
    assert (done.stdout, done.stderr) == ("said\n", "")


def _python(place: KafkaSettings, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment_for(place),
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _answer(request_id: str) -> bytes:
    return encode_answer(
        request_id=request_id,
        reply_id="x",
        response="late",
        finish_reason="stop",
        usage=Usage(None, None, None),
        model="m",
        model_version="1",
        metadata={},
        timings=Timings(0, 0, 0),
        attempts=1,
    )


@contextmanager
def _rules(admin: AdminClient, rights: dict[str, Right]) -> Iterator[None]:
    """Access rules by user for the length of a block: on these resources nothing else is allowed then."""
    rules = Rules(admin)
    for user, right in rights.items():
        rules.put(user, right)
    try:
        yield
    finally:
        for user, right in rights.items():
            rules.take_away(user, right)
