"""The three topics, made once Kafka answers. Imports a Kafka client: only for programs that run in `.venv`."""

import logging
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from stack.errors import StackError

PARTITIONS = {"inference-requests": 6, "inference-results": 6, "inference-requests.dlq": 1}
TIMEOUT_S = 30.0
LOG = logging.getLogger("stack.topics")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


def create_topics(
    client: Mapping[str, str | int | float | bool], topics: Mapping[str, int] = PARTITIONS
) -> list[str]:
    """Create what is missing, with the cluster's own number of copies. Returns the names that were new.

    `client`: librdkafka settings. Raises StackError.
    """
    admin = AdminClient(dict(client), logger=LOG)
    wanted = [NewTopic(name, num_partitions=count, replication_factor=-1) for name, count in topics.items()]
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
