"""librdkafka's errors as sentences, and its log on Python's logging instead of stderr."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException

from promptbus.errors import KafkaUnavailable, NotAllowed, SettingsRefused
from promptbus.rights import Right, lacking
from promptbus.settings import KafkaSettings

if TYPE_CHECKING:
    from promptbus.listener import Address

logging.getLogger("promptbus").addHandler(logging.NullHandler())  # without one, warnings go to stderr
LOG = logging.getLogger("promptbus.kafka")

# librdkafka waits 100 ms, doubled each time, before it tries again, also while it first connects: starting at 10 ms
# makes a client usable 40 ms sooner.
QUICK_RETRIES: Final[Mapping[str, int]] = {
    "reconnect.backoff.ms": 10,
    "reconnect.backoff.max.ms": 2_000,
    "retry.backoff.ms": 10,
    "retry.backoff.max.ms": 1_000,
}

# librdkafka names its own errors, as opposed to a broker's, with an underscore.
ALL_BROKERS_DOWN = KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001
FAIL = KafkaError._FAIL  # noqa: SLF001
FATAL = KafkaError._FATAL  # noqa: SLF001

NOT_ALLOWED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
UNKNOWN_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    }
)
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
LOGIN_FAILED = KafkaError._AUTHENTICATION  # noqa: SLF001
LOGIN_REFUSED = frozenset(
    {
        KafkaError.SASL_AUTHENTICATION_FAILED,
        LOGIN_FAILED,
        KafkaError._SSL,  # noqa: SLF001
    }
)
UNREACHABLE = frozenset(
    {
        ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
    }
)
FINDING_COORDINATOR = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
# Between two leaders, or before all brokers have heard of the newest: a second try soon finds it.
PASSING = (
    UNKNOWN_TOPIC
    | FINDING_COORDINATOR
    | {
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)


# librdkafka begins an error of a connection with `protocol://host:port/id: `, where a bootstrap server's id is a word.
_BROKER = re.compile(r"\w+://(\S+)/\d+: ")


def error_of(exception: KafkaException) -> KafkaError:
    """The KafkaError that a KafkaException carries."""
    error = exception.args[0]
    if isinstance(error, KafkaError):
        return error
    return KafkaError(FAIL, str(error))


def passes(error: KafkaError) -> bool:
    """Whether a second try may not meet it. librdkafka's own flag is not set for what a broker answers to a question."""
    return error.retriable() or error.code() in PASSING


def describe(error: KafkaError) -> str:
    """librdkafka's words and the code's name, on one line."""
    return f"{' '.join(str(error.str()).split())} ({error.name()})"


class ConnectionNotes:
    """Remembers what librdkafka said about its connections: the calls themselves only say "timed out"."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._named: dict[str, None] = {}

    def note(self, error: KafkaError) -> None:
        """For `error_cb`: called on whichever thread polls the client."""
        LOG.debug("%s", describe(error))
        if broker := _BROKER.match(error.str() or ""):
            self._named[broker[1]] = None
        # "all brokers down" follows every real reason and says less
        if self._last is None or error.code() != ALL_BROKERS_DOWN:
            self._last = error

    def named_brokers(self) -> Sequence[Address]:
        """Those that the cluster named, and that a connection to failed.

        Once librdkafka knows them it drops its bootstrap connections: if none of the brokers can be used, a question
        about the cluster is answered only while it connects anew, which is luck.
        """
        from promptbus.listener import addresses_of

        return addresses_of(",".join(self._named))

    def unavailable(self, settings: KafkaSettings, timeout_s: float) -> KafkaUnavailable:
        """The error for "nobody answered within `timeout_s` seconds". Blocks for some seconds at most."""
        bootstrap = settings.kafka_bootstrap
        why = self.misunderstanding(settings)
        if why is not None:
            return KafkaUnavailable(why)
        said = "" if self._last is None else f" ({describe(self._last)})"
        return KafkaUnavailable(
            f"no Kafka broker answered at {bootstrap} within {timeout_s:g} s{said}: "
            "is it running, and is KAFKA_BOOTSTRAP right?"
        )

    def misunderstanding(self, settings: KafkaSettings, timeout_s: float = 5.0) -> str | None:
        """A sentence if a broker is there but TLS or login do not come about. `timeout_s`: for each question to it."""
        # only now: a client that gets its connection needs none of Python's ssl
        from promptbus.listener import misunderstanding, misunderstandings

        last = self._last
        config = settings.client_config()
        sentence = misunderstanding(
            config,
            login_failed=last is not None and last.code() == LOGIN_FAILED,
            timeout_s=timeout_s,
        )
        if sentence is None:
            sentence = next(iter(misunderstandings(self.named_brokers(), config, timeout_s).values()), None)
        if sentence is None and last is not None and last.code() in LOGIN_REFUSED:
            return (
                f"Kafka at {settings.kafka_bootstrap} refused the connection: {describe(last)}; "
                "check KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_… and KAFKA_SSL_…"
            )
        return sentence


def refused(error: KafkaError, settings: KafkaSettings, *rights: Right) -> NotAllowed | None:
    """The error to raise if Kafka's access rules forbid what needs these rights, else None."""
    if error.code() in NOT_ALLOWED:
        return NotAllowed(f"{lacking(settings, *rights)} ({error.name()})")
    return None


def settings_refused(exception: KafkaException) -> SettingsRefused:
    """The error for a client that librdkafka would not even make."""
    return SettingsRefused(
        f"librdkafka refuses the settings: {describe(error_of(exception))}; "
        "check KAFKA_CLIENT__…, KAFKA_CONSUMER__…, KAFKA_PRODUCER__…, KAFKA_SASL_… and KAFKA_SSL_…"
    )
