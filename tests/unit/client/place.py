"""Where a test's client and responder meet: one broker, two topics of their own."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable

from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, but the package has no __all__
    AdminClient,
    NewTopic,
)

from promptbus.settings import KafkaSettings

_settings: Callable[..., KafkaSettings] = KafkaSettings
QUIET = logging.getLogger("promptbus.tests.kafka")


def settings_for(bootstrap: str, requests: str = "requests", replies: str = "replies") -> KafkaSettings:
    """Settings that know nothing of this machine's environment; quick fetches."""
    return _settings(
        _env_file=None,
        kafka_bootstrap=bootstrap,
        kafka_request_topic=requests,
        kafka_reply_topic=replies,
        kafka_consumer={"fetch_wait_max_ms": "10"},
    )


def environment_for(settings: KafkaSettings) -> dict[str, str]:
    """The same for a process: this one's environment without its own KAFKA_* and TRITON_*."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "TRITON_"))
    }
    return {
        **inherited,
        "KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "KAFKA_REQUEST_TOPIC": settings.kafka_request_topic,
        "KAFKA_REPLY_TOPIC": settings.kafka_reply_topic,
        "KAFKA_CONSUMER__FETCH_WAIT_MAX_MS": "10",
    }


def real_topics(bootstrap: str, config: dict[str, str] | None = None) -> KafkaSettings:
    """Two new topics on a real broker. `config` is the request topic's."""
    name = uuid.uuid4().hex[:12]
    settings = settings_for(bootstrap, f"requests-{name}", f"replies-{name}")
    admin = AdminClient({"bootstrap.servers": bootstrap}, logger=QUIET)
    made = admin.create_topics(
        [
            NewTopic(settings.kafka_request_topic, 4, 1, config=config or {}),
            NewTopic(settings.kafka_reply_topic, 4, 1),
        ]
    )
    for future in made.values():
        future.result(timeout=20)
    return settings


class MockCluster:
    """librdkafka's in-memory Kafka, listening on a port of this process: for what needs no real broker."""

    def __init__(self) -> None:
        self._owner = Producer({"test.mock.num.brokers": 1}, logger=QUIET)
        brokers = self._owner.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def topics(self) -> KafkaSettings:
        """Two new topics of four partitions."""
        name = uuid.uuid4().hex[:12]
        settings = settings_for(self.bootstrap, f"requests-{name}", f"replies-{name}")
        for topic in (settings.kafka_request_topic, settings.kafka_reply_topic):
            self._owner.list_topics(topic, timeout=10)  # a mock broker makes what a producer asks for
        return settings
