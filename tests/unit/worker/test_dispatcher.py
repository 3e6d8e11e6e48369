"""What becomes of requests when all goes well and when it does not, in virtual time."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import Any

import pytest

from promptbus_worker.acknowledged_replies import BULK_S
from promptbus_worker.commit_metadata import decode
from promptbus_worker.dispatcher import WAITING_IN_BULK
from promptbus_worker.model import ModelSpec
from promptbus_worker.outcomes import CallError, CallFailure
from tests.unit.worker.path import SPEC, Path, Refusal
from tests.unit.worker.virtual_time import in_virtual_time, loop, run


def ids(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def deadline_in(seconds: float) -> list[tuple[str, bytes | None]]:
    return [("deadline", str(int((loop().time() + seconds) * 1000)).encode())]


@in_virtual_time
async def test_every_prompt_gets_its_own_answer() -> None:
    path = Path()
    path.ask(*ids(100))
    await path.settle(100)
    replies = path.replies_by_id()
    assert {i: r.response for i, r in replies.items()} == {i: f"echo {i}" for i in ids(100)}
    assert path.commits() == 100
    assert path.ledger.records_in_hand == 0


@in_virtual_time
async def test_batches_are_full_when_busy_and_never_more_in_flight_than_allowed() -> None:
    path = Path(concurrency=3)
    path.ask(*ids(80))
    await path.settle(80)
    assert [len(call) for call in path.model.calls] == [8] * 10
    assert max(path.model.most_running.values()) == 3


@in_virtual_time
async def test_beyond_the_light_limit_only_full_batches_leave() -> None:
    path = Path(concurrency=4)
    path.model.latency_s = 5.0
    path.limiter.light_limit = 2
    path.ask("a")
    path.ask("b")
    path.ask(*ids(7))
    await asyncio.sleep(1)
    assert path.model.calls == [["a"], ["b"]]
    path.ask("p7")
    await asyncio.sleep(1)
    assert path.model.calls[2:] == [ids(8)]
    path.ask(*ids(20, "q"))
    await asyncio.sleep(1)
    assert path.model.calls[3:] == [ids(8, "q")]
    await path.settle(30)


@in_virtual_time
async def test_the_age_of_the_oldest_call_is_known_while_it_runs() -> None:
    path = Path(concurrency=2)
    path.model.latency_s = 5.0
    assert path.dispatcher.oldest_call_s(loop().time()) == 0
    path.ask("a")
    await asyncio.sleep(3)
    path.ask("b")
    await asyncio.sleep(1)
    assert path.dispatcher.oldest_call_s(loop().time()) == pytest.approx(4)
    await asyncio.sleep(2)
    assert path.dispatcher.oldest_call_s(loop().time()) == pytest.approx(3), "the first one has ended"
    await path.settle(2)
    assert path.dispatcher.oldest_call_s(loop().time()) == 0


@in_virtual_time
async def test_a_lone_request_leaves_at_once_when_idle() -> None:
    path = Path()
    before = loop().time()
    path.ask("a")
    await path.settle(1)
    assert loop().time() - before < 0.05


@in_virtual_time
async def test_a_lingering_batch_leaves_when_its_time_is_up() -> None:
    path = Path(linger_s=0.5)
    path.ask("a")
    await asyncio.sleep(0.4)
    path.ask("b")
    assert path.model.calls == []
    await path.settle(2)
    assert path.model.calls == [["a", "b"]]
    path.dispatcher.update_gauges()
    assert path.metrics.batches_total["gpt4_nano", "linger"]._value.get() == 1


@in_virtual_time
async def test_a_poisoned_prompt_in_a_full_batch_fails_alone_within_2n_calls() -> None:
    path = Path(concurrency=1)
    path.model.poison = {"p3"}
    path.ask(*ids(8))
    await path.settle(8)
    assert path.codes() == {i: "model_error" if i == "p3" else "ok" for i in ids(8)}
    assert len(path.model.calls) <= 16
    assert len(path.dead_letters()) == 1
    assert "secret" not in str(path.broker.written)


@in_virtual_time
async def test_an_unreadable_row_fails_alone_without_another_call() -> None:
    path = Path()
    path.model.bad_rows = {"p5"}
    path.ask(*ids(8))
    await path.settle(8)
    assert path.codes() == {i: "bad_model_output" if i == "p5" else "ok" for i in ids(8)}
    assert len(path.model.calls) == 1


@in_virtual_time
async def test_a_poisoned_prompt_with_no_other_traffic_is_charged_after_three_failures() -> None:
    path = Path()
    path.model.poison = {"bad"}
    path.ask("bad")
    await path.settle(1)
    assert path.codes() == {"bad": "model_error"}
    assert path.model.calls == [["bad"]] * 3


@pytest.mark.parametrize("count", [2, 8, 40])
def test_poisoned_prompts_among_themselves_are_charged_if_our_probe_works(count: int) -> None:
    async def body() -> None:
        path = Path()
        path.model.poison = set(ids(count))
        path.ask(*ids(count))
        await path.settle(count, within_s=120)
        assert path.codes() == dict.fromkeys(ids(count), "model_error")
        assert len(path.model.calls) < 20 * count + 60

    run(body())


@in_virtual_time
async def test_a_witness_among_poisoned_prompts_gets_its_turn() -> None:
    path = Path()
    path.model.poison = set(ids(40))
    path.ask(*ids(40), "good")
    await path.settle(41, within_s=60)
    assert path.codes() == {"good": "ok", **dict.fromkeys(ids(40), "model_error")}


@in_virtual_time
async def test_a_model_that_answers_only_our_probe_charges_nobody_while_there_is_other_traffic() -> None:
    path = Path()
    path.model.poison = set(ids(2000))
    path.ask(*ids(2000))
    await asyncio.sleep(60)
    assert path.broker.written == []
    assert len(path.model.calls) < 2000, "and it is not hammered"
    path.model.poison = set()
    await path.settle(2000)
    assert set(path.codes().values()) == {"ok"}


@in_virtual_time
async def test_a_model_that_refuses_our_probe_is_tried_with_waiting_requests() -> None:
    path = Path()
    path.model.poison = {"ping"}
    path.model.failure = CallFailure.REFUSED
    path.ask(*ids(20))
    await asyncio.sleep(30)
    path.model.failure = None
    await path.settle(20, within_s=20)
    assert set(path.codes().values()) == {"ok"}


@in_virtual_time
async def test_a_model_that_refuses_our_probe_opens_again_although_nobody_waits() -> None:
    path = Path()
    path.model.poison = {"ping"}
    path.model.failure = CallFailure.REFUSED
    path.ask("a", headers=deadline_in(5))
    await path.settle(1)
    path.model.failure = None
    await asyncio.sleep(10)
    assert path.held == [True, False]


@pytest.mark.parametrize(
    "failure", [CallFailure.MODEL_ERROR, CallFailure.MODEL_UNHEALTHY, CallFailure.NOT_FOUND]
)
def test_a_broken_model_charges_nobody_and_all_are_answered_once_it_works(failure: CallFailure) -> None:
    async def body() -> None:
        path = Path()
        path.model.failure = failure
        path.ask(*ids(100))
        await asyncio.sleep(120)
        assert path.broker.written == []
        assert path.held == [True], "the partitions are paused"
        path.model.failure = None
        await path.settle(100)
        assert set(path.codes().values()) == {"ok"}
        assert path.held == [True, False]
        assert {r.attempts for r in path.replies_by_id().values()} == {1}

    run(body())


@pytest.mark.parametrize("failure", [CallFailure.OVERLOADED, CallFailure.REFUSED, CallFailure.FORBIDDEN])
def test_overload_burns_no_attempt_however_long_it_lasts(failure: CallFailure) -> None:
    async def body() -> None:
        path = Path()
        path.model.failure = failure
        path.ask(*ids(20))
        await asyncio.sleep(600)
        calls = len(path.model.calls)
        path.model.failure = None
        await path.settle(20)
        assert set(path.codes().values()) == {"ok"}
        assert {r.attempts for r in path.replies_by_id().values()} == {1}
        assert calls < 300, "no hammering"
        assert loop().time() < 1000 + 610, "and no long wait once it works"

    run(body())


@pytest.mark.parametrize("how", ["hangs", "breaks"])
@pytest.mark.parametrize("neighbours", [0, 50])
def test_the_third_broken_call_is_final_if_the_model_works_for_others(how: str, neighbours: int) -> None:
    async def body() -> None:
        path = Path(timeout_s=1)
        setattr(path.model, how, {"a"})
        path.ask("a", *ids(neighbours))
        await path.settle(1 + neighbours)
        assert path.codes() == {"a": "inference_timeout", **dict.fromkeys(ids(neighbours), "ok")}
        assert path.replies_by_id()["a"].attempts == 3
        assert len(path.dead_letters()) == 1
        assert 3 <= len([call for call in path.model.calls if "a" in call]) <= 5

    run(body())


@pytest.mark.parametrize("failure", [CallFailure.CONNECTION, CallFailure.TIMEOUT])
@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_triton_that_hangs_for_hours_burns_no_prompt(failure: CallFailure, concurrency: int) -> None:
    async def body() -> None:
        path = Path(timeout_s=30, concurrency=concurrency)
        path.model.failure = failure
        path.ask(*ids(100))
        await asyncio.sleep(7200)
        assert path.broker.written == []
        path.model.failure = None
        await path.settle(100)
        assert set(path.codes().values()) == {"ok"}

    run(body())


@in_virtual_time
async def test_impatient_requests_do_not_open_the_breaker_for_others() -> None:
    path = Path(timeout_s=30, concurrency=2)
    path.model.latency_s = 0.5
    for number in range(40):
        path.ask(f"hurry{number}", headers=deadline_in(0.2))
        await asyncio.sleep(0.05)
    path.ask("patient")
    await path.settle(41)
    assert path.codes() == {"patient": "ok", **{f"hurry{n}": "expired" for n in range(40)}}
    assert path.held == []


@in_virtual_time
async def test_a_prompt_that_hangs_does_not_take_its_neighbours_with_it() -> None:
    path = Path(timeout_s=1, concurrency=1)
    path.model.hangs = {"p2"}
    path.ask(*ids(8))
    await path.settle(8)
    assert path.codes() == {i: "inference_timeout" if i == "p2" else "ok" for i in ids(8)}


@pytest.mark.parametrize("slow_s", [2.0, 6.0, 20.0])
@pytest.mark.parametrize("instances", [1, 2])
def test_a_slow_prompt_that_triton_goes_on_with_hurts_no_neighbour(slow_s: float, instances: int) -> None:
    """As Triton does it: what the worker has given up still occupies an instance until it is done."""

    async def body() -> None:
        path = Path(timeout_s=1, concurrency=4)
        path.model.occupy(instances, {"p0": slow_s})
        path.ask(*ids(8))
        await path.settle(8)
        assert path.codes() == {"p0": "inference_timeout", **dict.fromkeys(ids(8)[1:], "ok")}

    run(body())


@in_virtual_time
async def test_a_request_without_deadline_never_expires() -> None:
    path = Path()
    path.model.failure = CallFailure.REFUSED
    path.ask("patient")
    await asyncio.sleep(7200)
    assert path.broker.written == []
    path.model.failure = None
    await path.settle(1)
    assert path.codes() == {"patient": "ok"}


@in_virtual_time
async def test_a_deadline_that_has_passed_costs_no_inference() -> None:
    path = Path()
    path.ask("late", headers=deadline_in(-1))
    await path.settle(1)
    assert path.codes() == {"late": "expired"}
    assert path.model.calls == []


@in_virtual_time
async def test_waiting_requests_are_answered_at_their_deadline() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 10
    path.ask("first")
    path.ask("second", headers=deadline_in(2))
    await path.settle(1)
    assert path.codes() == {"second": "expired"}
    assert 1001.9 < loop().time() < 1002.2
    await path.settle(2)
    assert path.model.calls == [["first"]]


@in_virtual_time
async def test_a_near_deadline_in_a_batch_does_not_hurt_the_others() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 5
    path.publish({"request_id": "near", "prompt": "near"}, headers=deadline_in(1))
    path.ask("far")
    # "near" went out alone; the next batch mixes both kinds
    path.publish({"request_id": "near2", "prompt": "near2"}, headers=deadline_in(5))
    await path.settle(3)
    assert path.codes() == {"near": "expired", "far": "ok", "near2": "expired"}
    assert path.model.calls == [["near"], ["far", "near2"]]


@in_virtual_time
async def test_a_deadline_while_triton_is_gone_says_unavailable() -> None:
    path = Path()
    path.model.failure = CallFailure.REFUSED
    path.ask("a", headers=deadline_in(3))
    await path.settle(1)
    reply = path.replies_by_id()["a"]
    assert reply.error is not None
    assert (reply.error.code, reply.error.retryable) == ("unavailable", True)
    assert path.dead_letters() == []


@in_virtual_time
async def test_time_outs_across_a_freeze_burn_no_attempt() -> None:
    path = Path(timeout_s=2, concurrency=1)
    path.model.hangs = {"a"}
    path.ask("a")
    for _ in range(5):
        await asyncio.sleep(0.5)
        loop().freeze(60)
        await asyncio.sleep(0.5)
    path.model.hangs = set()
    await path.settle(1)
    assert path.codes() == {"a": "ok"}


@in_virtual_time
async def test_after_a_freeze_nothing_is_answered_before_the_consumer_has_polled() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 1
    path.ask("answered")
    path.ask("expired", headers=deadline_in(2))
    await asyncio.sleep(0.5)
    path.polling = False
    loop().freeze(60)
    await asyncio.sleep(10)
    assert path.broker.written == []
    assert path.polls_wanted > 0
    path.polling = True
    await path.settle(2)
    assert path.codes() == {"answered": "ok", "expired": "expired"}


@in_virtual_time
async def test_after_a_freeze_that_cost_the_partition_nothing_is_answered() -> None:
    path = Path()
    path.model.latency_s = 1
    path.ask(*ids(8))
    await asyncio.sleep(0.5)
    path.polling = False
    loop().freeze(60)
    await asyncio.sleep(5)
    path.ledger.end(path.owned)  # what that first poll tells
    path.dispatcher.forget([path.owned])
    path.polling = True
    await asyncio.sleep(60)
    assert path.broker.written == []


@in_virtual_time
async def test_results_of_a_lost_partition_are_dropped() -> None:
    path = Path()
    path.model.latency_s = 1
    path.ask(*ids(8))
    await asyncio.sleep(0.5)
    path.ledger.end(path.owned)
    path.dispatcher.forget([path.owned])
    await asyncio.sleep(10)
    assert path.broker.written == []
    assert await path.dispatcher.idle(1)


@in_virtual_time
async def test_revoke_gives_back_what_waits_and_finishes_what_was_dispatched() -> None:
    path = Path(concurrency=1)
    path.model.latency_s = 1
    path.ask(*ids(30))
    await asyncio.sleep(0.5)
    path.dispatcher.release([path.owned])
    assert sorted(path.released_offsets) == list(range(8, 30))
    await path.settle(8)
    assert path.ledger.in_hand([path.owned]) == 0
    assert path.commits() == 8


@in_virtual_time
async def test_revoke_leaves_what_waits_below_an_answered_offset_and_the_commit_tells_of_the_answered_one() -> (
    None
):
    path = Path(concurrency=1)
    path.model.latency_s = 1
    path.ask(*ids(20))
    path.publish(b"not a request")  # answered at once, at offset 20
    path.ask(*ids(5, "tail"))
    await asyncio.sleep(0.5)
    path.dispatcher.release([path.owned])
    assert sorted(path.released_offsets) == [*range(8, 20), *range(21, 26)]
    await path.settle(9)
    (commit,) = path.ledger.take_commits()
    assert (commit.offset, decode(8, commit.metadata)) == (8, [(20, 21)])


@in_virtual_time
async def test_a_drain_with_triton_gone_does_not_wait_for_it() -> None:
    path = Path()
    path.model.failure = CallFailure.REFUSED
    path.ask(*ids(20))
    await asyncio.sleep(5)
    path.dispatcher.drain([path.owned])
    assert await path.dispatcher.idle(1)
    assert sorted(path.released_offsets) == list(range(20))
    assert path.broker.written == []


@in_virtual_time
async def test_a_full_producer_queue_slows_down_and_loses_nothing() -> None:
    path = Path()
    path.broker.queue_size = 3
    path.ask(*ids(200))
    await path.settle(200)
    assert set(path.codes().values()) == {"ok"}
    assert len(path.codes()) == 200


@in_virtual_time
async def test_what_waits_for_room_in_the_producer_goes_on_when_there_is_some() -> None:
    path = Path(concurrency=1)
    path.broker.queue_size, path.broker.acknowledging = 3, False
    path.ask(*ids(24))
    await asyncio.sleep(60)
    assert len(path.model.calls) == 1, "its answers do not fit, so no other call begins"
    path.broker.acknowledging = True
    await path.settle(24)
    assert len(path.codes()) == 24


@in_virtual_time
async def test_delivery_reports_come_in_bulk_when_replies_do_not() -> None:
    path, polls = Path(), 0
    poll = path.broker.poll

    def counted(timeout: float) -> int:
        nonlocal polls
        polls += 1
        return poll(timeout)

    path.broker.poll = counted  # type: ignore[method-assign]
    for prompt in ids(500):
        path.ask(prompt)
        await asyncio.sleep(0.002)
    await path.settle(500)
    assert 500 * 0.002 / 0.1 < polls < 500 / 2


@in_virtual_time
async def test_replies_of_a_burst_are_collected_and_leave_with_its_end() -> None:
    path = Path(concurrency=1)
    produced: list[float] = []
    produce = path.broker.produce

    def noted(*arguments: Any, **more: Any) -> None:
        produced.append(round(loop().time() - began, 6))
        produce(*arguments, **more)

    path.broker.produce = noted  # type: ignore[method-assign]
    began = loop().time()
    path.ask(*ids(8 * 40))
    await path.settle(8 * 40)
    calls_s = 40 * path.model.latency_s
    in_the_burst = [
        at for at in produced if at < calls_s - WAITING_IN_BULK / 8 * path.model.latency_s - 0.001
    ]
    assert len(set(in_the_burst)) == pytest.approx(calls_s / BULK_S, abs=1)
    assert len(in_the_burst) > 8 * 20
    assert max(produced) <= calls_s + 0.001, "nothing waits for the next collection"


@in_virtual_time
async def test_an_offset_settles_only_when_the_broker_has_acknowledged() -> None:
    path = Path()
    path.broker.acknowledging = False
    path.ask("a")
    await asyncio.sleep(60)
    assert path.settled_offsets == []
    assert not await path.replies.all_acknowledged(1)
    path.broker.acknowledging = True
    await path.settle(1)
    assert await path.replies.all_acknowledged(1)


@in_virtual_time
async def test_a_failed_delivery_is_written_again() -> None:
    path = Path()
    failures = iter([Refusal("_MSG_TIMED_OUT")] * 3)
    path.broker.answers = lambda topic, size: next(failures, None)
    path.ask("a")
    await path.settle(1)
    assert path.codes() == {"a": "ok"}


@in_virtual_time
async def test_an_answer_larger_than_the_topic_takes_becomes_an_error_and_a_dead_letter() -> None:
    path = Path(limits={"results": 2500, "dead": 2500, "other": 2500})
    path.publish({"request_id": "a", "prompt": "x" * 900, "metadata": {"m": "y" * 2400}}, key=b"k")
    await path.settle(1)
    assert path.codes() == {"a": "reply_too_large"}
    reply = path.replies_by_id()["a"]
    assert reply.metadata == {}, "metadata goes first"
    (dead,) = path.dead_letters()
    assert dead.headers["dlq-reason"] == b"reply_too_large"
    assert dead.headers["dlq-truncated"] is not None


@in_virtual_time
async def test_an_answer_that_the_broker_refuses_for_its_size_becomes_an_error() -> None:
    path = Path(limits={"results": 8000, "dead": 8000, "other": 8000})
    path.broker.answers = lambda topic, size: Refusal("MSG_SIZE_TOO_LARGE") if size > 5000 else None
    path.publish({"request_id": "a", "prompt": "x" * 6000})
    await path.settle(1)
    assert path.codes() == {"a": "reply_too_large"}


@in_virtual_time
async def test_a_dead_letter_that_the_broker_refuses_for_its_size_is_cut_in_a_few_steps() -> None:
    """The topic was told to take less after the worker had read its limit."""
    path = Path(limits={"results": 1 << 20, "dead": 1 << 20, "other": 1 << 20})
    path.model.poison = {"x" * 9_000}
    refused: list[int] = []

    def answer(topic: str, size: int) -> Refusal | None:
        if topic != "dead" or size <= 3_000:
            return None
        refused.append(size)
        return Refusal("MSG_SIZE_TOO_LARGE")

    path.broker.answers = answer
    path.publish({"request_id": "poison", "prompt": "x" * 9_000}, {"request_id": "a", "prompt": "a"})
    await path.settle(2, within_s=60)
    assert path.codes() == {"poison": "model_error", "a": "ok"}
    (dead,) = path.dead_letters()
    assert len(dead.value or b"") > 3_000 // 2
    assert int(dead.headers["dlq-truncated"] or b"") > 9_000
    assert len(refused) < 12
    assert path.commits() == 2


@in_virtual_time
async def test_a_redriven_request_that_dies_again_keeps_its_id_and_its_count() -> None:
    path = Path()
    path.model.poison = {"x"}
    path.publish({"prompt": "x"}, headers=[("request-id", b"first-life"), ("redrive-count", b"3")])
    path.publish(b"garbage", headers=[("redrive-count", b"1")])
    await path.settle(2)
    assert path.codes() == {"first-life": "model_error", "requests-0-1": "invalid_request"}
    died = {dead.value: dead.headers for dead in path.dead_letters()}
    assert died[b"garbage"]["redrive-count"] == b"1"
    (again,) = (headers for value, headers in died.items() if value != b"garbage")
    assert (again["redrive-count"], again["request-id"]) == (b"3", b"first-life")


@pytest.mark.parametrize("by", ["report", "produce", "poll"])
def test_a_fatal_producer_error_stops_the_worker_once_and_settles_nothing(by: str) -> None:
    async def body() -> None:
        path = Path()
        path.broker.fail_for_good(by)
        path.ask(*ids(100))
        path.publish(b"garbage")
        await asyncio.sleep(10)
        assert len(path.stopped) == 1
        assert path.settled_offsets == []
        assert not await path.replies.all_acknowledged(1)

    run(body())


@in_virtual_time
async def test_answered_requests_are_forgotten_before_their_deadline() -> None:
    path = Path()
    for number in range(50):
        path.ask(*ids(100, f"r{number}-"), headers=deadline_in(10**6))
        await path.settle(100 * (number + 1))
    assert len(path.dispatcher._reception._expiry) <= 1100


@in_virtual_time
async def test_changed_inputs_of_a_reloaded_model_ask_for_a_restart() -> None:
    path = Path()
    path.model.failure = CallFailure.NOT_FOUND
    path.ask("a")
    await asyncio.sleep(1)
    path.model.spec = replace(SPEC, inputs={"prompt": SPEC.inputs["prompt"]})
    path.model.failure = None
    await asyncio.sleep(10)
    assert path.stopped
    assert "inputs of gpt4_nano" in path.stopped[0]


@in_virtual_time
async def test_a_failure_that_is_being_handled_is_not_the_cause_of_what_others_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path()
    reading: list[str] = []

    async def slowly(model: str, version: str | None = None) -> ModelSpec:
        reading.append(model)
        await asyncio.sleep(1)
        raise CallError(CallFailure.NOT_FOUND, "down")

    monkeypatch.setattr(path.model, "read_spec", slowly)
    path.model.failure = CallFailure.NOT_FOUND
    path.ask("a")
    met: list[BaseException | None] = []
    loop().call_later(0.5, lambda: met.append(sys.exception()))
    await asyncio.sleep(0.8)
    assert reading == ["gpt4_nano"]
    assert met == [None]


@in_virtual_time
async def test_giving_up_gives_everything_back() -> None:
    path = Path(concurrency=2)
    path.model.latency_s = 100
    path.ask(*ids(40))
    await asyncio.sleep(1)
    await path.dispatcher.stop()
    assert sorted(path.released_offsets) == list(range(40))
    assert path.ledger.records_in_hand == 0
    await asyncio.sleep(1000)
    assert path.broker.written == []


@in_virtual_time
async def test_garbage_is_answered_under_its_derived_id_and_dead_lettered() -> None:
    path = Path()
    path.publish(b"\xff\xfe", b"", b"[1]", key=b"k")
    await path.settle(3)
    assert path.codes() == {f"requests-0-{n}": "invalid_request" for n in range(3)}
    assert [letter.value for letter in path.dead_letters()] == [b"\xff\xfe", b"", b"[1]"]
    assert {record.key for record in path.broker.written} == {b"k"}


@in_virtual_time
async def test_metrics_add_up() -> None:
    path = Path()
    path.model.poison = {"p3"}
    path.ask(*ids(20))
    path.publish(b"garbage")
    await path.settle(21)
    value = {
        labels: counter._value.get()
        for labels, counter in path.metrics.requests_total.items()
        if counter._value.get()
    }
    assert value == {
        ("gpt4_nano", "ok"): 19,
        ("gpt4_nano", "model_error"): 1,
        ("unknown", "invalid_request"): 1,
    }
    assert path.metrics.tokens_total["gpt4_nano", "total"]._value.get() == 19 * 5
