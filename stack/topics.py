"""The topics of config/topics.conf, made once Kafka answers. Imports a Kafka client: only for programs in `.venv`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from stack.cache import PROJECT
from stack.errors import StackError

FILE = PROJECT / "config" / "topics.conf"
TIMEOUT_S = 30.0
LOG = logging.getLogger("stack.topics")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


@dataclass(frozen=True, slots=True)
class NewTopicSettings:
    """How a topic is made; `configuration` are Kafka's own names and values."""

    partitions: int
    configuration: Mapping[str, str] = field(default_factory=dict)


def parse_topics(text: str) -> dict[str, NewTopicSettings]:
    """The topics that lines of `name partitions [key=value …]` define. Raises StackError."""
    topics: dict[str, NewTopicSettings] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            name, partitions, *pairs = words
            topics[name] = NewTopicSettings(int(partitions), dict(_pair(pair) for pair in pairs))
        except ValueError:
            raise StackError(
                f"config/topics.conf, line {number}: it must be `name partitions [key=value …]`."
            ) from None
    return topics


def project_topics() -> dict[str, NewTopicSettings]:
    """Those of config/topics.conf. Raises StackError."""
    return parse_topics(FILE.read_text())


def create_topics(
    client: Mapping[str, str | int | float | bool], topics: Mapping[str, NewTopicSettings] | None = None
) -> list[str]:
    """Create what is missing, with the cluster's own number of copies. Returns the names that were new.

    None: the project's topics.

    `client`: librdkafka settings. Raises StackError.
    """
    admin = AdminClient(dict(client), logger=LOG)
    wanted = [
        NewTopic(
            name, num_partitions=topic.partitions, replication_factor=-1, config=dict(topic.configuration)
        )
        for name, topic in (project_topics() if topics is None else topics).items()
    ]
    created = []
    for name, future in admin.create_topics(
        wanted, operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S
    ).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise StackError(f"Topic {name} could not be created: {reason.str()}.") from None
    return created


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise ValueError(text)
    return key, value
