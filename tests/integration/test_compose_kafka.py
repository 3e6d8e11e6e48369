"""docker-compose.yml's Kafka settings and topics, at a real broker: only ports and the data folder are others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from promptbus.settings import ClientConfig
from promptbus_worker import kafka as worker_kafka
from promptbus_worker.preflight import DEAD_LETTER_EXTRA_BYTES
from promptbus_worker.settings import Settings
from stack import contents
from stack.kafka import Kafka
from stack.ports import HOST, free_ports
from stack.topics import create_topics, project_topics
from tests.integration.system import eventually
from tests.unit.project.compose import compose, listeners


def server_properties(folder: Path) -> dict[str, str]:
    """What the image makes of the file's variables: by the class that its start script runs."""
    default, mounted, final, data = (folder / name for name in ("default", "mounted", "final", "data"))
    for place in (default, mounted, final):
        place.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (default / name).touch()
    folders: list[str | Path] = ["-D", default, "-M", mounted, "-F", final]
    classes = f"{contents.kafka_jars().require()}/*"
    environment = compose().services["kafka"].environment | {"KAFKA_LOG_DIRS": str(data)}
    done = subprocess.run(
        [contents.java(), "-cp", classes, "kafka.docker.KafkaDockerWrapper", "setup", *folders],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cluster.id={environment['CLUSTER_ID']}\n" in (data / "meta.properties").read_text()
    lines = (final / "server.properties").read_text().split()
    return {name: value for name, _, value in (line.partition("=") for line in lines) if name != "log.dirs"}


class ComposeKafka:
    """A broker that was started with the file's settings; `folder` is an empty one."""

    def __init__(self, folder: Path) -> None:
        properties = server_properties(folder)
        names = listeners(properties["listeners"])
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
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
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeKafka]:
    started = ComposeKafka(tmp_path_factory.mktemp("compose"))
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
