"""What travels through the worker: a polled record, and the request made of it."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from promptbus.messages import ErrorCode, Headers, JsonObject, Usage
from promptbus_worker.ledger import Ownership, Place
from promptbus_worker.model import Inputs
from promptbus_worker.outcomes import CallFailure

_NOTHING: JsonObject = {}  # never written to
_NO_INPUTS: Inputs = {}


class Record:
    """A Kafka record, copied out of librdkafka's memory. Nobody changes it.

    `problem`: why headers is None although the record has some, a sentence for its sender.
    """

    __slots__ = (
        "headers",
        "key",
        "offset",
        "ownership",
        "polled_at",
        "problem",
        "size",
        "timestamp_ms",
        "value",
    )

    def __init__(
        self,
        ownership: Ownership,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        size: int,
        polled_at: float,
        problem: str | None = None,
    ) -> None:
        self.ownership = ownership
        self.offset = offset
        self.timestamp_ms = timestamp_ms
        self.key = key
        self.value = value
        self.headers = headers
        self.size = size
        self.polled_at = polled_at
        self.problem = problem

    @property
    def place(self) -> Place:
        """Partition and offset."""
        return self.ownership.partition, self.offset


class Phase(Enum):
    """Where a request is. It moves ADMITTED → WAITING ⇄ IN_FLIGHT → ANSWERED, or is DROPPED while it waits."""

    ADMITTED = auto()
    WAITING = auto()
    IN_FLIGHT = auto()
    ANSWERED = auto()
    DROPPED = auto()


# Until Python 3.12 looking a member up in its class takes 0.2 µs, which the path would do ten times per request.
ADMITTED, WAITING, IN_FLIGHT, ANSWERED = Phase.ADMITTED, Phase.WAITING, Phase.IN_FLIGHT, Phase.ANSWERED


class Pending:
    """A record in hand on its way to exactly one reply.

    Owned by the event loop. Times are monotonic seconds. `expires_at` is None without a deadline.
    `attempts` counts the calls that carried it, may have run, and were not narrowed further.
    It does not leave before `held_until`. `suspect_since` is when a call first failed with this request alone, `failed_since` when the first call began that
    timed out or broke: guilt needs a witness from after that (`runner`). `crash_suspect`: a process died while it worked
    on this one, so nothing else may be in flight with it.
    """

    # Slots that are filled at once cost 0.2 µs more than defaults of the class, and save 1 µs and more as they are used.
    __slots__ = (
        "answered_at",
        "attempts",
        "code",
        "correlation_id",
        "crash_suspect",
        "dispatched_at",
        "expires_at",
        "failed_since",
        "failures_alone",
        "held_until",
        "inference_s",
        "inputs",
        "last_failure",
        "metadata",
        "model",
        "phase",
        "record",
        "reply_id",
        "reply_topic",
        "request_id",
        "signature",
        "size",
        "suspect_since",
        "traceparent",
        "tracestate",
        "unacknowledged",
        "usage",
        "waiting_since",
    )

    def __init__(self, record: Record, request_id: str, reply_id: str, reply_topic: str) -> None:
        self.record = record
        self.request_id = request_id
        self.reply_id = reply_id
        self.reply_topic = reply_topic
        self.correlation_id: bytes | None = None
        self.traceparent: bytes | None = None
        self.tracestate: bytes | None = None
        self.metadata = _NOTHING
        self.model: str | None = None
        self.inputs = _NO_INPUTS
        self.signature: tuple[str, ...] = ()
        self.size = 0
        self.expires_at: float | None = None
        self.phase = ADMITTED
        self.crash_suspect = False
        self.attempts = 0
        self.failures_alone = 0
        self.suspect_since: float | None = None
        self.failed_since: float | None = None
        self.held_until = 0.0
        self.last_failure: CallFailure | None = None
        self.waiting_since = 0.0
        self.dispatched_at: float | None = None
        self.inference_s = 0.0
        self.answered_at = 0.0
        self.code: ErrorCode | None = None
        self.usage: Usage | None = None
        self.unacknowledged = 0


def where(record: Record) -> dict[str, object]:
    """A record's place, for the log."""
    owner = record.ownership
    return {
        "topic": owner.topic,
        "partition": owner.partition,
        "offset": record.offset,
        "epoch": owner.epoch,
    }


def about(request: Pending) -> dict[str, object]:
    """A request, for the log, which leaves the prompt out unless LOG_PROMPTS asks for it."""
    return {
        "request_id": request.request_id,
        **where(request.record),
        "prompt": request.inputs.get("prompt"),
    }


class Rejection(NamedTuple):
    """A record that is answered without inference."""

    pending: Pending
    code: ErrorCode
    message: str
    dead_letter: bool

    @property
    def record(self) -> Record:
        """The record that is answered so."""
        return self.pending.record
