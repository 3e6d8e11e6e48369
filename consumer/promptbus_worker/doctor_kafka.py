"""The doctor at Kafka: brokers, topics, rights, offsets. Changes nothing, joins no group.

Committed offsets are read through a Consumer: `AdminClient.list_consumer_group_offsets` of confluent-kafka 2.16.1
crashes the process (SIGSEGV) when the answer is an error of the whole group, as from a cluster that never had one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import ConfigResource, OffsetSpec  # type: ignore[attr-defined] # not in its __all__

from promptbus.kafka_errors import FINDING_COORDINATOR
from promptbus.listener import Address, addresses_of, misunderstandings
from promptbus.rights import Right, lacking
from promptbus_worker.deadline import Deadline
from promptbus_worker.doctor_admin import Admin, text_of
from promptbus_worker.doctor_net import unreachable
from promptbus_worker.doctor_transactions import transactional_ids
from promptbus_worker.kafka import advertised
from promptbus_worker.preflight import (
    Finding,
    Partition,
    Position,
    Topic,
    fail,
    judge_clock,
    judge_missing_topic,
    judge_parallelism,
    judge_partitions,
    judge_positions,
    judge_replication,
    judge_rights,
    judge_sizes,
    ok,
    warn,
)
from promptbus_worker.settings import Settings

_CONNECT_S = 3.0
_NOTHING_CHECKED = "topics, rights and offsets were not checked"
_RETRY_S = 0.2
_ENDS = tuple(
    spec()  # type: ignore[no-untyped-call]  # untyped there
    for spec in (OffsetSpec.earliest, OffsetSpec.latest, OffsetSpec.max_timestamp)
)


class KafkaCheckup:
    """One visit. Everything together takes at most `budget_s`."""

    def __init__(self, settings: Settings, budget_s: float = 12.0) -> None:
        self._settings = settings
        self._deadline = Deadline(budget_s)

    def findings(self) -> Iterator[Finding]:
        """Each as soon as it is known."""
        bootstrap = addresses_of(self._settings.kafka_bootstrap)
        away = unreachable(bootstrap, self._deadline.remaining_s(_CONNECT_S))
        all_away = len(away) == len(bootstrap)
        for address, why in away.items():
            mend = "is Kafka running, and is KAFKA_BOOTSTRAP right?"
            yield fail(f"Kafka {address}: {why}", mend) if all_away else warn(f"Kafka {address}: {why}", mend)
        if all_away:
            yield fail(_NOTHING_CHECKED, "they need a broker that answers")
            return
        yield from self._with_a_broker(set(away))

    def _with_a_broker(self, away: set[Address]) -> Iterator[Finding]:
        try:
            admin = Admin(self._settings, self._deadline)
            self._try_overrides(admin)
        except (KafkaException, TypeError, ValueError) as error:
            yield fail(
                f"Kafka's client refuses its settings: {text_of(error)}",
                "correct the KAFKA_… variable that it names",
            )
            return
        silence: KafkaException | None = None
        try:
            nodes = advertised(admin.client, admin.call_s())
        except KafkaException as error:  # the cluster may still have named brokers, none of which can be used
            silence, nodes = error, admin.named_brokers()
        if silence and not nodes:
            yield admin.no_answer(silence)
            return
        lost = unreachable(
            [node for node in nodes if node not in away], self._deadline.remaining_s(_CONNECT_S)
        )
        for address, why in lost.items():
            yield fail(
                f"Kafka names its broker {address}, which cannot be reached from here: {why}",
                "correct advertised.listeners of that broker, or the network between",
            )
        others = [
            address
            for address in addresses_of(self._settings.kafka_bootstrap)
            if address not in away and address not in nodes
        ]
        closed = misunderstandings(
            [*(node for node in nodes if node not in away and node not in lost), *others],
            self._settings.client_config(),
            self._deadline.remaining_s(_CONNECT_S),
        )
        for address, why in closed.items():
            if address in nodes:
                yield fail("a broker that the others name cannot be used", why)
            else:
                yield warn("an address in KAFKA_BOOTSTRAP cannot be used", why)
        if silence and not lost and not closed:
            yield admin.no_answer(silence)
            return
        if silence or all(node in lost or node in closed or node in away for node in nodes):
            yield fail(_NOTHING_CHECKED, "they need a broker that lets us in")
            return
        yield ok(f"Kafka answers: {len(nodes)} broker{'s' * (len(nodes) != 1)}")
        yield from self._topics(admin, len(nodes))

    def _try_overrides(self, admin: Admin) -> None:
        """Make the clients that the worker makes. Raises what they raise for KAFKA_CONSUMER__… or KAFKA_PRODUCER__…."""
        settings = self._settings
        Producer({**settings.client_config(), **settings.producer_overrides()}, logger=admin.logger)
        config = {**settings.client_config(), **settings.consumer_overrides()}
        Consumer({**config, "group.id": settings.kafka_group_id}, logger=admin.logger).close()

    def _topics(self, admin: Admin, brokers: int) -> Iterator[Finding]:
        settings = self._settings
        roles = {settings.kafka_request_topic: "READ", settings.kafka_reply_topic: "WRITE"}
        roles[settings.kafka_dead_letter_topic] = "WRITE"
        roles.update(dict.fromkeys(sorted(settings.reply_topics_allowed - roles.keys()), "WRITE"))
        found: dict[str, Topic] = {}
        try:
            descriptions = self._describe_topics(admin, list(roles))
        except (KafkaException, TimeoutError) as error:
            yield admin.no_answer(error)
            return
        for name, needed in roles.items():
            seen = descriptions[name]
            if isinstance(seen, str):
                rights = Right("DESCRIBE", "topic", name), Right(needed, "topic", name)
                yield fail(f"topic {name}: {seen}", lacking(settings, *rights))
            elif seen is None:
                yield judge_missing_topic(name, min(3, brokers), settings)
            else:
                found[name] = seen
                yield from judge_partitions(seen)
                yield from judge_rights(Right(needed, "topic", name), seen.operations, settings)
        yield from judge_replication(list(found.values()))
        yield from judge_sizes(found, settings)
        request = found.get(settings.kafka_request_topic)
        if request is not None:
            yield from judge_parallelism(request, settings)
        yield from self._group(admin, request)
        if settings.worker_delivery == "transactional":
            yield from transactional_ids(admin, settings)

    def _describe_topics(self, admin: Admin, names: list[str]) -> dict[str, Topic | str | None]:
        """Per name the topic, None if there is none, or why it cannot be seen."""
        described = admin.client.describe_topics(
            TopicCollection(names), include_authorized_operations=True, request_timeout=admin.call_s()
        )
        topics: dict[str, Topic | str | None] = {}
        for name, future in described.items():
            try:
                seen = admin.result(future)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    topics[name] = None
                elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    topics[name] = "this user may not see it"
                else:
                    raise
                continue
            config = self._config(admin, name)
            operations = seen.authorized_operations
            topics[name] = Topic(
                name=name,
                partitions=[
                    Partition(
                        number=partition.id,
                        leader=partition.leader.id if partition.leader and partition.leader.id >= 0 else None,
                        replicas=len(partition.replicas),
                        in_sync=len(partition.isr),
                    )
                    for partition in seen.partitions
                ],
                operations=None if operations is None else frozenset(each.name for each in operations),
                max_message_bytes=config.get("max.message.bytes"),
                min_in_sync=config.get("min.insync.replicas"),
            )
        return topics

    def _config(self, admin: Admin, topic: str) -> dict[str, int]:
        """The topic's numeric settings; empty where this user may not read them."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        (future,) = admin.client.describe_configs([resource], request_timeout=admin.call_s()).values()
        try:
            entries = admin.result(future)
        except (KafkaException, TimeoutError):
            return {}
        return {name: int(entry.value) for name, entry in entries.items() if str(entry.value).isdigit()}

    def _group(self, admin: Admin, request: Topic | None) -> Iterator[Finding]:
        group = self._settings.kafka_group_id
        right = Right("READ", "group", group)
        while True:
            (future,) = admin.client.describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=admin.call_s()
            ).values()
            try:
                seen = admin.result(future)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    yield from judge_rights(right, frozenset(), self._settings)
                    return
                if code in FINDING_COORDINATOR and self._deadline.remaining_s() > _RETRY_S:
                    time.sleep(_RETRY_S)  # a new cluster's first group: its coordinator is being found
                    continue
                yield warn(f"group {group}: {text_of(error)}", "its rights and offsets were not checked")
                return
            except TimeoutError:
                yield warn(f"group {group}: no answer in time", "its rights and offsets were not checked")
                return
            break
        operations = seen.authorized_operations
        names = None if operations is None else frozenset(each.name for each in operations)
        missing = judge_rights(right, names, self._settings)
        yield from missing
        if not missing and request is not None and request.partitions:
            yield from self._offsets(admin, request)

    def _offsets(self, admin: Admin, request: Topic) -> Iterator[Finding]:
        numbers = [partition.number for partition in request.partitions if partition.leader is not None]
        config = {
            **self._settings.client_config(),
            "group.id": self._settings.kafka_group_id,
            "enable.auto.commit": False,
        }
        try:
            consumer = Consumer(config, logger=admin.logger)
            try:
                where = [TopicPartition(request.name, number) for number in numbers]
                committed = {
                    each.partition: each.offset for each in consumer.committed(where, timeout=admin.call_s())
                }
            finally:
                consumer.close()
            ends = []
            for spec in _ENDS:
                futures = admin.client.list_offsets(
                    {TopicPartition(request.name, number): spec for number in numbers},
                    request_timeout=admin.call_s(),
                )
                ends.append({tp.partition: admin.result(future) for tp, future in futures.items()})
        except (KafkaException, TimeoutError) as error:
            yield warn(f"offsets of topic {request.name}: {text_of(error)}", "they were not checked")
            return
        low, high, newest = ends
        yield from judge_positions(
            [
                Position(
                    partition=number,
                    low=low[number].offset,
                    high=high[number].offset,
                    committed=committed[number] if committed.get(number, -1) >= 0 else None,
                )
                for number in numbers
            ],
            self._settings,
        )
        timestamps = [info.timestamp for info in newest.values() if info.timestamp > 0]
        if timestamps:
            yield from judge_clock(max(timestamps) / 1000, time.time())
