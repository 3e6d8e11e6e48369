"""What every consumer and producer of the worker is made with, whatever the environment says."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer

from promptbus_worker.kafka import POLL_GRACE_MS, consumer_config, producer_config, topics_of
from promptbus_worker.settings import Settings

CONSUMER = {
    "group.id": "g",
    "client.id": "worker-0",
    "session.timeout.ms": 45_000,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
    "check.crcs": True,
}
PRODUCER = {
    "client.id": "worker-0",
    "acks": "all",
    "enable.idempotence": True,
    "max.in.flight.requests.per.connection": 1,
    "partitioner": "murmur2_random",
}


def settings(**more: object) -> Settings:
    return Settings(_env_file=None, kafka_group_id="g", **more)  # type: ignore[arg-type]  # pydantic takes and checks them


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "heartbeat_interval_ms": "7",
            "client_id": "x",
        },
    ],
    ids=["plain", "overridden"],
)
def test_what_carries_the_promises_is_set_in_any_case(overrides: dict[str, str]) -> None:
    for scope in ("kafka_client", "kafka_consumer"):
        config = consumer_config(settings(**{scope: overrides}), "worker-0")
        assert {key: config[key] for key in CONSUMER} == CONSUMER
    for scope in ("kafka_client", "kafka_producer"):
        config = producer_config(settings(**{scope: overrides}), "worker-0", [1_000_000])
        assert {key: config[key] for key in PRODUCER} == PRODUCER


def test_the_prefetch_is_small_by_default() -> None:
    kilobytes = consumer_config(settings(), "worker-0")["queued.max.messages.kbytes"]
    assert isinstance(kilobytes, int)
    assert kilobytes <= 8192
    records = consumer_config(settings(), "worker-0")["queued.min.messages"]
    assert isinstance(records, int)
    assert records <= 20_000


def test_a_full_prefetch_holds_the_next_fetch_back_only_shortly() -> None:
    """With the client's default of 1 s the worker had read the 8 MiB several times over before more came."""
    backoff_ms = consumer_config(settings(), "worker-0")["fetch.queue.backoff.ms"]
    assert isinstance(backoff_ms, int)
    assert backoff_ms <= 20


def test_tuning_is_passed_on_and_the_scoped_one_beats_the_shared_one() -> None:
    tuned = settings(
        kafka_client={"linger_ms": "1", "fetch_wait_max_ms": "2"},
        kafka_producer={"linger_ms": "7"},
        kafka_consumer={"fetch_wait_max_ms": "8"},
    )
    assert producer_config(tuned, "worker-0", [1_000_000])["linger.ms"] == "7"
    assert consumer_config(tuned, "worker-0")["fetch.wait.max.ms"] == "8"


@pytest.mark.parametrize("session_ms", [6_000, 45_000, 1_800_000])
def test_a_poll_may_take_a_little_longer_than_a_session(session_ms: int) -> None:
    config = consumer_config(settings(kafka_session_timeout_ms=session_ms), "worker-0")
    assert config["max.poll.interval.ms"] == session_ms + POLL_GRACE_MS


@pytest.mark.parametrize(
    ("limits", "message", "batch"),
    [
        ([1_048_588], 1_048_588, 1_000_000),
        ([1_048_588, 5_000, 20_000_000], 20_000_000, 5_000),
        ([2_000_000_000], 1_000_000_000, 1_000_000),
    ],
)
def test_the_largest_topic_decides_a_record_and_the_smallest_a_batch(
    limits: list[int], message: int, batch: int
) -> None:
    config = producer_config(settings(), "worker-0", limits)
    assert (config["message.max.bytes"], config["batch.size"]) == (message, batch)


@pytest.mark.parametrize(
    ("protocol", "other"),
    [
        ("classic", {"group.remote.assignor"}),
        (
            "consumer",
            {
                "session.timeout.ms",
                "heartbeat.interval.ms",
                "partition.assignment.strategy",
                "group.protocol.type",
            },
        ),
    ],
)
def test_a_group_protocol_is_told_nothing_that_is_the_other_ones(protocol: str, other: set[str]) -> None:
    config = consumer_config(settings(kafka_group_protocol=protocol), "worker-0")
    assert config["group.protocol"] == protocol
    assert not config.keys() & other


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_librdkafka_takes_both(protocol: str) -> None:
    Consumer(consumer_config(settings(kafka_group_protocol=protocol), "worker-0")).close()
    assert Producer(producer_config(settings(), "worker-0", [1_048_588, 5_000])).flush(0) == 0


def test_every_topic_is_looked_for_once() -> None:
    topics = topics_of(settings(kafka_reply_topics_allowed="b, inference-results, a"))
    assert topics == ["inference-requests", "inference-results", "inference-requests.dlq", "a", "b"]
