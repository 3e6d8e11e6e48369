"""From what a caller hands over to a request on the wire: one place for both clients and the command line."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from promptbus.messages import InvalidRequest, JsonObject, Request, encode_request
from promptbus.messages.headers import DEADLINE, REPLY_TOPIC

DEFAULT_TIMEOUT_S: Final = 60.0
"""How long a reply may take if nobody says otherwise."""

Prompt: TypeAlias = str | Request | Mapping[str, object]
"""A prompt, a whole request, or a request's fields as a mapping (as in a JSON Lines file)."""


class Outgoing(NamedTuple):
    """A request ready to be published."""

    request_id: str
    value: bytes
    headers: list[tuple[str, bytes]]


def new_request_id() -> str:
    """32 random hexadecimal digits."""
    return uuid.uuid4().hex


def as_request(prompt: Prompt) -> Request:
    """The request that `prompt` stands for. Raises InvalidRequest for a mapping with an unknown field."""
    if isinstance(prompt, Request):
        return prompt
    if isinstance(prompt, str):
        return Request(prompt=prompt)
    unknown = set(prompt) - set(Request._fields)
    if unknown or "prompt" not in prompt:
        problem = f"unknown field {sorted(unknown)[0]!r}" if unknown else "prompt is required"
        raise InvalidRequest(f"{problem}; known are {', '.join(Request._fields)}")
    return Request(**{name: value for name, value in prompt.items() if value is not None})  # type: ignore[arg-type]  # checked when it is encoded


def prepare(
    prompt: Prompt,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    model: str | None = None,
    parameters: JsonObject | None = None,
    metadata: JsonObject | None = None,
    request_id: str | None = None,
    deadline_s: float | None = None,
    reply_topic: str | None = None,
) -> Outgoing:
    """Bytes and headers of one request; named arguments beat what a whole request says itself.

    `deadline_s`: seconds from now after which no worker shall begin with it. Raises InvalidRequest.
    """
    request = as_request(prompt)
    if max_tokens is not None:
        request = request._replace(max_tokens=max_tokens)
    if temperature is not None:
        request = request._replace(temperature=temperature)
    if model is not None:
        request = request._replace(model=model)
    if parameters is not None:
        request = request._replace(parameters=parameters)
    if metadata is not None:
        request = request._replace(metadata=metadata)
    request_id = request_id or request.request_id or new_request_id()
    request = request._replace(request_id=request_id)
    value = encode_request(request)
    headers: list[tuple[str, bytes]] = []
    if deadline_s is not None:
        headers.append((DEADLINE, str(int((time.time() + deadline_s) * 1000)).encode()))
    if reply_topic is not None:
        headers.append((REPLY_TOPIC, reply_topic.encode()))
    return Outgoing(request_id, value, headers)
