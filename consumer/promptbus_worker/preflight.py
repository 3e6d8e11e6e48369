"""What the doctor concludes from what it saw: pure judgements, each a line with how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from promptbus.rights import Right, grant
from promptbus_worker.settings import Settings

# A dead letter is the request as it came, its headers, seven more headers, and the record's frame.
DEAD_LETTER_EXTRA_BYTES = 4096
CLOCK_TOLERANCE_S = 5.0


class Level(StrEnum):
    """`FAIL` keeps the worker from working; `warn` is for people to decide."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked thing; `mend` is what to do about it, empty if nothing is."""

    level: Level
    what: str
    mend: str = ""

    def line(self) -> str:
        """`FAIL  topic x does not exist — create it: …`."""
        return f"{self.level:<4}  {self.what}" + (f" — {self.mend}" if self.mend else "")


def ok(what: str) -> Finding:
    """It is as it should be."""
    return Finding(Level.OK, what)


def warn(what: str, mend: str) -> Finding:
    """It works, and may not be what was meant."""
    return Finding(Level.WARN, what, mend)


def fail(what: str, mend: str) -> Finding:
    """The worker cannot work like this."""
    return Finding(Level.FAIL, what, mend)


@dataclass(frozen=True, slots=True)
class Partition:
    """`leader` None: nobody leads it now. `in_sync` counts replicas that have everything."""

    number: int
    leader: int | None
    replicas: int
    in_sync: int


@dataclass(frozen=True, slots=True)
class Topic:
    """One existing topic. None: the cluster would not say (`operations`: names of what we may do there)."""

    name: str
    partitions: Sequence[Partition]
    operations: frozenset[str] | None
    max_message_bytes: int | None
    min_in_sync: int | None

    @property
    def replicas(self) -> int:
        """Of its least replicated partition."""
        return min((partition.replicas for partition in self.partitions), default=0)


@dataclass(frozen=True, slots=True)
class Position:
    """One partition of the request topic: the log's first and next offset, and the group's committed one."""

    partition: int
    low: int
    high: int
    committed: int | None


def new_topic_config(name: str, settings: Settings) -> dict[str, str]:
    """What a topic that is created needs beyond the cluster's defaults."""
    if name != settings.kafka_dead_letter_topic:
        return {}
    return {"max.message.bytes": str(settings.request_max_bytes + DEAD_LETTER_EXTRA_BYTES)}


def judge_missing_topic(name: str, replicas: int, settings: Settings) -> Finding:
    """A topic that does not exist; `replicas`: as many as its brokers can keep."""
    if settings.kafka_create_topics:
        return ok(f"topic {name} does not exist yet; the worker creates it (KAFKA_CREATE_TOPICS)")
    partitions = max(3, settings.worker_processes)
    options = "".join(f" --config {key}={value}" for key, value in new_topic_config(name, settings).items())
    return fail(
        f"topic {name} does not exist",
        f"create it: kafka-topics --bootstrap-server {settings.kafka_bootstrap} --create --topic {name} "
        f"--partitions {partitions} --replication-factor {replicas}{options}; "
        "or start with KAFKA_CREATE_TOPICS=true",
    )


def judge_partitions(topic: Topic) -> list[Finding]:
    """Can every partition be read and written?"""
    leaderless = [partition.number for partition in topic.partitions if partition.leader is None]
    if leaderless:
        return [
            fail(
                f"topic {topic.name}: no broker leads partition {_some(leaderless)}",
                "bring the brokers that hold it back",
            )
        ]
    if topic.min_in_sync is not None:
        short = [part.number for part in topic.partitions if part.in_sync < topic.min_in_sync]
        if short:
            return [
                fail(
                    f"topic {topic.name}: partition {_some(short)} has fewer replicas in sync than "
                    f"min.insync.replicas={topic.min_in_sync} asks for, so writes are refused",
                    "bring the missing brokers back, or set min.insync.replicas lower",
                )
            ]
    count = len(topic.partitions)
    return [ok(f"topic {topic.name}: {count} partition{'s' * (count != 1)}, {_copies(topic)}")]


def judge_parallelism(topic: Topic, settings: Settings) -> list[Finding]:
    """A partition feeds one process at a time."""
    if len(topic.partitions) >= settings.worker_processes:
        return []
    return [
        warn(
            f"WORKER_PROCESSES is {settings.worker_processes}, but topic {topic.name} has "
            f"{len(topic.partitions)} partitions: the other processes stay idle",
            f"add partitions (kafka-topics --alter --topic {topic.name} --partitions "
            f"{settings.worker_processes}) or set WORKER_PROCESSES lower",
        )
    ]


def judge_replication(topics: Sequence[Topic]) -> list[Finding]:
    """Acknowledged must mean kept."""
    single = [topic.name for topic in topics if topic.replicas == 1]
    if single:
        return [
            warn(
                f"{', '.join(single)}: one replica only, so losing one broker's disk loses records",
                "fine for trying out; elsewhere use replication factor 3 and min.insync.replicas=2",
            )
        ]
    alone = [topic.name for topic in topics if topic.min_in_sync == 1]
    if alone:
        return [
            warn(
                f"{', '.join(alone)}: min.insync.replicas=1, so an acknowledged record may be on one broker only",
                "set min.insync.replicas=2",
            )
        ]
    return []


def judge_sizes(topics: Mapping[str, Topic], settings: Settings) -> list[Finding]:
    """Do the three topics take what REQUEST_MAX_BYTES lets in?"""
    limit = settings.request_max_bytes
    findings = []
    for name, needed, otherwise in (
        (
            settings.kafka_request_topic,
            limit,
            f"requests that large cannot be published; REQUEST_MAX_BYTES ({limit}) is never reached",
        ),
        (settings.kafka_reply_topic, limit, "a reply with large metadata becomes reply_too_large"),
        (
            settings.kafka_dead_letter_topic,
            limit + DEAD_LETTER_EXTRA_BYTES,
            "the largest dead letters are cut to fit",
        ),
    ):
        topic = topics.get(name)
        if topic is None or topic.max_message_bytes is None or topic.max_message_bytes >= needed:
            continue
        findings.append(
            warn(
                f"topic {name}: max.message.bytes is {topic.max_message_bytes}: {otherwise}",
                f"kafka-configs --bootstrap-server {settings.kafka_bootstrap} --alter --topic {name} "
                f"--add-config max.message.bytes={needed}",
            )
        )
    return findings


def judge_rights(right: Right, operations: frozenset[str] | None, settings: Settings) -> list[Finding]:
    """`operations`: what we may do there; None if the brokers would not say."""
    if operations is None or right.operation in operations:
        return []
    return [fail(f"no right to {right.operation} on {right.kind} {right.name}", grant(settings, right))]


def judge_positions(positions: Sequence[Position], settings: Settings) -> list[Finding]:
    """Are the group's committed offsets still in the log? The worker stops rather than skip or repeat unseen."""
    outside = [
        position
        for position in positions
        if position.committed is not None and not position.low <= position.committed <= position.high
    ]
    group, topic = settings.kafka_group_id, settings.kafka_request_topic
    if outside:
        first = outside[0]
        return [
            fail(
                f"group {group}: committed offset {first.committed} of {topic}[{first.partition}] is outside of the "
                f"log ({first.low} to {first.high})"
                + (f", and {len(outside) - 1} more" * (len(outside) > 1)),
                f"records were deleted before they were answered, or the topic was made anew; with the workers "
                f"stopped: kafka-consumer-groups --bootstrap-server {settings.kafka_bootstrap} --group {group} "
                f"--topic {topic} --reset-offsets --to-earliest --execute",
            )
        ]
    known = [position for position in positions if position.committed is not None]
    if not known:
        return [
            ok(f"group {group} has committed nothing yet: it begins at KAFKA_START={settings.kafka_start}")
        ]
    first_offset = settings.kafka_start == "earliest"
    waiting = sum(
        position.high - (position.committed if position.committed is not None else position.low)
        for position in positions
        if position.committed is not None or first_offset
    )
    return [ok(f"group {group}: committed offsets are in the log, {waiting} records wait")]


def judge_clock(newest_timestamp_s: float, now_s: float) -> list[Finding]:
    """A request from the future means that clocks differ, and deadlines compare clocks."""
    ahead_s = newest_timestamp_s - now_s
    if ahead_s <= CLOCK_TOLERANCE_S:
        return []
    return [
        warn(
            f"the newest request is dated {ahead_s:.0f} s in the future: a sender's or broker's clock is ahead, or "
            "this one's is behind",
            "synchronise the clocks (NTP): deadlines are compared with this machine's",
        )
    ]


def judge_batch_size(model: str, model_max: int, settings: Settings) -> list[Finding]:
    """A batch is never larger than the model takes."""
    wanted = settings.batch_max_size
    if wanted is None or wanted <= model_max:
        return []
    return [
        warn(
            f"BATCH_MAX_SIZE is {wanted}, but model {model} takes {model_max} at most, which applies",
            f"set max_batch_size: {wanted} in its config.pbtxt, or BATCH_MAX_SIZE={model_max}",
        )
    ]


def _copies(topic: Topic) -> str:
    return f"{topic.replicas} replica{'s' * (topic.replicas != 1)}"


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
