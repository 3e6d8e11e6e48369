"""Traces of the path, in virtual time, as an exporter in memory sees them."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from promptbus.messages import Headers
from promptbus_worker.model import CALL_TRACEPARENT
from promptbus_worker.outcomes import CallFailure
from promptbus_worker.spans import Spans
from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import in_virtual_time, loop

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECRET = "the prompt that nobody may see"


def sent(trace: int = 0, *, sampled: bool = True) -> Headers:
    """What a producer whose span is `PARENT` in a trace of its own sends along."""
    traceparent = f"00-{int(TRACE, 16) + trace:032x}-{PARENT}-0{int(sampled)}"
    return [("traceparent", traceparent.encode()), ("tracestate", b"vendor=1")]


class Traced(Path):
    """A path with an exporter in memory."""

    def __init__(self, *, only_sampled: bool = False, **options: object) -> None:
        self.exporter = InMemorySpanExporter()
        sampler = ParentBased(ALWAYS_OFF) if only_sampled else None
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(
            provider.get_tracer("test"),
            group="workers",
            clock=loop().time,
            wall_clock=lambda: loop().time() + 1e9,
        )
        super().__init__(tracing=self.spans, **options)  # type: ignore[arg-type]  # as they come

    def ended(self, name: str) -> list[ReadableSpan]:
        """Spans that have ended, those that began first in front."""
        spans = [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]
        return sorted(spans, key=lambda span: span.start_time or 0)

    def traceparents(self) -> dict[str, bytes | None]:
        """The header of each reply, by request."""
        return {
            (record.headers["request-id"] or b"").decode(): record.headers.get("traceparent")
            for record in self.broker.written
            if record.topic == "results"
        }


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9 - 1e9, span.end_time / 1e9 - 1e9


@in_virtual_time
async def test_a_request_goes_on_with_its_producers_trace_and_its_reply_with_the_workers_span() -> None:
    path = Traced()
    begun = loop().time()
    path.ask("a", headers=sent())
    await path.settle(1)
    (process,), (call,) = path.ended("process"), path.ended("inference")
    assert process.name == "process requests"
    assert process.kind is SpanKind.CONSUMER
    assert process.parent is not None
    assert f"{process.parent.trace_id:032x}-{process.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert process.parent.is_remote
    assert path.traceparents() == {"a": f"00-{TRACE}-{span_id(process):016x}-01".encode()}
    assert [r.headers["tracestate"] for r in path.broker.written] == [b"vendor=1"]
    assert call.name == "inference gpt4_nano"
    assert call.kind is SpanKind.CLIENT
    assert call.parent is not None
    assert call.parent.span_id == span_id(process)
    assert trace_id(call) == trace_id(process)
    assert linked(call) == {span_id(process)}
    began, ended = seconds(process)
    assert began == pytest.approx(begun, abs=1e-3)
    assert began <= seconds(call)[0] < seconds(call)[1] <= ended
    assert ended == pytest.approx(loop().time(), abs=0.01), "it lasts until the reply is acknowledged"


@in_virtual_time
async def test_a_span_says_what_became_of_the_request_and_nothing_of_its_text() -> None:
    path = Traced()
    path.publish({"request_id": "r", "prompt": SECRET, "metadata": {"m": SECRET}})
    await path.settle(1)
    (process,), (call,) = path.ended("process"), path.ended("inference")
    told = attributes(process)
    reply = path.replies_by_id()["r"]
    assert told == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "requests",
        "messaging.destination.partition.id": "0",
        "messaging.consumer.group.name": "workers",
        "messaging.kafka.offset": 0,
        "messaging.message.id": "r",
        "promptbus.reply_id": reply.reply_id,
        "promptbus.outcome": "ok",
        "promptbus.attempts": 1,
        "gen_ai.request.model": "gpt4_nano",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
    }
    assert [event.name for event in process.events] == ["dispatched", "answered"]
    assert process.status.status_code is StatusCode.UNSET
    assert attributes(call) == {"gen_ai.request.model": "gpt4_nano", "messaging.batch.message_count": 1}
    assert not any(SECRET in span.to_json() for span in path.exporter.get_finished_spans())


@in_virtual_time
async def test_a_call_of_several_traces_links_to_all_and_they_to_it() -> None:
    path = Traced(concurrency=1)
    path.model.latency_s = 1.0
    for number in range(5):
        path.publish({"request_id": f"r{number}", "prompt": f"p{number}"}, headers=sent(number))
    await path.settle(5)
    processes = path.ended("process")
    assert {trace_id(span) for span in processes} == {int(TRACE, 16) + number for number in range(5)}
    calls = path.ended("inference")
    assert sum(len(call.links) for call in calls) == 5
    batch = max(calls, key=lambda call: len(call.links))
    assert len(batch.links) > 1
    assert attributes(batch)["messaging.batch.message_count"] == len(batch.links)
    members = [span for span in processes if span_id(span) in linked(batch)]
    assert len(members) == len(batch.links)
    assert batch.parent is not None
    assert batch.parent.span_id in linked(batch)
    for member in members:
        if span_id(member) != batch.parent.span_id:
            assert linked(member) == {span_id(batch)}


@in_virtual_time
async def test_every_repetition_is_a_call_of_its_own_in_the_same_span() -> None:
    path = Traced()
    path.model.failure = CallFailure.OVERLOADED
    path.ask("a", headers=sent())
    while not path.model.calls:
        await path.settle(0)
        await _moment()
    path.model.failure = None
    await path.settle(1)
    (process,), calls = path.ended("process"), path.ended("inference")
    failed, answered = calls[0], calls[-1]
    assert len(calls) == len(path.model.calls) - path.model.calls.count(["ping"])
    assert {trace_id(call) for call in calls} == {trace_id(process)}
    assert attributes(failed)["error.type"] == "overloaded"
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None, "what servers say may quote prompts"
    assert answered.status.status_code is StatusCode.UNSET
    assert attributes(process)["promptbus.outcome"] == "ok"


@in_virtual_time
async def test_a_batch_that_is_bisected_shows_each_part() -> None:
    path = Traced(concurrency=1)
    path.model.poison = {"bad"}
    path.ask("good-1", "good-2", "bad", "good-3", headers=sent())
    await path.settle(4)
    sizes = [attributes(call)["messaging.batch.message_count"] for call in path.ended("inference")]
    assert sizes[:3] == [4, 2, 2]
    by_id = {attributes(span)["messaging.message.id"]: span for span in path.ended("process")}
    bad = by_id["bad"]
    assert attributes(bad)["promptbus.outcome"] == "model_error"
    assert attributes(bad)["error.type"] == "model_error"
    assert bad.status.status_code is StatusCode.ERROR
    assert {attributes(by_id[i])["promptbus.outcome"] for i in ("good-1", "good-2", "good-3")} == {"ok"}
    failed = [call for call in path.ended("inference") if call.status.status_code is StatusCode.ERROR]
    assert {attributes(call)["error.type"] for call in failed} == {"model_error"}
    assert {attributes(call)["http.response.status_code"] for call in failed} == {500}
    assert "Traceback" not in "".join(span.to_json() for span in path.exporter.get_finished_spans())


@in_virtual_time
async def test_what_is_refused_without_a_call_has_a_span_and_its_reply_names_it() -> None:
    path = Traced()
    path.publish({"request_id": "r", "prompt": ""}, headers=sent())
    await path.settle(1)
    (process,) = path.ended("process")
    assert path.ended("inference") == []
    assert attributes(process)["promptbus.outcome"] == "invalid_request"
    assert path.traceparents() == {"r": f"00-{TRACE}-{span_id(process):016x}-01".encode()}


@in_virtual_time
async def test_a_dead_letter_keeps_the_producers_context() -> None:
    path = Traced()
    path.publish(b"no request", headers=sent())
    await path.settle(1)
    (dead,) = path.dead_letters()
    assert dead.headers["traceparent"] == f"00-{TRACE}-{PARENT}-01".encode()


@in_virtual_time
async def test_without_a_context_the_worker_begins_a_trace() -> None:
    path = Traced()
    path.ask("a")
    path.ask("b", headers=[("traceparent", b"nonsense")])
    await path.settle(2)
    processes = path.ended("process")
    assert [span.parent for span in processes] == [None, None]
    assert len({trace_id(span) for span in processes}) == 2
    assert all(path.traceparents().values())


@in_virtual_time
async def test_what_the_producer_does_not_sample_is_not_recorded_but_goes_on() -> None:
    path = Traced(only_sampled=True, concurrency=1)
    path.ask("a", headers=sent(1, sampled=False))
    await path.settle(1)
    assert path.exporter.get_finished_spans() == ()
    (traceparent,) = path.traceparents().values()
    assert traceparent is not None
    assert traceparent.startswith(f"00-{int(TRACE, 16) + 1:032x}-".encode())
    assert traceparent.endswith(b"-00")


@in_virtual_time
async def test_a_call_is_recorded_if_any_of_its_requests_is() -> None:
    path = Traced(only_sampled=True, concurrency=1)
    path.model.latency_s = 1.0
    path.ask("first", headers=sent(sampled=False))
    path.ask("b", headers=sent(1, sampled=False))
    path.ask("c", headers=sent(2))
    await path.settle(3)
    (process,), (call,) = path.ended("process"), path.ended("inference")
    assert attributes(process)["messaging.message.id"] == "c"
    assert call.parent is not None
    assert call.parent.span_id == span_id(process)
    assert len(call.links) == 2


@in_virtual_time
async def test_a_redelivered_request_has_a_span_for_each_delivery_in_one_trace() -> None:
    path = Traced()
    path.model.latency_s = 5.0
    (record,) = path.publish({"request_id": "a", "prompt": "a"}, headers=sent())
    await _moment()
    await path.dispatcher.stop()
    (given_back,) = path.ended("process")
    assert attributes(given_back)["promptbus.outcome"] == "given_back"
    (call,) = path.ended("inference")
    assert attributes(call)["error.type"] == "CancelledError"
    following = Traced()
    following.ledger.track(following.owned, record.offset, record.size)
    record.ownership = following.owned
    following.dispatcher.accept([record])
    await following.settle(1)
    (process,) = following.ended("process")
    assert process.parent == given_back.parent
    assert span_id(process) != span_id(given_back)
    assert attributes(process)["promptbus.reply_id"] == attributes(given_back)["promptbus.reply_id"]


@in_virtual_time
async def test_what_was_lost_with_its_partition_ends_too() -> None:
    path = Traced()
    path.model.latency_s = 5.0
    path.ask("a", "b", headers=sent())
    await _moment()
    path.ledger.end(path.owned)
    path.dispatcher.forget([path.owned])
    assert {attributes(span)["promptbus.outcome"] for span in path.ended("process")} == {"given_back"}
    await _moment(10.0)
    assert len(path.ended("process")) == 2, "and once only"
    assert not path.spans._open


@in_virtual_time
async def test_nothing_stays_open_after_many_outcomes() -> None:
    path = Traced()
    path.model.poison, path.model.bad_rows = {"p3"}, {"p5"}
    path.ask(*[f"p{number}" for number in range(100)], headers=sent())
    path.publish(b"no request", {"prompt": "x", "model": "other"})
    await path.settle(102)
    assert not path.spans._open
    assert len(path.ended("process")) == 102


@in_virtual_time
async def test_triton_is_told_the_calls_context_and_only_while_it_runs() -> None:
    path = Traced()
    told: list[bytes | None] = []
    path.model.before_answer = lambda: told.append(CALL_TRACEPARENT.get())
    path.ask("a", headers=sent())
    await path.settle(1)
    (call,) = path.ended("inference")
    assert told == [f"00-{TRACE}-{span_id(call):016x}-01".encode()]
    assert CALL_TRACEPARENT.get() is None


@in_virtual_time
async def test_without_traces_a_reply_carries_the_context_that_was_sent() -> None:
    path = Path()
    path.ask("a", headers=sent())
    await path.settle(1)
    assert [record.headers["traceparent"] for record in path.broker.written] == [
        f"00-{TRACE}-{PARENT}-01".encode()
    ]


async def _moment(seconds: float = 0.5) -> None:
    await asyncio.sleep(seconds)
