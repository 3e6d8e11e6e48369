"""docker-compose.yml's Kafka settings and topics, at a real broker: only ports and the data folder are others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from confluent_kafka.admin import AdminClient

from promptbus.settings import ClientConfig
from promptbus_worker import kafka as worker_kafka
from promptbus_worker.preflight import DEAD_LETTER_EXTRA_BYTES
from promptbus_worker.settings import Settings
from stack.kafka import Kafka
from stack.ports import HOST, free_ports
from stack.topics import create_topics, project_topics
from tests.integration.system import eventually
from tests.unit.project.compose import compose, listeners

# What the image's scripts take for themselves instead of writing it into server.properties.
NO_PROPERTIES = {"CLUSTER_ID", "KAFKA_HEAP_OPTS"}


class ComposeKafka:
    """A broker that was started with the file's settings."""

    def __init__(self) -> None:
        environment = compose().services["kafka"].environment
        names = listeners(environment["KAFKA_LISTENERS"])
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        properties = {
            # The image's rule for its variables.
            name.removeprefix("KAFKA_").lower().replace("_", "."): value
            for name, value in environment.items()
            if name not in NO_PROPERTIES | {"KAFKA_LOG_DIRS"}
        }
        for name, (_, port) in names.items():
            for key, value in properties.items():
                properties[key] = value.replace(f":{port}", f":{self.ports[name]}")
        # Every address of a container is every address of this machine.
        properties["listeners"] = properties["listeners"].replace("://:", f"://{HOST}:")
        self.kafka = Kafka(port=self.ports["OUTSIDE"], properties=properties)

    def advertised(self, listener: str) -> set[tuple[str, int]]:
        """Where a client that came by this listener is sent."""
        found = AdminClient({"bootstrap.servers": f"{HOST}:{self.ports[listener]}"}).list_topics(timeout=20)
        return {(str(broker.host), broker.port) for broker in found.brokers.values()}


@pytest.fixture(scope="module")
def broker() -> Iterator[ComposeKafka]:
    started = ComposeKafka()
    with started.kafka:
        yield started


def test_clients_are_sent_to_the_address_by_which_they_came(broker: ComposeKafka) -> None:
    assert broker.advertised("OUTSIDE") == {("localhost", broker.ports["OUTSIDE"])}
    assert broker.advertised("INSIDE") == {("kafka", broker.ports["INSIDE"])}


def test_the_projects_topics_are_made_as_they_are_defined(broker: ComposeKafka) -> None:
    client: ClientConfig = {"bootstrap.servers": broker.kafka.bootstrap}
    assert set(create_topics(client)) == set(project_topics())
    assert create_topics(client) == [], "what exists stays as it is"
    admin = AdminClient(client)
    settings = Settings(_env_file=None, kafka_bootstrap=broker.kafka.bootstrap)
    known = admin.list_topics(timeout=20).topics
    limits = worker_kafka.size_limits(admin, worker_kafka.topics_of(settings))
    for name, topic in project_topics().items():
        assert len(known[name].partitions) == topic.partitions
        assert limits[name] == int(topic.configuration["max.message.bytes"])


def test_a_dead_letter_topic_that_the_worker_makes_takes_the_largest_request(broker: ComposeKafka) -> None:
    settings = Settings(
        _env_file=None,
        kafka_bootstrap=broker.kafka.bootstrap,
        kafka_request_topic="own-requests",
        kafka_reply_topic="own-replies",
        kafka_dead_letter_topic="own-dead-letters",
        kafka_create_topics=True,
    )
    admin = AdminClient({"bootstrap.servers": broker.kafka.bootstrap})

    def made() -> bool:
        with suppress(worker_kafka.NotYet):
            worker_kafka.ensure_topics(admin, settings)
            return True
        return False

    eventually("the topics exist", made)
    limits = worker_kafka.size_limits(admin, worker_kafka.topics_of(settings))
    assert limits["own-dead-letters"] == settings.request_max_bytes + DEAD_LETTER_EXTRA_BYTES
