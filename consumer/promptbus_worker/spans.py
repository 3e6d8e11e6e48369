"""Traces by OpenTelemetry: the spans behind `tracing.Tracing`. Imported only when traces are wanted.

Names and attributes follow the semantic conventions for messaging (https://opentelemetry.io/docs/specs/semconv/
messaging/) and for generative models; no prompt, no answer and no server's text is in them. Samplers, resource,
limits, queue and exporter are configured by the standard OTEL_* variables.

A call with several requests belongs to several traces. Its span is a child of the first request that is sampled and
links to all; the others link back to it. So every sampled trace leads to its call, and none is lost to a sampler that
judges the call by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from promptbus_worker.deadline import Clock
from promptbus_worker.model import CALL_TRACEPARENT
from promptbus_worker.outcomes import CallError
from promptbus_worker.record import Pending
from promptbus_worker.span_export import BoundedExport

_SCOPE = "promptbus"
_QUEUE_VARIABLE = "OTEL_BSP_MAX_QUEUE_SIZE"
_QUEUE = 2048  # the specification's default
_W3C = TraceContextTextMapPropagator()
_NS = 1_000_000_000
_GIVEN_BACK = "given_back"


class Spans:
    """The open spans by request, on the event loop."""

    def __init__(
        self,
        tracer: Tracer,
        *,
        group: str,
        close: Callable[[float], None] = lambda timeout_s: None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        """`close` exports what is left within so many seconds. `clock`: of `Pending`; `wall_clock`: of spans."""
        self._tracer = tracer
        self._group = group
        self._close = close
        self._clock = clock
        self._wall_clock = wall_clock
        self._open: dict[Pending, Span] = {}

    @classmethod
    def exporting(cls, environ: Mapping[str, str], *, name: str, group: str) -> Spans:
        """To the OTLP endpoint that the environment names. Raises ValueError for variables that make no sense."""
        # Each failed attempt is a warning, repeated for each batch; that spans are lost, and why, is an error.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        attributes: dict[str, AttributeValue] = {
            "service.version": version("promptbus"),
            "service.instance.id": name,
        }
        if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            attributes["service.name"] = "promptbus-worker"
        try:
            capacity = int(environ.get(_QUEUE_VARIABLE) or _QUEUE)
        except ValueError:
            raise ValueError(
                f"{_QUEUE_VARIABLE} is {environ[_QUEUE_VARIABLE]!r}, which is no number"
            ) from None
        export = BoundedExport(OTLPSpanExporter(), capacity=capacity)
        provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        provider.add_span_processor(export)
        tracer = provider.get_tracer(_SCOPE, version("promptbus"))
        return cls(tracer, group=group, close=export.close)

    def begin(self, requests: Sequence[Pending]) -> None:
        """Start the spans that are not there yet, back when each request was polled."""
        wall_ns = self._wall_ns()
        for request in requests:
            if request not in self._open:
                self._open[request] = self._started(request, wall_ns)

    @contextmanager
    def call(self, model: str, requests: Sequence[Pending]) -> Iterator[None]:
        """The call's span; nothing if no request is sampled."""
        self.begin(requests)
        members = [self._open[request] for request in requests]
        parent = next((span for span in members if span.is_recording()), None)
        if parent is None:
            yield
            return
        span = self._tracer.start_span(
            f"inference {model}",
            trace.set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            start_time=self._now_ns(),
            attributes={"gen_ai.request.model": model, "messaging.batch.message_count": len(requests)},
            links=[Link(member.get_span_context()) for member in members],
        )
        context = span.get_span_context()
        for member in members:
            if member is not parent and member.is_recording():
                member.add_link(context)
        token = CALL_TRACEPARENT.set(_traceparent(context))
        try:
            yield
        except CallError as error:
            _failed(span, str(error.failure))
            if error.status:
                span.set_attribute("http.response.status_code", error.status)
            raise
        except BaseException as error:
            _failed(span, type(error).__name__)
            raise
        finally:
            CALL_TRACEPARENT.reset(token)
            span.end(self._now_ns())

    def settled(self, requests: Sequence[Pending]) -> None:
        """End their spans now."""
        wall_ns = self._wall_ns()
        for request in requests:
            span = self._open.pop(request, None)
            if span is None:
                continue
            if span.is_recording():
                _describe_outcome(span, request)
                if request.dispatched_at is not None:
                    span.add_event("dispatched", timestamp=wall_ns(request.dispatched_at))
                span.add_event("answered", timestamp=wall_ns(request.answered_at))
            span.end(self._now_ns())

    def given_back(self, requests: Sequence[Pending]) -> None:
        """End those that have one; whoever reads the record next begins another."""
        for request in requests:
            span = self._open.pop(request, None)
            if span is not None:
                span.set_attribute("promptbus.outcome", _GIVEN_BACK)
                span.end(self._now_ns())

    def forget(self) -> None:
        """End what is open of partitions that are gone."""
        self.given_back([request for request in self._open if not request.record.ownership.live])

    def close(self, timeout_s: float) -> None:
        """End what is open, export what is left."""
        self.given_back(list(self._open))
        self._close(timeout_s)

    def _started(self, request: Pending, wall_ns: Callable[[float], int]) -> Span:
        record = request.record
        owner = record.ownership
        span = self._tracer.start_span(
            f"process {owner.topic}",
            _context_of(request),
            kind=SpanKind.CONSUMER,
            start_time=wall_ns(record.polled_at),
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.operation.name": "process",
                "messaging.destination.name": owner.topic,
                "messaging.destination.partition.id": str(owner.partition),
                "messaging.consumer.group.name": self._group,
                "messaging.kafka.offset": record.offset,
                "messaging.message.id": request.request_id,
                "promptbus.reply_id": request.reply_id,
            },
        )
        request.traceparent = _traceparent(span.get_span_context())
        request.tracestate = span.get_span_context().trace_state.to_header().encode() or None
        return span

    def _now_ns(self) -> int:
        return int(self._wall_clock() * _NS)

    def _wall_ns(self) -> Callable[[float], int]:
        """From times of `clock` to Unix nanoseconds, as of now."""
        offset_s = self._wall_clock() - self._clock()
        return lambda at: int((at + offset_s) * _NS)


def _context_of(request: Pending) -> Context:
    carrier = {"traceparent": (request.traceparent or b"").decode(errors="replace")}
    if request.tracestate:
        carrier["tracestate"] = request.tracestate.decode(errors="replace")
    return _W3C.extract(carrier, Context())


def _traceparent(context: SpanContext) -> bytes:
    return b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)


def _describe_outcome(span: Span, request: Pending) -> None:
    span.set_attribute("promptbus.outcome", request.code or "ok")
    span.set_attribute("promptbus.attempts", request.attempts)
    if request.model is not None:
        span.set_attribute("gen_ai.request.model", request.model)
    if request.usage is not None:
        for name, count in (
            ("gen_ai.usage.input_tokens", request.usage.prompt_tokens),
            ("gen_ai.usage.output_tokens", request.usage.completion_tokens),
        ):
            if count is not None:
                span.set_attribute(name, count)
    if request.code is not None:
        _failed(span, request.code)


def _failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
