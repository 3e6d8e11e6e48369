"""A reply on the wire: an answer or an error, encoded by the worker and decoded by the client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar

from .codes import ErrorCode
from .json_object import JsonObject, NotAnObject, read_exactly, write_object
from .limits import Limits


class Usage(NamedTuple):
    """Token counts by the model's own tokenizer; None where the model does not say."""

    prompt_tokens: Annotated[int | None, Limits("Tokens of the prompt.", minimum=0)]
    completion_tokens: Annotated[int | None, Limits("Tokens of the response.", minimum=0)]
    total_tokens: Annotated[int | None, Limits("Both together.", minimum=0)]


class Timings(NamedTuple):
    """Milliseconds. Clocks that differ may make one negative; a reply says 0 then."""

    queue_ms: Annotated[float, Limits("From polled to dispatched.", minimum=0)]
    inference_ms: Annotated[float, Limits("The call to the model.", minimum=0)]
    total_ms: Annotated[float, Limits("From the record's timestamp to the reply's creation.", minimum=0)]


class ReplyError(NamedTuple):
    """Why there is no answer. `code` is a str, since a newer worker may know more codes than this reader."""

    code: Annotated[str, Limits("One of the closed set of codes.", min_length=1)]
    message: Annotated[str, Limits("A sentence for the sender.")]
    retryable: Annotated[bool, Limits("Whether sending the same request again can succeed.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply as its reader sees it: `response` with status "ok", `error` with status "error", never both.

    `usage` is all None, `timings` and `attempts` are zero where the reply does not say.
    """

    request_id: Annotated[str, Limits("The request's own, its header's, or <topic>-<partition>-<offset>.")]
    reply_id: Annotated[
        str, Limits("The same on every delivery of the request: keep the first, skip others.")
    ]
    status: Literal["ok", "error"]
    response: str | None
    error: ReplyError | None
    finish_reason: Annotated[str | None, Limits("The model's own word; null if it does not say.")]
    usage: Usage
    model: Annotated[str | None, Limits("The model asked; null if none was chosen.")]
    model_version: str | None
    metadata: Annotated[JsonObject, Limits("The request's, as it was sent.")]
    timings: Timings
    attempts: Annotated[int, Limits("Calls to the model that count.", minimum=0)]

    @property
    def ok(self) -> bool:
        """Whether this is an answer."""
        return self.status == "ok"


class InvalidReply(ValueError):
    """The bytes are not a reply; the text says why and quotes nothing of it."""


def encode_answer(
    *,
    request_id: str,
    reply_id: str,
    response: str,
    finish_reason: str | None,
    usage: Usage,
    model: str,
    model_version: str,
    metadata: JsonObject,
    timings: tuple[float, float, float],
    attempts: int,
) -> bytes:
    """The value of a reply with status "ok". `timings`: the values of a `Timings`."""
    prompt_tokens, completion_tokens, total_tokens = usage
    return write_object(
        {
            "request_id": request_id,
            "reply_id": reply_id,
            "status": "ok",
            "response": response,
            "finish_reason": finish_reason,
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": total_tokens,
            },
            "model": model,
            "model_version": model_version,
            "metadata": metadata or {},
            "timings": _timings(timings),
            "attempts": attempts,
        },
        "metadata",
    )


def encode_error(
    *,
    request_id: str,
    reply_id: str,
    code: ErrorCode,
    message: str,
    metadata: JsonObject,
    model: str | None = None,
    timings: tuple[float, float, float],
    attempts: int,
) -> bytes:
    """The value of a reply with status "error". `model` is None if no model was chosen yet; `timings` as of an answer."""
    return write_object(
        {
            "request_id": request_id,
            "reply_id": reply_id,
            "status": "error",
            "error": {"code": code.value, "message": message, "retryable": code.retryable},
            "model": model,
            "metadata": metadata or {},
            "timings": _timings(timings),
            "attempts": attempts,
        },
        "metadata",
    )


def decode_reply(value: bytes | None) -> Reply:
    """The reply in a record's value; unknown fields are ignored. Raises InvalidReply, never anything else."""
    try:
        body = read_exactly(value, "metadata")
    except NotAnObject as refusal:
        raise InvalidReply(str(refusal)) from None
    status = _get(body, "status", str)
    if status == "ok":
        response, error = _require(body, "response", str), None
    elif status == "error":
        fields = _require(body, "error", dict)
        response, error = (
            None,
            ReplyError(
                _require(fields, "code", str),
                _require(fields, "message", str),
                _require(fields, "retryable", bool),
            ),
        )
    else:
        raise InvalidReply('status must be "ok" or "error"')
    usage = _get(body, "usage", dict) or {}
    timings = _get(body, "timings", dict) or {}
    return Reply(
        request_id=_require(body, "request_id", str),
        reply_id=_require(body, "reply_id", str),
        status="ok" if error is None else "error",
        response=response,
        error=error,
        finish_reason=_get(body, "finish_reason", str),
        usage=Usage(
            _get(usage, "prompt_tokens", int),
            _get(usage, "completion_tokens", int),
            _get(usage, "total_tokens", int),
        ),
        model=_get(body, "model", str),
        model_version=_get(body, "model_version", str),
        metadata=_get(body, "metadata", dict) or {},
        timings=Timings(*(_milliseconds(timings, name) for name in Timings._fields)),
        attempts=_get(body, "attempts", int) or 0,
    )


Kind = TypeVar("Kind")


def _get(fields: Mapping[str, object], name: str, kind: type[Kind]) -> Kind | None:
    value = fields.get(name)
    # Not isinstance: true is no integer.
    if value is not None and type(value) is not kind:
        raise InvalidReply(f"{name} must be of type {kind.__name__}")
    return value


def _require(fields: Mapping[str, object], name: str, kind: type[Kind]) -> Kind:
    value = _get(fields, name, kind)
    if value is None:
        raise InvalidReply(f"{name} is missing")
    return value


def _milliseconds(fields: Mapping[str, object], name: str) -> float:
    value = fields.get(name)
    if type(value) is int:
        return float(value)
    return _get(fields, name, float) or 0.0


def _timings(timings: tuple[float, float, float]) -> dict[str, float]:
    """Rounded to microseconds, which round(x, 3) would do in five times the time; clocks that differ give 0."""
    queue_ms, inference_ms, total_ms = timings
    return {
        "queue_ms": int(queue_ms * 1000.0 + 0.5) / 1000.0 if queue_ms > 0.0 else 0.0,
        "inference_ms": int(inference_ms * 1000.0 + 0.5) / 1000.0 if inference_ms > 0.0 else 0.0,
        "total_ms": int(total_ms * 1000.0 + 0.5) / 1000.0 if total_ms > 0.0 else 0.0,
    }
