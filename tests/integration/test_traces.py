"""One trace from producer to reply, through real Kafka and real Triton, as a collector receives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from promptbus import PromptClient
from promptbus.settings import KafkaSettings
from promptbus_worker.model import CALL_TRACEPARENT
from promptbus_worker.triton import TritonClient
from stack.triton import Triton
from tests.integration.system import System, eventually
from tests.otlp import OtlpReceiver

SECRET = "a prompt that is nobody else's business"
CONSUMER = 5  # SPAN_KIND_CONSUMER on the wire
PRODUCER = 4


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    made = OtlpReceiver()
    yield made
    made.close()


@pytest.fixture
def application(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[trace.Tracer]:
    """An application's tracer that exports each span at once to the same collector."""
    provider = TracerProvider(resource=Resource.create({"service.name": "app"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    yield provider.get_tracer("app")
    provider.shutdown()


def client_of(system: System) -> PromptClient:
    made = KafkaSettings(
        _env_file=None,
        kafka_bootstrap=system.kafka.bootstrap,
        kafka_request_topic=system.requests,
        kafka_reply_topic=system.replies,
        kafka_dead_letter_topic=system.dead,
    )
    return PromptClient(settings=made)


def test_one_trace_from_the_producer_to_the_reply(
    whole: System, receiver: OtlpReceiver, application: trace.Tracer
) -> None:
    workers = whole.start(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_BSP_SCHEDULE_DELAY="200"
    ).ready()
    with client_of(whole) as client:
        with application.start_as_current_span("question") as question:
            reply = client.ask(SECRET, timeout_s=120)
        futures = []
        for number in range(40):
            with application.start_as_current_span(f"burst {number}"):
                futures.append(client.submit(f"prompt {number}", timeout_s=120))
        for future in futures:
            future.result()
    eventually("every request's spans arrived", lambda: len(receiver.named("process")) == 41)
    eventually("and those of the client", lambda: len(receiver.named("receive")) == 41)

    mine = [span for span in receiver.spans if span.trace == f"{question.get_span_context().trace_id:032x}"]
    by_name = {span.name.split(" ")[0]: span for span in mine}
    root, sent, process, call, received = (
        by_name[name] for name in ("question", "send", "process", "inference", "receive")
    )
    assert len(mine) == 5
    assert root.parent == ""
    assert sent.parent == root.span
    assert process.parent == sent.span
    assert call.parent == process.span
    assert received.parent == process.span
    assert call.links == {process.span}
    assert (sent.kind, process.kind) == (PRODUCER, CONSUMER)
    assert (sent.resource["service.name"], process.resource["service.name"]) == ("app", "promptbus-worker")
    assert process.attributes["promptbus.reply_id"] == reply.reply_id
    assert process.attributes["messaging.destination.name"] == whole.requests
    assert process.attributes["gen_ai.usage.output_tokens"] == reply.usage.completion_tokens
    assert process.begin_ns <= call.begin_ns <= call.end_ns <= process.end_ns

    # The burst went out in batches: each call links to all of its requests, and each request has one.
    processes, calls = {span.span for span in receiver.named("process")}, receiver.named("inference")
    linked = [link for span in calls for link in span.links]
    assert sorted(linked) == sorted(processes)
    assert not any(span.error for span in receiver.spans)
    assert SECRET not in repr(receiver.spans)
    assert workers.terminate() == 0


async def test_triton_goes_on_with_the_calls_trace(receiver: OtlpReceiver) -> None:
    config = (
        "mode=opentelemetry",
        "rate=1",
        "level=TIMESTAMPS",
        f"opentelemetry,url={receiver.endpoint}/v1/traces",
    )
    with Triton(engine="canned", arguments=[f"--trace-config={each}" for each in config]) as triton:
        client = TritonClient(triton.url)
        try:
            spec = await client.read_spec("gpt4_nano")
            token = CALL_TRACEPARENT.set(f"00-{'ab' * 16}-{'cd' * 8}-01".encode())
            await client.infer(spec, [{"prompt": b"hello", "max_tokens": 5, "temperature": 0.0}], 60.0)
            CALL_TRACEPARENT.reset(token)
        finally:
            await client.close()
        await asyncio.to_thread(eventually, "Triton's spans arrived", lambda: receiver.json)
    told = [of for export in receiver.json for of in json.loads(export)["resourceSpans"]]
    spans = [span for of in told for scope in of["scopeSpans"] for span in scope["spans"]]
    assert {span["traceId"] for span in spans} == {"ab" * 16}
    assert "cd" * 8 in {span["parentSpanId"] for span in spans}


def test_an_endpoint_that_is_gone_holds_nobody_up(whole: System, receiver: OtlpReceiver) -> None:
    receiver.close()
    workers = whole.start(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    ).ready()
    whole.ask([f"r-{number}" for number in range(200)])
    assert whole.collect(200).codes == {"ok": 200}

    def lost() -> int:
        return max(
            (int(line["not_accepted"]) for line in workers.lines() if "not_accepted" in line), default=0
        )

    eventually("the log says that spans were lost", lost)
    assert workers.terminate() == 0
    assert lost() >= 200
