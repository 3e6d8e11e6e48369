"""Bytes → a request to run, or a rejection that says what is wrong. Pure: both clocks are passed in.

Every record comes out of here with a request id, so that even garbage gets its reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from promptbus.messages import (
    ErrorCode,
    InvalidRequest,
    Json,
    NotARequest,
    Request,
    RequestHeaders,
    decode_request,
    quoted,
    read_request_headers,
    reply_id,
)
from promptbus_worker.model import ModelSpec, TensorSpec, TensorValue
from promptbus_worker.record import Pending, Record, Rejection

_INTEGER_BITS = {
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
}
_FLOATS = {"FP16", "FP32", "FP64"}
# These have fields of their own in a request; letting `parameters` set them would give two truths.
_OWN_FIELDS = frozenset({"prompt", "max_tokens", "temperature"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Admission's part of the settings (DESIGN §5)."""

    max_bytes: int
    max_prompt_chars: int
    default_max_tokens: int
    default_temperature: float
    ignore_unknown_fields: bool
    reply_topic: str
    reply_topics_allowed: frozenset[str]


class _Refused(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Admission:
    """Turns records into requests for the served models."""

    def __init__(self, limits: Limits, specs: Mapping[str, ModelSpec], default_model: str) -> None:
        """`specs` is read at each call, so a model that was read again takes effect at once."""
        self._limits = limits
        self._specs = specs
        self._default_model = default_model

    def admit(self, record: Record, *, now: float, wall_ms: float) -> Pending | Rejection:
        """`now` is monotonic seconds, `wall_ms` Unix milliseconds; the two meet only here (DESIGN rule 7)."""
        limits = self._limits
        value, headers, problem = record.value, record.headers, record.problem
        pending = self._nameless(record)
        deadline_ms: int | None = None
        if headers:
            asked = read_request_headers(headers)
            # First where replies go: whatever else is wrong, its sender reads it there.
            topic_problem = self._address(pending, asked)
            problem = problem or asked.problem or topic_problem
            deadline_ms = asked.deadline_ms
        try:
            if value is not None and len(value) > limits.max_bytes:
                raise _Refused(
                    ErrorCode.TOO_LARGE,
                    f"the request has {len(value)} bytes; the limit is {limits.max_bytes}",
                )
            request = decode_request(value, ignore_unknown=limits.ignore_unknown_fields)
            if request.request_id is not None:
                pending.request_id = request.request_id
            pending.metadata = request.metadata
            if problem is not None:
                raise _Refused(ErrorCode.INVALID_REQUEST, problem)
            self._fill(pending, request)
            if deadline_ms is not None:
                pending.expires_at = now + (deadline_ms - wall_ms) / 1000
                if pending.expires_at <= now:
                    raise _Refused(ErrorCode.EXPIRED, "the deadline had passed before the request was read")
        except InvalidRequest as error:
            if error.request_id is not None:
                pending.request_id = error.request_id
            pending.metadata = error.metadata
            return Rejection(_named(pending), error.code, error.message, isinstance(error, NotARequest))
        except _Refused as refused:
            return Rejection(_named(pending), refused.code, refused.message, dead_letter=False)
        return pending if pending.request_id else _named(pending)

    def unread(self, record: Record) -> Pending:
        """A record whose value is better not touched: all that its headers say of the reply."""
        pending = self._nameless(record)
        self._address(pending, read_request_headers(record.headers))
        return _named(pending)

    def _address(self, pending: Pending, headers: RequestHeaders) -> str | None:
        """Take over what headers say of the reply. What is wrong with the header reply-topic, if anything."""
        pending.request_id = headers.request_id or ""
        pending.correlation_id = headers.correlation_id
        pending.traceparent = headers.traceparent
        pending.tracestate = headers.tracestate
        topic = headers.reply_topic
        if topic is None or topic == self._limits.reply_topic:
            return None
        if topic not in self._limits.reply_topics_allowed:
            return "header reply-topic names a topic that is not in KAFKA_REPLY_TOPICS_ALLOWED"
        pending.reply_topic = topic
        return None

    def bare(self, record: Record) -> Pending:
        """What any record gets, whatever is in it: the derived request id and the default reply topic."""
        return _named(self._nameless(record))

    def _nameless(self, record: Record) -> Pending:
        owner = record.ownership
        reply = reply_id(owner.topic, owner.partition, record.offset, record.timestamp_ms)
        return Pending(record, "", reply, self._limits.reply_topic)

    def _fill(self, pending: Pending, request: Request) -> None:
        limits = self._limits
        text, _, max_tokens, temperature, model, parameters, _ = request
        if len(text) > limits.max_prompt_chars:
            raise _Refused(
                ErrorCode.TOO_LARGE,
                f"prompt has {len(text)} characters; the limit is {limits.max_prompt_chars}",
            )
        if model is None:
            model = self._default_model
        spec = self._specs.get(model)
        if spec is None:
            raise _Refused(
                ErrorCode.MODEL_NOT_FOUND, f"this model is not served here; served: {', '.join(self._specs)}"
            )
        pending.model = model
        prompt = text.encode()
        inputs: dict[str, TensorValue] = {"prompt": prompt}
        pending.size = len(prompt) + 16  # the two numbers, and the length in front of the prompt
        # Defaults are filled in here, so that requests with and without the field can share a batch.
        _set(inputs, spec, "max_tokens", max_tokens, limits.default_max_tokens)
        _set(inputs, spec, "temperature", temperature, limits.default_temperature)
        if parameters:
            pending.size += self._add_parameters(inputs, spec, parameters)
            pending.signature = tuple(sorted(n for n, value in parameters.items() if value is not None))
        pending.inputs = inputs

    def _add_parameters(
        self, inputs: dict[str, TensorValue], spec: ModelSpec, parameters: Mapping[str, Json]
    ) -> int:
        size = 0
        for name, value in parameters.items():
            if value is None:
                continue  # as everywhere: absent
            tensor = spec.inputs.get(name)
            if name in _OWN_FIELDS:
                raise _Refused(ErrorCode.INVALID_REQUEST, f"parameters.{name}: use the field {name} instead")
            if tensor is None or not tensor.optional:
                taken = ", ".join(
                    sorted(n for n, t in spec.inputs.items() if t.optional and n not in _OWN_FIELDS)
                )
                raise _Refused(
                    ErrorCode.INVALID_REQUEST,
                    f"parameters.{quoted(name)[1:-1]} is not a parameter of {spec.name}; it takes: {taken or 'none'}",
                )
            inputs[name] = tensor_value(tensor, value)
            size += len(value.encode()) + 4 if isinstance(value, str) else 8
        return size


def _named(pending: Pending) -> Pending:
    """With an id: where neither the request nor its header gave one, the record's place (DESIGN §4)."""
    if not pending.request_id:
        owner = pending.record.ownership
        pending.request_id = f"{owner.topic}-{owner.partition}-{pending.record.offset}"
    return pending


def _set(
    inputs: dict[str, TensorValue],
    spec: ModelSpec,
    name: str,
    given: TensorValue | None,
    default: TensorValue,
) -> None:
    if name in spec.inputs:
        inputs[name] = given if given is not None else default
    elif given is not None:
        raise _Refused(ErrorCode.INVALID_REQUEST, f"{spec.name} takes no {name}")


def tensor_value(tensor: TensorSpec, value: Json) -> TensorValue:
    """A parameter as what its tensor holds. Raises the refusal that tells the sender what it must be."""
    datatype = tensor.datatype
    if datatype == "BYTES" and isinstance(value, str):
        return value.encode()
    if datatype == "BOOL" and isinstance(value, bool):
        return value
    if datatype in _FLOATS and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    bounds = _INTEGER_BITS.get(datatype)
    if bounds and isinstance(value, int) and not isinstance(value, bool) and bounds[0] <= value <= bounds[1]:
        return value
    wanted = {"BYTES": "a string", "BOOL": "true or false"}.get(datatype)
    if wanted is None:
        wanted = "a number" if datatype in _FLOATS else f"an integer that fits {datatype}"
    raise _Refused(ErrorCode.INVALID_REQUEST, f"parameters.{tensor.name} must be {wanted}")
