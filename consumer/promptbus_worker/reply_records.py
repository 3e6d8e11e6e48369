"""Replies and dead letters as records that fit their topics. Pure.

What does not fit is cut, in an order that keeps the ids and the code: a reply's metadata first, then its key and
the sender's headers; a dead letter's value, then its headers, then its key.
"""

from __future__ import annotations

from collections.abc import Mapping

from promptbus.messages import (
    ErrorCode,
    Usage,
    dead_letter_headers,
    encode_answer,
    encode_error,
    fit_dead_letter,
    message_bytes,
    reply_headers,
)
from promptbus_worker.model import Row
from promptbus_worker.record import Pending

# The batch's own header, all lengths of the record, and the headers that every reply has.
_SURELY_ENOUGH = 1024
_OWN_HEADERS = 3  # ids and status: 400 bytes at most
SMALLEST_LIMIT = 2_048
"""A topic that takes no record of this many bytes cannot hold an error reply."""


class Outgoing:
    """A record on its way to the broker, for the sake of a request. `refusals`: so often the broker has refused it."""

    __slots__ = ("headers", "is_dead_letter", "key", "pending", "refusals", "topic", "value")

    def __init__(
        self,
        pending: Pending,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes | None]],
        is_dead_letter: bool,
    ) -> None:
        self.pending = pending
        self.topic = topic
        self.key = key
        self.value = value
        self.headers = headers
        self.is_dead_letter = is_dead_letter
        self.refusals = 0

    @property
    def size(self) -> int:
        """Bytes of a batch that holds it alone, at most: what `max.message.bytes` is compared with."""
        return message_bytes(self.key, self.value, self.headers)


class ReplyRecords:
    """Builds them for topics with these limits."""

    def __init__(self, limits: Mapping[str, int], *, dead_letter_topic: str, worker: str) -> None:
        """`limits`: each topic's `max.message.bytes`. `worker`: this process's name in dead letters."""
        self._limits = dict(limits)
        self._dead_letter_topic = dead_letter_topic
        self._worker = worker

    def limit(self, topic: str) -> int:
        """Largest record batch this topic takes, bytes."""
        return self._limits[topic]

    def lower_limit(self, topic: str, limit: int) -> None:
        """The broker refused more than this."""
        self._limits[topic] = min(limit, self._limits[topic])

    def answer(
        self,
        request: Pending,
        row: Row,
        usage: Usage,
        model_version: str,
        timings: tuple[float, float, float],
    ) -> Outgoing | None:
        """The model's answer, or None if it is larger than the reply topic takes."""
        response, _, _, _, finish_reason = row
        value = encode_answer(
            request_id=request.request_id,
            reply_id=request.reply_id,
            response=response,
            finish_reason=finish_reason,
            usage=usage,
            model=request.model or "",
            model_version=model_version,
            metadata=request.metadata,
            timings=timings,
            attempts=request.attempts,
        )
        outgoing = self._reply(request, "ok", value)
        return outgoing if self._fits(outgoing) else None

    def error(
        self, request: Pending, code: ErrorCode, message: str, timings: tuple[float, float, float]
    ) -> Outgoing:
        """The fullest error reply that fits."""
        for metadata in (request.metadata, {}):
            value = encode_error(
                request_id=request.request_id,
                reply_id=request.reply_id,
                code=code,
                message=message,
                metadata=metadata,
                model=request.model,
                timings=timings,
                attempts=request.attempts,
            )
            outgoing = self._reply(request, "error", value)
            if self._fits(outgoing):
                return outgoing
        bare = reply_headers(request_id=request.request_id, reply_id=request.reply_id, status="error")
        outgoing.key, outgoing.headers = request.request_id.encode(), bare
        return outgoing

    def dead_letter(self, request: Pending, code: ErrorCode) -> Outgoing:
        """The original record and why it is here, cut to what the dead letter topic takes."""
        record = request.record
        limit = self._limits[self._dead_letter_topic]
        headers = dead_letter_headers(
            record.headers,
            code=code,
            topic=record.ownership.topic,
            partition=record.ownership.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            attempts=request.attempts,
            worker=self._worker,
        )
        value, fitted = fit_dead_letter(record.value, headers, key=record.key, max_bytes=limit)
        outgoing = Outgoing(request, self._dead_letter_topic, record.key, value, fitted, True)
        if not self._fits(outgoing):
            outgoing.key = None
        return outgoing

    def _reply(self, request: Pending, status: str, value: bytes) -> Outgoing:
        key = request.record.key
        if key is None:
            key = request.request_id.encode()
        headers = reply_headers(
            request_id=request.request_id,
            reply_id=request.reply_id,
            status=status,
            correlation_id=request.correlation_id,
            traceparent=request.traceparent,
            tracestate=request.tracestate,
        )
        return Outgoing(request, request.reply_topic, key, value, headers, False)

    def _fits(self, outgoing: Outgoing) -> bool:
        limit = self._limits[outgoing.topic]
        # Nearly all are far below their limit; to see that needs no exact count.
        roughly = _SURELY_ENOUGH + len(outgoing.value or b"") + len(outgoing.key or b"")
        return (roughly <= limit and len(outgoing.headers) == _OWN_HEADERS) or outgoing.size <= limit
