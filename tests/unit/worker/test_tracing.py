"""When traces are on, where they go, and what becomes of spans that nobody takes."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from promptbus_worker import span_export, tracing
from promptbus_worker.span_export import BoundedExport
from promptbus_worker.spans import Spans
from tests.otlp import OtlpReceiver


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    made = OtlpReceiver()
    yield made
    made.close()


def until(what: str, condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


def read(**environ: str) -> tracing.Tracing:
    return tracing.from_environment(environ, name="worker-0", group="g")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_an_endpoint_is_set(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert read(**environ) is tracing.OFF
    assert not caplog.records


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "only http/protobuf is offered"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "only otlp"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "'many', which is no number"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}, "max_export_batch_size must be less"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_worker_works_without(
    environ: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **environ) is tracing.OFF
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert says in caplog.text


def test_without_opentelemetry_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    assert read(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:1/v1/traces") is tracing.OFF
    assert "pip install 'promptbus[tracing]'" in caplog.text


def test_off_imports_nothing_of_opentelemetry() -> None:
    code = "import sys, promptbus_worker.worker; sys.exit(any(n.startswith('opentelemetry') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def resource_of_a_span(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, **environ: str
) -> Mapping[str, object]:
    """What the endpoint is told of the worker whose span it gets."""
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    spans = read(**environ)
    assert isinstance(spans, Spans)
    spans._tracer.start_span("one").end()
    spans.close(30.0)
    (span,) = receiver.spans
    return span.resource


def test_spans_go_to_the_endpoint_with_the_workers_name(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = resource_of_a_span(receiver, monkeypatch, OTEL_RESOURCE_ATTRIBUTES="site=here")
    assert receiver.paths == {"/v1/traces"}
    assert told["service.name"] == "promptbus-worker"
    assert told["service.instance.id"] == "worker-0"
    assert told["site"] == "here"


def test_a_service_name_of_the_operators_is_kept(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = resource_of_a_span(receiver, monkeypatch, OTEL_SERVICE_NAME="answers")
    assert told["service.name"] == "answers"


# -- losing spans


class Exporting:
    """A provider whose spans go to the receiver, through a bounded queue."""

    def __init__(self, receiver: OtlpReceiver, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        self.export = BoundedExport(
            OTLPSpanExporter(f"{receiver.endpoint}/v1/traces", timeout=60), capacity=capacity
        )
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(self.export)

    def make(self, count: int) -> None:
        tracer = self._provider.get_tracer("test")
        for number in range(count):
            tracer.start_span(f"span {number}").end()


def test_too_many_spans_are_dropped_at_once_and_counted_in_the_log(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.go_on.clear()
    exporting = Exporting(receiver, 10, monkeypatch)
    exporting.make(1)
    until("the endpoint hangs", lambda: receiver.requests == 1)
    began = time.monotonic()
    exporting.make(1000)
    assert time.monotonic() - began < 10, "an endpoint that hangs holds nobody up"
    assert exporting.export.too_many == 990
    receiver.go_on.set()
    exporting.export.close(60.0)
    assert len(receiver.spans) == 11
    (line,) = [record for record in caplog.records if record.name == span_export.__name__]
    assert line.levelno == logging.WARNING
    assert vars(line)["too_many"] == 990
    assert vars(line)["not_accepted"] == 0


def test_what_the_endpoint_refuses_is_lost_and_counted(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 401
    exporting = Exporting(receiver, 10, monkeypatch)
    exporting.make(3)
    exporting.export.close(60.0)
    assert exporting.export.not_accepted == 3
    told = [vars(record)["not_accepted"] for record in caplog.records if record.name == span_export.__name__]
    assert told[-1] == 3
    assert len(told) <= 2, "not a line for each"


def test_the_flush_at_the_end_is_bounded(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.go_on.clear()
    exporting = Exporting(receiver, 10, monkeypatch)
    exporting.make(5)
    until("the endpoint hangs", lambda: receiver.requests == 1)
    began = time.monotonic()
    exporting.export.close(0.2)
    assert time.monotonic() - began < 20, "the endpoint would have had 60 s for each span"
    assert exporting.export.lost == 4, "and one is under way"
    exporting.make(1)
    assert exporting.export.lost == 5


def test_an_exporter_with_a_defect_loses_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Broken(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            raise RuntimeError("a defect")

    export = BoundedExport(Broken(), capacity=1000)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    span: ReadableSpan = provider.get_tracer("test").start_span("one")  # type: ignore[assignment]  # the SDK's own
    span.end()  # type: ignore[attr-defined]  # as above
    export.close(60.0)
    assert export.not_accepted == 1
    assert "a defect" in caplog.text
