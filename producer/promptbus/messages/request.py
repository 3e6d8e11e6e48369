"""A request on the wire: bytes to `Request` and back.

The promise: any bytes give a Request, an InvalidRequest or a NotARequest, never another exception.

    ValueError
      InvalidRequest        a JSON object, but not one of ours; the reply says which field and why
        NotARequest         not a JSON object at all; also dead-lettered

Another dialect (chat bodies, tensors) is another function from bytes to Request beside `decode_request`: json_object.py
reads the object, and only the rules for the fields are its own.
"""

import json
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, NamedTuple, TypeGuard

from .codes import ErrorCode
from .json_object import Json, JsonObject, NotAnObject, read_object, require_json, write_object
from .limits import Limits

MAX_REQUEST_ID_BYTES: Final = 256
MAX_MAX_TOKENS: Final = 2**31 - 1
MAX_TEMPERATURE: Final = 2

_NAMED = 64  # characters of a sender's name for something that a sentence quotes


# A default that nobody can fill by accident. It is no dict, but false like an empty one, and never encoded. Its type does not
# say that it is one: compiled code would insist.
_NOTHING: Any = MappingProxyType({})


class Request(NamedTuple):
    """One prompt and what the sender wants done with it. None: not given, the worker's default holds."""

    prompt: Annotated[str, Limits("The text to answer.", min_length=1)]
    request_id: Annotated[
        str | None,
        Limits(
            "Chosen by the sender and repeated on the reply: 1 to 256 bytes of UTF-8.",
            min_length=1,
            max_length=MAX_REQUEST_ID_BYTES,
        ),
    ] = None
    max_tokens: Annotated[
        int | None, Limits("Most tokens to answer with. 1.0 is refused.", minimum=1, maximum=MAX_MAX_TOKENS)
    ] = None
    temperature: Annotated[
        float | None, Limits("Sampling temperature.", minimum=0, maximum=MAX_TEMPERATURE)
    ] = None
    model: Annotated[str | None, Limits("One of the models served; the first if absent.", min_length=1)] = (
        None
    )
    parameters: Annotated[JsonObject, Limits("Values for the model's optional inputs, by name.")] = _NOTHING
    metadata: Annotated[JsonObject, Limits("Anything; repeated on the reply.")] = _NOTHING


class InvalidRequest(ValueError):
    """A request that cannot be accepted.

    `message` is a sentence for the sender that never quotes the prompt; `request_id` and `metadata` are what could
    still be read of them, so that the reply can echo them.
    """

    code: ClassVar = ErrorCode.INVALID_REQUEST

    def __init__(
        self, message: str, *, request_id: str | None = None, metadata: JsonObject | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.metadata: JsonObject = {} if metadata is None else metadata


class NotARequest(InvalidRequest):
    """The bytes are no JSON object: nothing of a sender can be read from them."""


def decode_request(value: bytes | None, *, ignore_unknown: bool = False) -> Request:
    """The request in a record's value. Raises InvalidRequest or NotARequest, never anything else.

    Fields that are null are absent. `ignore_unknown` lets unknown fields pass, for senders newer than this worker.
    """
    try:
        body = read_object(value, "metadata")
    except NotAnObject as error:
        raise NotARequest(str(error)) from None
    # What is taken out is known; what stays is not.
    take = body.pop
    request_id = take("request_id", None)
    prompt = take("prompt", None)
    max_tokens = take("max_tokens", None)
    temperature = model = parameters = metadata = None
    if body:  # most say no more
        temperature = take("temperature", None)
        model = take("model", None)
        parameters = take("parameters", None)
        metadata = take("metadata", None)

    problem = None
    if body and not ignore_unknown:
        problem = _unknown_fields(body)
    elif type(prompt) is not str or not prompt:
        problem = "prompt is required" if prompt is None else "prompt must be a string that is not empty"
    elif request_id is not None and not is_request_id(request_id):
        problem = f"request_id must be a string of 1 to {MAX_REQUEST_ID_BYTES} bytes"
    elif model is not None and (type(model) is not str or not model):
        problem = "model must be a string that is not empty"
    elif parameters is not None and type(parameters) is not dict:
        problem = "parameters must be an object"
    elif metadata is not None and not isinstance(metadata, dict):
        problem = "metadata must be an object"
    elif max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= MAX_MAX_TOKENS):
        problem = _bad_max_tokens(max_tokens)
    elif temperature is not None:
        if type(temperature) is int:
            temperature = float(temperature)
        if type(temperature) is not float or not 0 <= temperature <= MAX_TEMPERATURE:
            problem = f"temperature must be a number from 0 to {MAX_TEMPERATURE}"
    if problem is not None:
        raise InvalidRequest(
            problem,
            request_id=request_id if is_request_id(request_id) else None,
            metadata=metadata if isinstance(metadata, dict) else None,
        )
    # Request(...) is a function in Python and would cost 0.15 µs more.
    return tuple.__new__(
        Request, (prompt, request_id, max_tokens, temperature, model, parameters or {}, metadata or {})
    )


def encode_request(request: Request) -> bytes:
    """The request as a record's value; fields that are None or empty are left out.

    Raises InvalidRequest for what a worker would refuse, and for values that JSON cannot hold.
    """
    given = request._asdict().items()
    body: dict[str, object] = {name: value for name, value in given if value is not None and value != {}}
    try:
        require_json(body)
        encoded = write_object(body, "metadata")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None
    decode_request(encoded)
    return encoded


def is_request_id(value: object) -> TypeGuard[str]:
    """Whether this is a string of 1 to MAX_REQUEST_ID_BYTES bytes in UTF-8."""
    if type(value) is not str or not value:
        return False
    # A character takes at most four bytes: short ones need not be encoded to know.
    return (
        len(value) <= MAX_REQUEST_ID_BYTES // 4 or len(value.encode(errors="replace")) <= MAX_REQUEST_ID_BYTES
    )


def quoted(name: str) -> str:
    """A name that a sender chose, for a sentence: as JSON, at most 64 characters of it.

    It may hold line breaks, terminal codes and marks that reorder text; those are escaped.
    """
    shown = name[:_NAMED]
    text = json.dumps(shown, ensure_ascii=not shown.isprintable())
    return text if shown == name else f'{text[:-1]}…"'


def _unknown_fields(unknown: JsonObject) -> str:
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return f"unknown field {quoted(next(iter(unknown)))}{more}; known are {', '.join(Request._fields)}"


def _bad_max_tokens(max_tokens: Json) -> str:
    if type(max_tokens) is not int:
        return f"max_tokens must be an integer from 1 to {MAX_MAX_TOKENS}"
    return (
        "max_tokens must be at least 1" if max_tokens < 1 else f"max_tokens must be at most {MAX_MAX_TOKENS}"
    )
