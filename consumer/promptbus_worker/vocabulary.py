"""Every metric there is, declared once: name, kind, help, labels with their closed sets, buckets.

Pure data. `metrics.py` makes the worker's series of it, the supervisor its own; dashboards, alert rules and the
metrics reference are checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from promptbus.messages.codes import ErrorCode

PREFIX = "promptbus_"
UNKNOWN_MODEL = "unknown"  # of requests that are refused before a served model is known

CODES = ("ok", *(code.value for code in ErrorCode))
CALL_RESULTS = ("ok", "model_error", "timeout", "overloaded", "connection", "bad_output")
TOKEN_KINDS = ("prompt", "completion", "total")
CLOSED_BY = ("size", "slot", "linger", "bytes", "drain")
RETRY_REASONS = ("overloaded", "timeout", "connection", "bisect")
COMMIT_RESULTS = ("ok", "lost", "error")
REBALANCE_KINDS = ("assign", "revoke", "lost")

# The idle path takes 3 to 5 ms, so the low end is fine; 60 s is past every time-out's default.
_FINE_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
LATENCY_S = (*_FINE_S, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
# Measured from the record's timestamp, a backlog counts: minutes and hours are real values here.
AGE_S = (*LATENCY_S, 300.0, 1800.0, 7200.0)
TOKENS = (1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0)
BATCH_SIZES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)


@dataclass(frozen=True, slots=True)
class Label:
    """One label and its closed set. `values` None: the served models, known at start; then `also` are added."""

    name: str
    values: tuple[str, ...] | None
    also: tuple[str, ...] = ()

    def domain(self, models: Sequence[str]) -> tuple[str, ...]:
        """Every value this label can have."""
        return (*models, *self.also) if self.values is None else self.values


@dataclass(frozen=True, slots=True)
class Series:
    """One metric. `mode` (gauges only) says how the values of several processes become one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    mode: Literal["livesum", "livemax"] | None = None

    @property
    def full_name(self) -> str:
        """The name as scraped, without `_bucket`, `_sum`, `_count`."""
        return PREFIX + self.name

    def label_sets(self, models: Sequence[str]) -> list[tuple[str, ...]]:
        """Every combination of label values, in the order of `labels`; [()] without labels."""
        return list(product(*(label.domain(models) for label in self.labels)))


_SERVED = Label("model", None)
_MODEL = Label("model", None, also=(UNKNOWN_MODEL,))
_CODE = Label("code", CODES)

WORKER_SERIES: tuple[Series, ...] = (
    Series("requests_total", "counter", "Requests answered, by outcome", (_MODEL, _CODE)),
    Series(
        "inference_calls_total",
        "counter",
        "Calls to Triton, by result",
        (_SERVED, Label("result", CALL_RESULTS)),
    ),
    Series("inference_duration_seconds", "histogram", "Time of one call to Triton", (_SERVED,), LATENCY_S),
    Series(
        "response_duration_seconds",
        "histogram",
        "From the request's record timestamp until its reply was acknowledged",
        (_MODEL,),
        AGE_S,
    ),
    Series("queue_duration_seconds", "histogram", "From polled to dispatched", (_MODEL,), LATENCY_S),
    Series(
        "reply_duration_seconds",
        "histogram",
        "From handing a reply to the producer until the broker acknowledged it",
        (_MODEL,),
        LATENCY_S,
    ),
    Series("tokens_total", "counter", "Tokens of answered requests", (_SERVED, Label("kind", TOKEN_KINDS))),
    Series(
        "request_tokens", "histogram", "Tokens of one request", (_SERVED, Label("kind", TOKEN_KINDS)), TOKENS
    ),
    Series("batch_size", "histogram", "Requests in one batch", (_SERVED,), BATCH_SIZES),
    Series(
        "batches_total",
        "counter",
        "Batches dispatched, by why each closed",
        (_SERVED, Label("closed_by", CLOSED_BY)),
    ),
    Series(
        "in_flight_requests",
        "gauge",
        "Requests dispatched, or answered, whose replies are not acknowledged yet",
        mode="livesum",
    ),
    Series("in_flight_batches", "gauge", "Calls to Triton under way", mode="livesum"),
    Series(
        "oldest_in_flight_seconds",
        "gauge",
        "Since the request in flight that was dispatched first was dispatched; 0 without any",
        mode="livemax",
    ),
    Series("waiting_requests", "gauge", "Requests admitted and not dispatched", mode="livesum"),
    Series("concurrency_limit", "gauge", "Batches that may be in flight if they are full", mode="livesum"),
    Series(
        "breaker_open", "gauge", "1 while a worker holds calls to a model back", mode="livemax"
    ),  # a sum of switches says nothing about "is one open"
    Series(
        "dead_letter_budget_exhausted",
        "gauge",
        "1 while a worker holds calls back because nearly every outcome is a dead letter",
        mode="livemax",
    ),
    Series("paused_partitions", "gauge", "Partitions assigned and paused", mode="livesum"),
    Series("assigned_partitions", "gauge", "Partitions assigned", mode="livesum"),
    Series(
        "retries_total",
        "counter",
        "Requests to be called again, by reason",
        (Label("reason", RETRY_REASONS),),
    ),
    Series("dead_letters_total", "counter", "Dead letters written, by code", (Label("reason", CODES[1:]),)),
    Series(
        "commits_total",
        "counter",
        "Offsets of a partition committed, by result",
        (Label("result", COMMIT_RESULTS),),
    ),
    Series("rebalances_total", "counter", "Rebalance callbacks, by kind", (Label("kind", REBALANCE_KINDS),)),
    Series(
        "redeliveries_skipped_total",
        "counter",
        "Records read again and skipped, for they were settled before a restart or a rebalance",
    ),
)

# The worker's, for only it may load librdkafka. The values of its labels are facts of the installation, one each.
BUILD_INFO = Series(
    "build_info",
    "gauge",
    "1; the versions are its labels",
    (Label("version", ()), Label("python", ()), Label("librdkafka", ())),
    mode="livemax",
)

# The supervisor's own; it is one process, so they name no mode.
FLEET_SERIES: tuple[Series, ...] = (
    Series("workers", "gauge", "Worker processes running"),
    Series("worker_restarts_total", "counter", "Worker processes started again after they ended unasked"),
    Series(
        "metrics_files_corrupt",
        "gauge",
        "Workers' metric files that cannot be read; their values are missing",
    ),
    Series(
        "time_to_drain_seconds",
        "gauge",
        "Lag divided by how fast it shrank within the last minute; 0 without lag, +Inf if it does not shrink",
    ),
)
# The supervisor's, and only of what there is: a partition that is owned, a process that runs.
SLOT_MEMORY = Series(
    "worker_resident_memory_bytes", "gauge", "Resident memory of a worker process", (Label("slot", ()),)
)
_PARTITION = (Label("topic", ()), Label("partition", ()))
LAG_SERIES: tuple[Series, ...] = (
    Series(
        "lag_records", "gauge", "Offsets between the next one to commit and the partition's end", _PARTITION
    ),
    Series(
        "lag_seconds",
        "gauge",
        "Age of the partition's oldest record that is not settled; 0 without lag",
        _PARTITION,
    ),
)
SUPERVISOR_SERIES: tuple[Series, ...] = (*FLEET_SERIES, SLOT_MEMORY, *LAG_SERIES)

EVERY_SERIES: tuple[Series, ...] = (*WORKER_SERIES, BUILD_INFO, *SUPERVISOR_SERIES)
