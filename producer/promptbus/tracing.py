"""Traces of an application that uses OpenTelemetry: its context goes with a request and comes back with the reply.

Nothing here needs OpenTelemetry. A span can only be current if the application has imported it, so where it has not, a
request costs one look into `sys.modules`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, NamedTuple

from promptbus.messages.headers import REPLY_ID, STATUS, TRACEPARENT, TRACESTATE, Headers

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("promptbus")

_API = "opentelemetry.trace"


class Sending(NamedTuple):
    """One request's producer span, if it has one. `headers` carry its context.

    `acknowledged` and `answered` run on the client's thread, which no tracer of the application may end.
    """

    span: Span | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def acknowledged(self, error: Exception | None = None) -> None:
        """The broker has the request, or never will: the span ends."""
        if self.span is not None:
            try:
                _end(self.span, error)
            except Exception:
                log.exception("the application's tracer failed")

    def answered(self, topic: str, request_id: str, headers: Headers) -> None:
        """Its reply was read from `topic`: the span `receive <topic>`, a child of the worker's."""
        if self.span is not None:
            try:
                _received(topic, request_id, headers)
            except Exception:
                log.exception("the application's tracer failed")


NOT_TRACED = Sending(None)


def send(topic: str, request_id: str, given: Headers) -> Sending:
    """Begin the span `send <topic>`, a child of the caller's current one.

    Without one, or if the `given` headers have a context already, there is nothing to trace.
    """
    if _API not in sys.modules:
        return NOT_TRACED
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not trace.get_current_span().get_span_context().is_valid or TRACEPARENT in dict(given):
        return NOT_TRACED
    span = trace.get_tracer("promptbus").start_span(f"send {topic}", kind=trace.SpanKind.PRODUCER)
    _describe(span, topic, "send", request_id)
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    names = (TRACEPARENT, TRACESTATE)
    return Sending(span, tuple((name, carrier[name].encode()) for name in names if name in carrier))


def _received(topic: str, request_id: str, headers: Headers) -> None:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    told = {name: value.decode(errors="replace") for name, value in headers if value is not None}
    carrier = {name: told[name] for name in (TRACEPARENT, TRACESTATE) if name in told}
    context = TraceContextTextMapPropagator().extract(carrier, Context())
    span = trace.get_tracer("promptbus").start_span(f"receive {topic}", context, trace.SpanKind.CONSUMER)
    _describe(span, topic, "receive", request_id)
    span.set_attribute("promptbus.reply_id", told.get(REPLY_ID, ""))
    span.set_attribute("promptbus.status", told.get(STATUS, ""))
    span.end()


def _describe(span: Span, topic: str, operation: str, request_id: str) -> None:
    span.set_attribute("messaging.system", "kafka")
    span.set_attribute("messaging.operation.type", operation)
    span.set_attribute("messaging.operation.name", operation)
    span.set_attribute("messaging.destination.name", topic)
    span.set_attribute("messaging.message.id", request_id)


def _end(span: Span, error: Exception | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
