"""5,000 requests of every kind through one worker: each gets its own answer, whole, once, under its own key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import tritonclient.http

from promptbus.messages import Reply, decode_reply
from promptbus_worker import vocabulary
from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.mixed import LIMITS, Expected, cases
from tests.integration.system import Read, Sending, Workers, eventually, system

REQUESTS = 5_000
COMPARED_WITH_TRITON = 300


class Answered(NamedTuple):
    """One request, what was expected of it, and the record of its reply."""

    sending: Sending
    expected: Expected
    place: tuple[int, int]
    record: Read
    reply: Reply


class Run(NamedTuple):
    """A finished run. `samples` of /metrics were taken before the first request and after the last reply."""

    answered: list[Answered]
    dead_letters: list[Read]
    before: dict[str, float]
    after: dict[str, float]
    request_topic: str


@pytest.fixture(scope="module")
def run(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    mixed = cases(REQUESTS, seed=3)
    dead = sum(expected.dead_letter for _, expected in mixed)
    with system(shared_kafka, shared_triton, tmp_path_factory.mktemp("answers"), env=LIMITS) as whole:
        workers = whole.start().ready()
        before = eventually("partitions are assigned", lambda: assigned(workers))
        places = whole.send([sending for sending, _ in mixed])
        records = whole.reply_records(REQUESTS, within_s=200)
        dead_letters = whole.dead_letters(dead)
        eventually("all offsets are committed", lambda: whole.committed() == REQUESTS)
        after = settled(workers)
        assert workers.terminate() == 0
        # Whatever came twice, or too much, is there by now.
        by_id: dict[str, list[Read]] = {}
        for record in whole.all_reply_records():
            by_id.setdefault(decode_reply(record.value).request_id, []).append(record)
        assert sum(map(len, by_id.values())) == REQUESTS == len(records)
        answered = []
        for (sending, expected), place in zip(mixed, places, strict=True):
            request_id = expected.request_id or f"{whole.requests}-{place[0]}-{place[1]}"
            found = by_id.pop(request_id, [])
            assert len(found) == 1, f"{len(found)} replies to {request_id!r}: {sending!r:.300}"
            record = found[0]
            answered.append(Answered(sending, expected, place, record, decode_reply(record.value)))
        assert not by_id, "replies to nobody"
        yield Run(answered, dead_letters, before, after, whole.requests)


def assigned(workers: Workers) -> dict[str, float]:
    """/metrics once the gauges, which are written twice a second, tell of the partitions."""
    metrics = workers.metrics()
    return metrics if metrics.get("promptbus_assigned_partitions") == 6 else {}


def settled(workers: Workers) -> dict[str, float]:
    """/metrics once nothing is in flight any more; they are written when a reply is acknowledged."""

    def samples() -> dict[str, float]:
        metrics = workers.metrics()
        done = sum(value for name, value in metrics.items() if name.startswith("promptbus_requests_total{"))
        idle = metrics["promptbus_in_flight_requests"] == metrics["promptbus_waiting_requests"] == 0
        lags = [value for name, value in metrics.items() if name.startswith("promptbus_lag_records{")]
        return metrics if done >= REQUESTS and idle and lags == [0] * 6 else {}

    return eventually("every request is counted", samples)


def test_every_request_ends_as_it_should(run: Run) -> None:
    wrong = [
        (
            request.sending.value[:200] if request.sending.value else None,
            request.expected.code,
            request.reply.error,
        )
        for request in run.answered
        if (request.reply.error.code if request.reply.error else None) != request.expected.code
    ]
    assert wrong == []
    counts = Counter(request.expected.code for request in run.answered)
    assert counts[None] > 4_000
    assert min(counts[code] for code in ("invalid_request", "too_large", "model_not_found", "expired")) >= 3


def test_each_answer_is_to_its_own_prompt(run: Run) -> None:
    for request in run.answered:
        if request.expected.code is None:
            response = request.reply.response or ""
            fingerprint = request.expected.fingerprint
            # max_tokens can cut the answer within its fingerprint.
            assert response.startswith(fingerprint) or (
                fingerprint.startswith(response) and request.reply.finish_reason == "length"
            ), f"{request.expected.prompt[:60]!r} was answered {response[:60]!r}"


def test_replies_carry_the_key_of_their_request(run: Run) -> None:
    for request in run.answered:
        key = request.sending.key
        assert request.record.key == (key if key is not None else request.reply.request_id.encode())
        if key is not None:  # the same partitioner on both sides
            assert request.record.partition == request.place[0], key


def test_token_counts_add_up_and_say_why_the_answer_ended(run: Run) -> None:
    for request in run.answered:
        reply, limit = request.reply, request.expected.max_tokens
        prompt, completion, total = reply.usage
        if request.expected.code is not None:
            assert (prompt, completion, total, reply.finish_reason) == (None, None, None, None)
            continue
        assert prompt is not None
        assert completion is not None
        assert prompt > 7
        assert 1 <= completion <= limit
        assert total == prompt + completion
        assert reply.finish_reason in ("stop", "length")
        if reply.finish_reason == "length":
            assert completion == limit
        else:
            assert (reply.response or "").startswith(request.expected.fingerprint + " ")
    reasons = Counter(r.reply.finish_reason for r in run.answered)
    assert min(reasons["stop"], reasons["length"]) > 500


def test_headers_are_echoed_and_no_others_sent(run: Run) -> None:
    for request in run.answered:
        expected = {
            "request-id": request.reply.request_id.encode(),
            "reply-id": request.reply.reply_id.encode(),
            "status": b"error" if request.expected.code else b"ok",
            **request.expected.echoed,
        }
        assert dict(request.record.pairs) == expected
        assert len(request.record.pairs) == len(expected)


def test_metadata_comes_back_to_the_last_digit(run: Run) -> None:
    for request in run.answered:
        sent = json.loads(request.expected.metadata, parse_int=str, parse_float=str)
        got = json.loads(request.record.value or b"", parse_int=str, parse_float=str)["metadata"]
        assert got == sent, request.reply.request_id


def test_replies_say_where_they_come_from(run: Run) -> None:
    assert len({request.reply.reply_id for request in run.answered}) == REQUESTS
    for request in run.answered:
        reply = request.reply
        assert min(reply.timings) >= 0
        if request.expected.code is None:
            assert (reply.model, reply.model_version, reply.attempts) == ("gpt4_nano", "1", 1)
            assert 0 < reply.timings.inference_ms <= reply.timings.total_ms + 1000
        else:
            assert reply.attempts == 0
            assert reply.timings.inference_ms == 0


def test_the_answers_are_what_triton_itself_says(run: Run, shared_triton: Triton) -> None:
    short = [r for r in run.answered if r.expected.code is None and len(r.expected.prompt) < 10_000]
    with tritonclient.http.InferenceServerClient(shared_triton.url) as client:
        for request in short[:: max(1, len(short) // COMPARED_WITH_TRITON)]:
            prompt = tritonclient.http.InferInput("prompt", [1, 1], "BYTES")
            prompt.set_data_from_numpy(np.array([[request.expected.prompt.encode()]], dtype=np.object_))
            limit = tritonclient.http.InferInput("max_tokens", [1, 1], "INT32")
            limit.set_data_from_numpy(np.array([[request.expected.max_tokens]], dtype=np.int32))
            direct = client.infer("gpt4_nano", [prompt, limit])
            names = ("response", "finish_reason", "prompt_tokens", "completion_tokens", "tokens_used")
            response, reason, *counts = (direct.as_numpy(name).reshape(-1).tolist()[0] for name in names)
            assert request.reply.response == response.decode()
            assert request.reply.finish_reason == reason.decode()
            assert list(request.reply.usage) == counts


def test_what_is_no_request_is_dead_lettered_byte_for_byte(run: Run) -> None:
    expected = {r.place: r for r in run.answered if r.expected.dead_letter}
    assert len(run.dead_letters) == len(expected) > 50
    for letter in run.dead_letters:
        place = int(letter.headers["dlq-partition"] or b""), int(letter.headers["dlq-offset"] or b"")
        sending = expected.pop(place).sending
        assert (letter.key, letter.value) == (sending.key, sending.value)
        assert letter.pairs[: len(sending.headers)] == tuple(sending.headers)
        ours = dict(letter.pairs[len(sending.headers) :])
        assert ours.pop("dlq-worker")
        assert ours.pop("dlq-timestamp")
        assert ours == {
            "dlq-reason": b"invalid_request",
            "dlq-topic": run.request_topic.encode(),
            "dlq-partition": b"%d" % place[0],
            "dlq-offset": b"%d" % place[1],
            "dlq-attempts": b"0",
        }
    assert not expected


def test_every_declared_series_is_there_at_zero_before_the_first_request(run: Run) -> None:
    for series in vocabulary.WORKER_SERIES:
        suffixes = {"counter": [""], "gauge": [""], "histogram": ["_count", "_sum"]}[series.kind]
        for suffix in suffixes:
            for values in series.label_sets(["gpt4_nano"]):
                name = sample(series.full_name + suffix, series, values)
                assert name in run.before
                if series.kind != "gauge" and series.name not in ("commits_total", "rebalances_total"):
                    assert run.before[name] == 0, name
    assert run.before["promptbus_workers"] == 1
    assert run.before["promptbus_worker_restarts_total"] == 0
    assert run.before["promptbus_concurrency_limit"] >= 1


def sample(full_name: str, series: vocabulary.Series, values: tuple[str, ...]) -> str:
    """A sample's name as /metrics writes it."""
    pairs = sorted(zip((label.name for label in series.labels), values, strict=True))
    labels = ",".join(f'{name}="{value}"' for name, value in pairs)
    return full_name + (f"{{{labels}}}" if labels else "")


def test_metrics_after_a_run_add_up(run: Run) -> None:
    after = run.after

    def summed(name: str, *parts: str) -> float:
        return sum(
            value
            for full, value in after.items()
            if full.split("{")[0] == f"promptbus_{name}" and all(part in full for part in parts)
        )

    replies = [request.reply for request in run.answered]
    answers = [reply for reply in replies if reply.ok]
    codes = Counter(reply.error.code if reply.error else "ok" for reply in replies)
    for code in vocabulary.CODES:
        assert summed("requests_total", f'code="{code}"') == codes[code], code
    assert summed("requests_total") == REQUESTS
    # A request is charged to a model once the model is known.
    for name in ("gpt4_nano", "unknown"):
        of_model = sum((reply.model or "unknown") == name for reply in replies)
        assert summed("requests_total", f'model="{name}"') == of_model
        assert summed("response_duration_seconds_count", f'model="{name}"') == of_model
        assert summed("reply_duration_seconds_count", f'model="{name}"') == of_model
    for index, kind in enumerate(vocabulary.TOKEN_KINDS):
        counts = [reply.usage[index] or 0 for reply in answers]
        assert summed("tokens_total", f'kind="{kind}"') == sum(counts)
        assert summed("request_tokens_sum", f'kind="{kind}"') == sum(counts)
        assert summed("request_tokens_count", f'kind="{kind}"') == len(counts)
    assert summed("dead_letters_total") == len(run.dead_letters)
    assert summed("dead_letters_total", 'reason="invalid_request"') == len(run.dead_letters)
    batches = summed("batches_total")
    assert summed("batch_size_count") == batches == summed("inference_calls_total", 'result="ok"')
    assert summed("inference_calls_total") == batches == summed("inference_duration_seconds_count")
    assert summed("batch_size_sum") == len(answers) == summed("queue_duration_seconds_count")
    assert summed("batch_size_bucket", 'le="8.0"') == batches, "no batch is larger than the model's limit"
    assert summed("retries_total") == summed("redeliveries_skipped_total") == 0
    assert summed("batches_total", 'closed_by="size"') > summed("batches_total", 'closed_by="slot"')
    assert summed("lag_records") == summed("lag_seconds") == summed("time_to_drain_seconds") == 0
    assert summed("oldest_in_flight_seconds") == 0
    assert summed("rebalances_total", 'kind="assign"') >= 1
    assert 20 << 20 < summed("worker_resident_memory_bytes") < 300 << 20
    assert summed("metrics_files_corrupt") == summed("worker_restarts_total") == 0
    assert summed("commits_total", 'result="ok"') >= 6
    assert summed("commits_total") == summed("commits_total", 'result="ok"')
