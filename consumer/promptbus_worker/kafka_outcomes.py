"""What every error of Kafka means and what is to be done about it: four questions, one set of tables, no I/O.

    delivery error     -> delivery_verdict(...)      what the reply writer does with the record
    commit error       -> commit_verdict(...)        what the intake does with the offsets
    poll error         -> consumer_verdict(...)      what the intake does with itself
    transaction error  -> transaction_verdict(...)   what `transactions` does next; by its flags alone

No client is imported: an error arrives as the name that `KafkaError.name()` gives (with a leading underscore from
the client itself, otherwise from the broker) and its flags. A fatal error always stops: that client works no more.
"""

from collections.abc import Mapping
from enum import StrEnum

from promptbus.rights import Right


class DeliveryAction(StrEnum):
    """What becomes of a reply or dead letter whose delivery failed."""

    RESEND = "resend"
    TOO_LARGE = "too_large"
    """This record, or the batch it travelled in, is over the topic's `max.message.bytes`."""
    STOP = "stop"
    DROPPED = "dropped"
    """We purged it ourselves; its offset stays unsettled and its request is delivered again."""


class CommitAction(StrEnum):
    """What a commit's answer, for one partition, says about that partition."""

    OK = "ok"
    LOST = "lost"
    """It belongs to somebody else by now: let go, never commit again in this epoch."""
    RETRY = "retry"
    STOP = "stop"


class ConsumerAction(StrEnum):
    """What an error met while polling asks of the worker."""

    CARRY_ON = "carry_on"
    """The client mends it by itself: log it."""
    LOST = "lost"
    """The group went on without us: the epoch of every partition is over."""
    STOP = "stop"


class TransactionAction(StrEnum):
    """What the error of a transactional operation asks for."""

    RESUME = "resume"
    """The same operation again, and no other."""
    ABORT = "abort"
    STOP = "stop"
    """This producer works no more."""


_RIGHTS: Mapping[str, str] = {
    "TOPIC_AUTHORIZATION_FAILED": (
        "Kafka denies access to a topic. Grant this user READ and DESCRIBE on the request topic, and WRITE and "
        "DESCRIBE on the reply and dead-letter topics."
    ),
    "GROUP_AUTHORIZATION_FAILED": (
        "Kafka denies access to the consumer group. Grant this user READ on the group KAFKA_GROUP_ID."
    ),
    "CLUSTER_AUTHORIZATION_FAILED": (
        "Kafka denies idempotent writing. Grant this user WRITE on the topics (before Kafka 2.8 also "
        "IDEMPOTENT_WRITE on the cluster)."
    ),
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": (
        "Kafka denies the transactional id. Grant this user WRITE and DESCRIBE on it."
    ),
    "SASL_AUTHENTICATION_FAILED": "Kafka refuses the credentials. Check KAFKA_SASL_USERNAME and its password.",
    "UNSUPPORTED_SASL_MECHANISM": "Kafka does not know this SASL mechanism. Check KAFKA_SASL_MECHANISM.",
}

_NO_TOPIC = (
    "A topic does not exist (any more). Create it, or let KAFKA_CREATE_TOPICS=true do so, and start again."
)

_STOP_SENTENCES: Mapping[str, str] = {
    **_RIGHTS,
    "UNKNOWN_TOPIC_OR_PART": _NO_TOPIC,
    "UNKNOWN_TOPIC_ID": _NO_TOPIC,
    "_UNKNOWN_TOPIC": _NO_TOPIC,
    "_UNKNOWN_PARTITION": _NO_TOPIC,
    "TOPIC_EXCEPTION": "Kafka refuses a topic's name. Check the KAFKA_..._TOPIC settings.",
    "_AUTO_OFFSET_RESET": (
        "The committed offset is out of range: requests were deleted by retention before they were answered, or "
        "the topic was created anew. Nothing is skipped silently: set the group's offset with "
        "kafka-consumer-groups --reset-offsets (--to-earliest answers all that is left), then start again."
    ),
    "OFFSET_METADATA_TOO_LARGE": (
        "The broker refuses the commit's metadata. Set offset.metadata.max.bytes to 4096 or more on the brokers."
    ),
    "INCONSISTENT_GROUP_PROTOCOL": (
        "Another member of the group uses another assignment strategy. Stop it, or use another KAFKA_GROUP_ID."
    ),
    "UNSUPPORTED_ASSIGNOR": "The brokers do not support the assignment strategy of this worker.",
    "FENCED_INSTANCE_ID": "Another consumer has the same group.instance.id. Give each worker one of its own.",
    "UNRELEASED_INSTANCE_ID": "Another consumer has the same group.instance.id. Give each worker one of its own.",
    "GROUP_MAX_SIZE_REACHED": "The group has as many members as group.max.size on the brokers allows.",
    "INVALID_SESSION_TIMEOUT": (
        "KAFKA_SESSION_TIMEOUT_MS is outside the brokers' group.min.session.timeout.ms to "
        "group.max.session.timeout.ms."
    ),
    "INVALID_GROUP_ID": "Kafka refuses the consumer group's name. Check KAFKA_GROUP_ID.",
    "INVALID_RECORD": (
        "The broker refuses a record as invalid. A compacted reply or dead-letter topic is the usual cause: set "
        "cleanup.policy=delete on it."
    ),
    "POLICY_VIOLATION": "A policy of the brokers refuses the records of this worker.",
    "_BAD_MSG": "A record in the request topic is corrupt (its checksum is wrong).",
    "_BAD_COMPRESSION": "A record in the request topic cannot be decompressed.",
    "_LOG_TRUNCATION": "The request topic lost records that were already read. Check the brokers, then start again.",
    "_FATAL": "Kafka's client library has given up for good; the log has its reason.",
    "_FENCED": (
        "Another producer with the same transactional id has taken over, or this one stood still for longer than a "
        "transaction may last. If it happens again and again, two supervisors have the same WORKER_INSTANCE."
    ),
}

_LATER = frozenset(
    {
        "_ALL_BROKERS_DOWN",
        "_AUTHENTICATION",  # what was to go over a connection whose login is refused now; at start others decide
        "_DESTROY_BROKER",
        "_FAIL",
        "_IN_PROGRESS",
        "_INVALID_DIFFERENT_RECORD",
        "_ISR_INSUFF",
        "_MSG_TIMED_OUT",
        "_NODE_UPDATE",
        "_OUTDATED",
        "_PREV_IN_PROGRESS",
        "_QUEUE_FULL",
        "_RESOLVE",
        "_RETRY",
        "_SSL",
        "_TIMED_OUT",
        "_TIMED_OUT_QUEUE",
        "_TRANSPORT",
        "_WAIT_CACHE",
        "_WAIT_COORD",
        "BROKER_NOT_AVAILABLE",
        "CONCURRENT_TRANSACTIONS",
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "FENCED_LEADER_EPOCH",
        "INVALID_MSG",  # a checksum broken on the way
        "KAFKA_STORAGE_ERROR",
        "LEADER_NOT_AVAILABLE",
        "NETWORK_EXCEPTION",
        "NOT_COORDINATOR",
        "NOT_ENOUGH_REPLICAS",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
        "NOT_LEADER_FOR_PARTITION",
        "OFFSET_NOT_AVAILABLE",
        "PREFERRED_LEADER_NOT_AVAILABLE",
        "REBOOTSTRAP_REQUIRED",
        "REPLICA_NOT_AVAILABLE",
        "REQUEST_TIMED_OUT",
        "STALE_MEMBER_EPOCH",  # still a member: the client commits with the new epoch next time
        "THROTTLING_QUOTA_EXCEEDED",
        "UNKNOWN_LEADER_EPOCH",
        "UNSTABLE_OFFSET_COMMIT",
    }
)
"""Passing states of brokers and network: the same again, later."""

_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "INVALID_MSG_SIZE", "RECORD_LIST_TOO_LARGE"})

_NOT_OURS = frozenset(
    {
        "_ASSIGNMENT_LOST",
        "_MAX_POLL_EXCEEDED",
        "FENCED_INSTANCE_ID",
        "FENCED_MEMBER_EPOCH",
        "ILLEGAL_GENERATION",
        "REBALANCE_IN_PROGRESS",
        "UNKNOWN_MEMBER_ID",
    }
)


# How a failure that ended the client is named where the flags are lost: delivery reports and polled messages carry
# errors whose flags are always false.
_FATAL = "_FATAL"
_NEW_PROTOCOLS_REQUEST = "ConsumerGroupHeartbeat fatal error: Broker: API version not supported"


def refuses_connection(name: str) -> bool:
    """Whether a broker is there and does not let us in: TLS or login do not come about."""
    return name in ("_AUTHENTICATION", "_SSL", "SASL_AUTHENTICATION_FAILED")


def needs_operator(name: str) -> bool:
    """Whether the cause is known to be one that a restart does not mend."""
    return name in _STOP_SENTENCES and name != _FATAL


def delivery_verdict(name: str, *, fatal: bool, retriable: bool) -> DeliveryAction:
    """What to do about a failed delivery report.

    A record can be refused as TOO_LARGE because of the batch it was in: whoever handles it compares the record's
    own size with the topic's limit, and sends it again if that is not the reason. A broken sequence of an
    idempotent producer is not in its power to mend: only a new producer is.
    """
    if fatal or name == _FATAL:
        return DeliveryAction.STOP
    if name in ("_PURGE_QUEUE", "_PURGE_INFLIGHT"):
        return DeliveryAction.DROPPED
    if name in _TOO_LARGE:
        return DeliveryAction.TOO_LARGE
    return DeliveryAction.RESEND if retriable or name in _LATER else DeliveryAction.STOP


def commit_verdict(name: str, *, fatal: bool, retriable: bool) -> CommitAction:
    """What to do about a commit's error, for the whole commit or for one partition of it."""
    if fatal or name == _FATAL:
        return CommitAction.STOP
    if name in ("NO_ERROR", "_NO_OFFSET"):
        return CommitAction.OK
    if name in _NOT_OURS:
        return CommitAction.LOST
    return CommitAction.RETRY if retriable or name in _LATER else CommitAction.STOP


def consumer_verdict(name: str, *, fatal: bool, retriable: bool) -> ConsumerAction:
    """What to do about an error that `poll()` returned or raised.

    Most of them only inform: the client reconnects and rejoins by itself. So what is not known to need a person
    is logged and carried on with.
    """
    if fatal or name == _FATAL:
        return ConsumerAction.STOP
    if name in ("_MAX_POLL_EXCEEDED", "_ASSIGNMENT_LOST"):
        return ConsumerAction.LOST
    if not retriable and name in _STOP_SENTENCES:
        return ConsumerAction.STOP
    return ConsumerAction.CARRY_ON


def transaction_verdict(*, fatal: bool, requires_abort: bool, retriable: bool) -> TransactionAction:
    """What to do about what a transactional operation raised. Codes mean different things in different places here."""
    if fatal:
        return TransactionAction.STOP
    if requires_abort:
        return TransactionAction.ABORT
    return TransactionAction.RESUME if retriable else TransactionAction.STOP


def right_to_read(name: str, topic: str, group: str) -> Right:
    """The one that a consumer or a commit needed, by the name of the error that it met."""
    return (
        Right("READ", "group", group)
        if name == "GROUP_AUTHORIZATION_FAILED"
        else Right("READ", "topic", topic)
    )


def stop_sentence(name: str, text: str, right: Right | None = None) -> str:
    """What to tell the operator when a Kafka error stops the worker; `text` is `KafkaError.str()`.

    `right`: what was needed for what failed.
    """
    sentence = _STOP_SENTENCES.get(name, "Kafka reports an error that this worker cannot mend.")
    if name == _FATAL and _NEW_PROTOCOLS_REQUEST in text:  # its own error is told in words only
        sentence = (
            "These brokers do not offer KAFKA_GROUP_PROTOCOL=consumer (Kafka 4.0 does): set it to classic."
        )
    elif right is not None and name in ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"):
        sentence = f"Kafka denies this worker's user the right {right}: grant it (kafka-acls)."
    return f"{sentence} ({name}: {text})"
