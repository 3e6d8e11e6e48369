"""What a client does with the trace of the application that uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from promptbus import AsyncPromptClient, MessageTooLarge, PromptClient, ReplyTimeout, tracing
from promptbus.request_writer import RequestWriter
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import record_headers
from tests.unit.client.place import MockCluster
from tests.unit.client.responder import Responder

REMOTE = SpanContext(
    0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("v", "1")])
)


@pytest.fixture(scope="module")
def mock_cluster() -> MockCluster:
    return MockCluster()


@pytest.fixture
def place(mock_cluster: MockCluster) -> KafkaSettings:
    return mock_cluster.topics()


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What the application's provider exports."""
    made = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    yield made
    provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    named = {span.name.split(" ")[0]: span for span in spans}
    assert len(named) == len(spans)
    return named


def test_a_current_span_becomes_the_parent_and_the_reply_comes_back_into_its_trace(
    place: KafkaSettings, exporter: InMemorySpanExporter
) -> None:
    with Responder(place) as responder, PromptClient(settings=place) as client:
        with trace.use_span(NonRecordingSpan(REMOTE)):
            reply = client.ask("a secret prompt", request_id="r-1")
        (request,) = responder.seen
    spans = by_name(exporter)
    assert set(spans) == {"send", "receive"}
    sent, received = spans["send"], spans["receive"]
    assert sent.name == f"send {place.kafka_request_topic}"
    assert sent.kind is SpanKind.PRODUCER
    assert sent.parent == REMOTE
    headers = dict(record_headers(request) or ())
    assert headers["traceparent"] == f"00-{ids(sent)[0]:032x}-{ids(sent)[1]:016x}-01".encode()
    assert headers["tracestate"] == b"v=1"
    assert received.name == f"receive {place.kafka_reply_topic}"
    assert received.kind is SpanKind.CONSUMER
    assert dict(received.attributes or {})["promptbus.reply_id"] == reply.reply_id
    assert dict(received.attributes or {})["promptbus.status"] == "ok"
    assert "secret" not in "".join(span.to_json() for span in spans.values())


async def test_the_asynchronous_client_does_the_same(
    place: KafkaSettings, exporter: InMemorySpanExporter
) -> None:
    with Responder(place) as responder:
        async with AsyncPromptClient(settings=place) as client:
            with trace.use_span(NonRecordingSpan(REMOTE)):
                await client.ask("hello")
        (request,) = responder.seen
    assert by_name(exporter)["send"].parent == REMOTE
    assert b"traceparent" in {name.encode() for name, _ in record_headers(request) or ()}


def test_without_a_current_span_nothing_is_added(
    place: KafkaSettings, exporter: InMemorySpanExporter
) -> None:
    with Responder(place) as responder, PromptClient(settings=place) as client:
        client.ask("hello")
        (request,) = responder.seen
    assert {name for name, _ in record_headers(request) or ()} == {"request-id"}
    assert exporter.get_finished_spans() == ()


def test_a_context_that_was_given_is_left_alone() -> None:
    with trace.use_span(NonRecordingSpan(REMOTE)):
        assert tracing.send("t", "r", [("traceparent", b"theirs")]) is tracing.NOT_TRACED


def test_a_request_that_cannot_be_sent_ends_its_span_with_the_error(
    place: KafkaSettings, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MessageTooLarge(9, 8, "requests")

    monkeypatch.setattr(RequestWriter, "publish_waiting", refuse)
    with (
        PromptClient(settings=place) as client,
        trace.use_span(NonRecordingSpan(REMOTE)),
        pytest.raises(MessageTooLarge),
    ):
        client.ask("hello")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "MessageTooLarge"


def test_no_reply_is_no_receive(place: KafkaSettings, exporter: InMemorySpanExporter) -> None:
    with (
        Responder(place),
        PromptClient(settings=place, explain_timeouts=False) as client,
        trace.use_span(NonRecordingSpan(REMOTE)),
        pytest.raises(ReplyTimeout),
    ):
        client.ask("silent", timeout_s=0.5)
    assert set(by_name(exporter)) == {"send"}


def test_a_tracer_with_a_defect_does_not_hurt_the_client(
    place: KafkaSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Responder(place), PromptClient(settings=place) as client:
        with trace.use_span(NonRecordingSpan(REMOTE)):
            monkeypatch.setattr(tracing, "_received", _broken)
            monkeypatch.setattr(tracing, "_end", _broken)
            assert client.ask("hello").ok
        assert client.ask("again").ok
    assert "the application's tracer failed" in caplog.text


def test_a_client_alone_imports_nothing_of_opentelemetry() -> None:
    code = """
import sys, promptbus
from promptbus import tracing
assert tracing.send("t", "r", []) is tracing.NOT_TRACED
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _broken(*_: object) -> None:
    raise RuntimeError("a defect")
