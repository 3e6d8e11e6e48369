"""The worker's settings: one frozen class, from the environment. README's table is generated from it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from promptbus.settings import KafkaSettings, MetricsSettings, TritonSettings, split_names

_OTHER_PROTOCOLS_KEYS = {
    "classic": frozenset({"group.remote.assignor"}),
    "consumer": frozenset({"heartbeat.interval.ms", "group.protocol.type"}),
}
"""By group protocol: what librdkafka refuses with it. (More of them are refused always.)"""

TRANSACTION_TIMEOUT_MS = 10_000
"""A transaction lasts milliseconds, and what a dead worker left open holds readers and the next owner up."""


class Settings(MetricsSettings, TritonSettings, KafkaSettings):
    """Everything that can be set. Explicit contradictions are refused in a sentence that names both fields."""

    kafka_reply_topics_allowed: str = Field(
        default="", description="Topics that a request's `reply-topic` header may name, comma-separated"
    )
    kafka_start: Literal["earliest", "latest"] = Field(
        default="earliest",
        description="Where a group without committed offsets begins: `earliest` or `latest`",
    )
    kafka_create_topics: bool = Field(default=False, description="Create missing topics at start")
    kafka_group_protocol: Literal["classic", "consumer"] = Field(
        default="classic",
        description="How workers share the partitions: `classic`, or `consumer` (KIP-848, Kafka 4.0 or later), "
        "where time-outs and assignment are the brokers' settings",
    )
    kafka_session_timeout_ms: int = Field(
        default=45_000,
        ge=6_000,
        le=1_800_000,
        description="Kafka gives a silent worker's partitions away after this long (`classic` only)",
    )

    triton_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Longest time one inference call may take"
    )

    batch_max_size: int | None = Field(
        default=None, ge=1, description="Requests in a batch; unset: the model's own maximum"
    )
    batch_max_bytes: int = Field(default=8 << 20, ge=1, le=32 << 20, description="Bytes of input in a batch")
    batch_linger_ms: float = Field(
        default=0.0, ge=0, le=10_000, description="How long a free call slot waits for a fuller batch"
    )
    concurrency_min: int = Field(default=1, ge=1, description="Fewest batches in flight per model")
    concurrency_max: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Most batches in flight per model; equal to the fewest: a fixed number",
    )

    request_max_bytes: int = Field(default=1 << 20, ge=1, le=8 << 20, description="Largest request value")
    request_max_prompt_chars: int = Field(default=262_144, ge=1, description="Longest prompt")
    request_max_tokens: int = Field(
        default=150, ge=1, le=2**31 - 1, description="`max_tokens` of a request that names none"
    )
    request_temperature: float = Field(
        default=0.7, ge=0, le=2, description="`temperature` of a request that names none"
    )
    request_unknown_fields: Literal["reject", "ignore"] = Field(
        default="reject", description="Requests with fields this version does not know: `reject` or `ignore`"
    )

    worker_processes: int = Field(
        default=1, ge=1, le=256, description="Worker processes under the supervisor"
    )
    worker_delivery: Literal["at_least_once", "transactional"] = Field(
        default="at_least_once",
        description="`at_least_once`: a crash may repeat replies; `transactional`: no reply is seen twice, see below",
    )
    worker_ordering: Literal["none", "key"] = Field(
        default="none",
        description="`key`: one request of a record key at a time, replies in their order; `none`: as they finish",
    )
    worker_revoke_s: float = Field(
        default=5.0, gt=0, description="Time to finish dispatched batches of a partition taken away"
    )
    worker_drain_s: float = Field(
        default=20.0, gt=0, description="Time to finish dispatched batches at SIGTERM"
    )
    worker_stuck_s: float | None = Field(
        default=None,
        ge=5,
        le=7200,
        description="A worker that has stood still for this long is killed and started again; "
        "unset: 60, or `TRITON_TIMEOUT_S` + 30 if that is more",
    )
    worker_instance: str | None = Field(
        default=None, description="Name of this worker; unset: `<host>-<METRICS_PORT>`"
    )

    prometheus_multiproc_dir: Path | None = Field(
        default=None, description="Folder for metric files (a fresh one inside it); unset: a private one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`"
    )
    log_format: Literal["json", "text"] | None = Field(
        default=None, description="`json` or `text`; unset: text on a terminal, json elsewhere"
    )
    log_prompts: bool = Field(
        default=False, description="Lines about a failed request show its prompt's first 200 characters"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.concurrency_min > self.concurrency_max:
            raise ValueError(
                f"CONCURRENCY_MIN ({self.concurrency_min}) is above CONCURRENCY_MAX ({self.concurrency_max})"
            )
        if self.batch_max_bytes < self.request_max_bytes:
            raise ValueError(
                f"BATCH_MAX_BYTES ({self.batch_max_bytes}) is below REQUEST_MAX_BYTES ({self.request_max_bytes}): "
                "the largest request would fit no batch"
            )
        classic = self.kafka_group_protocol == "classic"
        if not classic and "kafka_session_timeout_ms" in self.model_fields_set:
            raise ValueError(
                "KAFKA_SESSION_TIMEOUT_MS may not be set with KAFKA_GROUP_PROTOCOL=consumer: the brokers decide it "
                "(group.consumer.session.timeout.ms)"
            )
        for field in ("kafka_client", "kafka_consumer"):
            for name in getattr(self, field):
                if name.lower().replace("_", ".") in _OTHER_PROTOCOLS_KEYS[self.kafka_group_protocol]:
                    raise ValueError(
                        f"{field.upper()}__{name.upper()} may not be set with "
                        f"KAFKA_GROUP_PROTOCOL={self.kafka_group_protocol}: it belongs to the other protocol"
                    )
        if classic and self.worker_revoke_s * 1000 >= self.kafka_session_timeout_ms:
            raise ValueError(
                f"WORKER_REVOKE_S ({self.worker_revoke_s:g} s) must be below "
                f"KAFKA_SESSION_TIMEOUT_MS ({self.kafka_session_timeout_ms} ms)"
            )
        if self.worker_delivery == "transactional":
            self._check_transactions(classic=classic)
        if self.worker_stuck_s is not None and self.worker_stuck_s <= self.triton_timeout_s:
            raise ValueError(
                f"WORKER_STUCK_S ({self.worker_stuck_s:g} s) must be above TRITON_TIMEOUT_S "
                f"({self.triton_timeout_s:g} s): a call that is only slow would count as stuck"
            )
        for name in ("kafka_request_topic", "kafka_dead_letter_topic"):
            topic = getattr(self, name)
            if topic in self.reply_topics_allowed:
                raise ValueError(f"KAFKA_REPLY_TOPICS_ALLOWED names {topic!r}, which is {name.upper()}")
        return self

    def _check_transactions(self, *, classic: bool) -> None:
        if self.worker_instance is None and self.metrics_port == 0:
            raise ValueError(
                "WORKER_DELIVERY=transactional needs a name that is this supervisor's alone and stays the same, which "
                "METRICS_PORT=0 does not give: set WORKER_INSTANCE"
            )
        timeout_ms = self.transaction_timeout_ms
        if classic and timeout_ms > self.kafka_session_timeout_ms:
            raise ValueError(
                f"KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS ({timeout_ms}) must not be above "
                f"KAFKA_SESSION_TIMEOUT_MS ({self.kafka_session_timeout_ms})"
            )
        message_ms = self.producer_overrides().get("message.timeout.ms")
        if message_ms is not None and not 0 < int(message_ms) <= timeout_ms:
            raise ValueError(
                f"KAFKA_PRODUCER__MESSAGE_TIMEOUT_MS ({message_ms}) must not be above "
                f"KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS ({timeout_ms})"
            )

    @property
    def transaction_timeout_ms(self) -> int:
        """After how long the brokers abort a transaction; no longer than a session, so that no zombie holds one."""
        given = self.producer_overrides().get("transaction.timeout.ms")
        return min(TRANSACTION_TIMEOUT_MS, self.kafka_session_timeout_ms) if given is None else int(given)

    @property
    def reply_topics_allowed(self) -> frozenset[str]:
        """Exact topic names that a `reply-topic` header may use, beside the default reply topic."""
        return frozenset(split_names(self.kafka_reply_topics_allowed))

    @property
    def stuck_s(self) -> float:
        """After how long a worker counts as stuck; by default no legitimate wait is as long."""
        return self.worker_stuck_s or max(60.0, self.triton_timeout_s + 30.0)

    @property
    def instance(self) -> str:
        """This worker's name in logs, client ids and dead letters."""
        return self.worker_instance or f"{socket.gethostname()}-{self.metrics_port}"
