"""Record headers of requests and replies, and the id that a reply derives from its record.

Kafka headers are pairs of a name and bytes or None; a name may occur more than once. Here the last one wins, and
None is the same as absent.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

from .request import MAX_REQUEST_ID_BYTES

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]

REQUEST_ID: Final = "request-id"
DEADLINE: Final = "deadline"
REPLY_TOPIC: Final = "reply-topic"
CORRELATION_ID: Final = "correlation-id"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
REPLY_ID: Final = "reply-id"
STATUS: Final = "status"

# Every reply has one of these.
_STATUSES = {status: (STATUS, status.encode()) for status in ("ok", "error")}
# A copy of it takes half the time of a new one.
_NOTHING_HASHED = blake2b(digest_size=16)

_DEADLINE = re.compile(rb"[0-9]{1,19}")
# https://www.w3.org/TR/trace-context/: version 00 ends after the flags, later versions may go on after a dash.
_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-[!-~]*)?"
)
# Same source: up to 32 members key=value, separated by commas; empty members are allowed.
_TRACESTATE_MEMBER = rb"[ \t]*(?:[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{1,256})?[ \t]*"
_TRACESTATE = re.compile(rb"%b(?:,%b){0,31}" % (_TRACESTATE_MEMBER, _TRACESTATE_MEMBER))


class RequestHeaders(NamedTuple):
    """What a request's headers say. `deadline_ms` is Unix time in milliseconds.

    `problem` is a sentence for the sender about the first malformed header; the other fields are filled nevertheless.
    """

    request_id: str | None = None
    deadline_ms: int | None = None
    reply_topic: str | None = None
    correlation_id: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    problem: str | None = None


_NONE = RequestHeaders()


def read_request_headers(headers: Headers | None) -> RequestHeaders:
    """The headers we know; others are ignored. Never raises."""
    if not headers:
        return _NONE
    get = dict(headers).get
    problem: str | None = None

    raw = get(REQUEST_ID)
    request_id = None
    if raw is not None:
        request_id = _text(raw)
        if not request_id or len(raw) > MAX_REQUEST_ID_BYTES:
            request_id = None
            problem = f"the header {REQUEST_ID} must be 1 to {MAX_REQUEST_ID_BYTES} bytes of UTF-8"
    raw = get(DEADLINE)
    deadline_ms = None
    if raw is not None:
        if _DEADLINE.fullmatch(raw):
            deadline_ms = int(raw)
        else:
            problem = problem or f"the header {DEADLINE} must be Unix milliseconds in 1 to 19 decimal digits"
    raw = get(REPLY_TOPIC)
    reply_topic = None
    if raw is not None:
        reply_topic = _text(raw) or None
        if reply_topic is None:
            problem = problem or f"the header {REPLY_TOPIC} must be the name of a topic"
    traceparent, tracestate = get(TRACEPARENT), get(TRACESTATE)
    if traceparent is None or not _is_traceparent(traceparent):
        traceparent = tracestate = None
    elif tracestate is not None and not _TRACESTATE.fullmatch(tracestate):
        tracestate = None
    return RequestHeaders(
        request_id, deadline_ms, reply_topic, get(CORRELATION_ID), traceparent, tracestate, problem
    )


def reply_headers(
    *,
    request_id: str,
    reply_id: str,
    status: str,
    correlation_id: bytes | None = None,
    traceparent: bytes | None = None,
    tracestate: bytes | None = None,
) -> list[tuple[str, bytes | None]]:
    """A reply's headers. `status` is "ok" or "error"."""
    headers: list[tuple[str, bytes | None]] = [
        (REQUEST_ID, request_id.encode()),
        (REPLY_ID, reply_id.encode()),
        _STATUSES[status],
    ]
    if correlation_id is not None:
        headers.append((CORRELATION_ID, correlation_id))
    if traceparent is not None:
        headers.append((TRACEPARENT, traceparent))
        if tracestate is not None:
            headers.append((TRACESTATE, tracestate))
    return headers


def reply_id(topic: str, partition: int, offset: int, timestamp_ms: int) -> str:
    """The same id for every delivery of one record: 32 hexadecimal digits.

    BLAKE2b with a digest of 128 bits over the UTF-8 text `<partition>:<offset>:<timestamp_ms>:<topic>` (decimal
    numbers; no number holds a colon, and the topic comes last, so no two records share a text). The timestamp
    tells a topic from one of the same name that was deleted and created again.
    """
    hashed = _NOTHING_HASHED.copy()
    hashed.update(f"{partition}:{offset}:{timestamp_ms}:{topic}".encode())
    return hashed.hexdigest()


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _is_traceparent(raw: bytes) -> bool:
    match = _TRACEPARENT.fullmatch(raw)
    return match is not None and (match["more"] is None or match["version"] != b"00")
