"""What the worker asks of librdkafka, and what it asks of the brokers before it starts: topics and their limits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, but exported without __all__
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from promptbus.kafka_errors import ConnectionNotes, settings_refused
from promptbus.listener import Address
from promptbus.rights import Right, lacking
from promptbus.settings import DURABLE
from promptbus_worker import logs
from promptbus_worker.preflight import new_topic_config
from promptbus_worker.settings import Settings

log = logging.getLogger(__name__)

POLL_GRACE_MS = 15_000
"""By how much a poll may be later than a session; the consumer thread polls all the time, whatever else happens."""
BROKER_DEFAULT_MAX_BYTES = 1_048_588
"""Kafka's default `max.message.bytes`, assumed where the right to read a topic's configuration is missing."""
_LARGEST_LIBRDKAFKA_MESSAGE = 1_000_000_000
_ADMIN_TIMEOUT_S = 5.0
_ALL_WE_NEED = frozenset({"DESCRIBE", "READ", "WRITE"})


class NotYet(Exception):
    """The brokers cannot be asked now; worth trying again.

    `refused`: a broker is there, and TLS or login do not come about. That seldom mends itself.
    """

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class Unusable(Exception):
    """Something about the cluster that only an operator can mend; the text is for them."""


def consumer_config(settings: Settings, client_id: str) -> dict[str, object]:
    """The consumer's librdkafka settings. Holds secrets: never log it."""
    return {
        # At most this much of prefetched records: the default of 64 MiB alone would make 168 MiB resident.
        "queued.max.messages.kbytes": 8192,
        # Around each of them the client keeps some hundred bytes: with the default of 100,000 short prompts took 27 MB more
        # and came no faster.
        "queued.min.messages": 20_000,
        # How long a partition that met that bound waits before it fetches again. In the default of 1 s a worker empties
        # the 8 MiB several times over: prompts of 100 KB came at a quarter of the rate.
        "fetch.queue.backoff.ms": 20,
        "check.crcs": True,
        # A fetch that has begun with the first partition would keep records of the others waiting for this long.
        "fetch.wait.max.ms": 100,
        "reconnect.backoff.ms": 50,
        # The client waits this long for the answer to its JoinGroup. If the connection is half-open then, that is how
        # long it stays without partitions; with the default of 300 s a whole group once stood still for 5 minutes.
        "max.poll.interval.ms": settings.kafka_session_timeout_ms + POLL_GRACE_MS,
        **settings.client_config(),
        **settings.consumer_overrides(),
        **_membership(settings),
        "client.id": client_id,
        "group.id": settings.kafka_group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A committed offset that retention has overtaken stops the worker; a silent jump would lose requests.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "logger": logs.librdkafka_logger(),
    }


def _membership(settings: Settings) -> dict[str, object]:
    """What each group protocol is told: the client refuses the settings of one with the other."""
    if settings.kafka_group_protocol == "consumer":
        return {"group.protocol": "consumer"}
    return {
        "group.protocol": "classic",
        "session.timeout.ms": settings.kafka_session_timeout_ms,
        # How soon a member hears of a rebalance. The default of 3 s makes each of its two rounds that slow.
        "heartbeat.interval.ms": 1_000,
        "partition.assignment.strategy": "cooperative-sticky",
    }


def producer_config(settings: Settings, client_id: str, limits: Iterable[int]) -> dict[str, object]:
    """The producer's librdkafka settings for topics with these `max.message.bytes`."""
    sizes = list(limits)
    return {
        # At once: with one batch under way, what comes meanwhile goes together anyway, and what nobody waits for is
        # collected before (acknowledged_replies). A millisecond here is a millisecond of every reply under light traffic.
        "linger.ms": 0,
        "compression.type": "lz4",
        "queue.buffering.max.kbytes": 65_536,
        # Asking for the producer id right after the connection is up fails more often than not; with the default
        # back-off of 100 ms and more the first replies would wait for a second.
        "retry.backoff.ms": 20,
        "reconnect.backoff.ms": 50,
        **settings.client_config(),
        **settings.producer_overrides(),
        "client.id": client_id,
        **DURABLE,
        "partitioner": "murmur2_random",  # Java's: other programs find a key's replies in the same partition
        # The largest topic decides what may be written at all, the smallest how much may share one request: a broker
        # refuses the whole batch if it is over its topic's limit, small records and all.
        "message.max.bytes": min(_LARGEST_LIBRDKAFKA_MESSAGE, max(sizes)),
        "batch.size": min(1_000_000, *sizes),
        "logger": logs.librdkafka_logger(),
    }


def transactional_config(settings: Settings, client_id: str, limits: Iterable[int]) -> dict[str, object]:
    """The same with transactions. The id outlives the process: the next one in its slot ends what it left open."""
    config = producer_config(settings, client_id, limits)
    timeout_ms = settings.transaction_timeout_ms
    return {
        **config,
        "transactional.id": right_to_transactions(settings, client_id).name,
        "transaction.timeout.ms": timeout_ms,
        # The client refuses more. It is a setting for all clients, so more of it is no mistake.
        "socket.timeout.ms": min(timeout_ms, int(str(config.get("socket.timeout.ms", timeout_ms)))),
        # Only what fails is reported: what is delivered is settled by the commit.
        "delivery.report.only.error": True,
    }


def right_to_transactions(settings: Settings, client_id: str) -> Right:
    """What a worker with transactions needs besides. Names of machines change, so it is granted to a whole group."""
    group = settings.kafka_group_id
    return Right("WRITE", "transactional-id", f"{group}-{client_id}", beginning=f"{group}-")


def topics_of(settings: Settings) -> list[str]:
    """Every topic the worker reads or writes."""
    return [
        settings.kafka_request_topic,
        settings.kafka_reply_topic,
        settings.kafka_dead_letter_topic,
        *sorted(settings.reply_topics_allowed - {settings.kafka_reply_topic}),
    ]


def advertised(admin: AdminClient, timeout_s: float) -> Sequence[Address]:
    """Where the cluster says that its brokers are. Raises KafkaException."""
    found = admin.list_topics(timeout=timeout_s).brokers.values()
    return [Address(str(broker.host), broker.port) for broker in found]  # str: untyped there


def brokers(admin: AdminClient, settings: Settings, notes: ConnectionNotes) -> Sequence[Address]:
    """The cluster's, as they are advertised. Raises NotYet."""
    try:
        return advertised(admin, _ADMIN_TIMEOUT_S)
    except KafkaException as error:
        admin.poll(0)  # brings what the client has to say
        why = notes.misunderstanding(settings)
        no_answer = f"no broker at {settings.kafka_bootstrap} answers"
        raise NotYet(why or no_answer, refused=why is not None) from error


def ensure_topics(admin: AdminClient, settings: Settings, notes: ConnectionNotes | None = None) -> None:
    """All topics exist, or are created if that is allowed, and we may use them. Raises NotYet or Unusable.

    `notes`: what the client said about its connections.
    """
    brokers(admin, settings, notes or ConnectionNotes())
    operations = _operations(admin, topics_of(settings))
    _require_rights(operations, settings)
    missing = [topic for topic, allowed in operations.items() if allowed is None]
    if not missing:
        return
    names = ", ".join(missing)
    if not settings.kafka_create_topics:
        raise Unusable(
            f"These topics do not exist: {names}. Create them "
            f"(kafka-topics.sh --create --topic {missing[0]} --bootstrap-server {settings.kafka_bootstrap}), "
            "or let the worker do it with KAFKA_CREATE_TOPICS=true."
        )
    log.info("creating topics", extra={"topics": names})
    new = [NewTopic(topic, config=new_topic_config(topic, settings)) for topic in missing]
    for topic, future in admin.create_topics(new).items():
        try:
            future.result(_ADMIN_TIMEOUT_S * 2)
        except KafkaException as error:
            name = error.args[0].name()
            if name.endswith("AUTHORIZATION_FAILED"):
                raise Unusable(lacking(settings, Right("CREATE", "topic", topic))) from error
            if name != "TOPIC_ALREADY_EXISTS":  # another worker was quicker
                raise Unusable(f"Topic {topic} cannot be created: {error.args[0].str()}") from error
    raise NotYet("topics were just created")  # look again: brokers take a moment to know them


def _operations(admin: AdminClient, topics: Sequence[str]) -> dict[str, AbstractSet[str] | None]:
    """What we may do with each topic, None if there is none. Raises NotYet."""
    found: dict[str, AbstractSet[str] | None] = {}
    described = admin.describe_topics(
        TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=_ADMIN_TIMEOUT_S
    )
    for topic, future in described.items():
        try:
            allowed = future.result(_ADMIN_TIMEOUT_S * 2).authorized_operations
        except TimeoutError as error:
            raise NotYet("the topics cannot be looked at") from error
        except KafkaException as error:
            match error.args[0].name():
                case "UNKNOWN_TOPIC_OR_PART":
                    found[topic] = None
                case "TOPIC_AUTHORIZATION_FAILED":
                    found[topic] = frozenset()
                case _:
                    raise NotYet(f"topic {topic} cannot be looked at: {error.args[0].str()}") from error
        else:
            # Brokers without rules name none: what is not allowed will show.
            found[topic] = {operation.name for operation in allowed} if allowed else _ALL_WE_NEED
    return found


def _require_rights(operations: Mapping[str, AbstractSet[str] | None], settings: Settings) -> None:
    """Raises Unusable, naming every right on topics that is missing."""
    missing = []
    for topic, allowed in operations.items():
        needed = "READ" if topic == settings.kafka_request_topic else "WRITE"
        if allowed is not None:
            missing += [Right(each, "topic", topic) for each in ("DESCRIBE", needed) if each not in allowed]
    if missing:
        raise Unusable(lacking(settings, *missing))


def size_limits(admin: AdminClient, topics: Iterable[str]) -> dict[str, int]:
    """Each topic's `max.message.bytes`. Raises NotYet."""
    resources = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in topics}
    limits = {}
    answers = admin.describe_configs(list(resources.values()), request_timeout=_ADMIN_TIMEOUT_S)
    for topic, resource in resources.items():
        try:
            config = answers[resource].result(_ADMIN_TIMEOUT_S * 2)
            limits[topic] = int(config["max.message.bytes"].value)
        except (TimeoutError, KeyError) as error:
            raise NotYet(f"the configuration of {topic} cannot be read") from error
        except KafkaException as error:
            kafka_error = error.args[0]
            name = kafka_error.name()
            if name.endswith("AUTHORIZATION_FAILED"):
                log.warning(
                    "a topic's size limit may not be read (DESCRIBE_CONFIGS is missing); Kafka's default is assumed",
                    extra={"topic": topic, "max_message_bytes": BROKER_DEFAULT_MAX_BYTES},
                )
                limits[topic] = BROKER_DEFAULT_MAX_BYTES
            else:
                raise NotYet(f"the configuration of {topic} cannot be read: {kafka_error.str()}") from error
    return limits


def admin_client(settings: Settings, client_id: str, notes: ConnectionNotes | None = None) -> AdminClient:
    """For the questions above. Raises Unusable for settings that librdkafka refuses."""
    config: dict[str, object] = {
        **settings.client_config(),
        "client.id": client_id,
        "logger": logs.librdkafka_logger(),
        "error_cb": (notes or ConnectionNotes()).note,
    }
    try:
        return AdminClient(config)  # type: ignore[arg-type]  # its annotation leaves out the logger
    except KafkaException as error:
        raise Unusable(str(settings_refused(error))) from error
