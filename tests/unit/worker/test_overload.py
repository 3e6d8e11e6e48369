"""Overload is not failure: rules 8 to 10 line by line, in virtual time, with limiter and breaker at work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from promptbus_worker.blame import Traffic
from promptbus_worker.breaker import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from promptbus_worker.model import Inputs, ModelSpec
from promptbus_worker.outcomes import VERDICTS, CallError, CallFailure
from promptbus_worker.record import Pending
from tests.unit.worker.path import SPEC, Path
from tests.unit.worker.test_dispatcher import deadline_in, ids
from tests.unit.worker.virtual_time import in_virtual_time, loop, run

OVERLOAD = [
    CallFailure.OVERLOADED,
    CallFailure.REFUSED,
    CallFailure.TIMEOUT,
    CallFailure.CONNECTION,
]
DEAF_TO = sorted(set(CallFailure) - set(OVERLOAD))


def adaptive(begin_with: int = 8) -> Path:
    return Path(concurrency=begin_with, concurrency_max=16, timeout_s=1.0)


async def all_settled(path: Path, count: int) -> None:
    """Looks seldom: these tests last for minutes of virtual time."""
    async with asyncio.timeout(400):
        while len(path.settled_offsets) < count:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.1)


# -- the limiter in the path


@pytest.mark.parametrize("failure", OVERLOAD)
def test_the_limit_falls_before_the_requests_of_a_failed_call_wait_again(failure: CallFailure) -> None:
    async def body() -> None:
        path, seen = adaptive(), []

        class Spy:
            def put_back(self, requests: list[Pending]) -> None:
                seen.append(path.limiter.limit)
                path.dispatcher.put_back(requests)

        path.dispatcher._runner._blame._traffic = cast(Traffic, Spy())  # nothing else is asked of it here
        path.model.failure = failure
        path.ask(*ids(8))
        while not seen:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.01)
        assert seen[0] == 5

    run(body())


@pytest.mark.parametrize("failure", DEAF_TO)
def test_the_limiter_is_deaf_to_what_a_request_or_the_model_did_wrong(failure: CallFailure) -> None:
    async def body() -> None:
        path = adaptive()
        path.ask(*ids(8, "before"))
        await path.settle(8)
        path.model.failure = failure
        path.ask(*ids(64))
        await asyncio.sleep(0.04)
        assert path.model.calls[1:], "calls have failed"
        assert path.limiter.limit == 8

    assert not VERDICTS[failure].lowers_limit
    run(body())


@in_virtual_time
async def test_a_burst_of_refusals_is_one_decrease() -> None:
    path = adaptive()
    path.model.failure = CallFailure.OVERLOADED
    path.ask(*ids(64))
    await asyncio.sleep(FIRST_BACKOFF_S / 2)
    assert len(path.model.calls) == 5
    assert path.limiter.limit == 5


@in_virtual_time
async def test_time_outs_that_only_deadlines_caused_do_not_lower_the_limit() -> None:
    path = adaptive()
    path.model.latency_s = 0.5
    for number in range(20):
        path.ask(f"hurry{number}", headers=deadline_in(0.1))
        await asyncio.sleep(0.05)
    await path.settle(20)
    assert path.limiter.limit == 8


@in_virtual_time
async def test_time_outs_in_a_freeze_do_not_lower_the_limit() -> None:
    path = adaptive()
    path.model.latency_s = 0.5
    path.ask(*ids(8))
    await asyncio.sleep(0.1)
    loop().freeze(5)
    await path.settle(8)
    assert path.limiter.limit == 8


@in_virtual_time
async def test_more_replicas_than_triton_told_of_are_found() -> None:
    path = Path(concurrency=2, concurrency_max=32)
    path.model.occupy(8, {})
    path.model.latency_s = 0.15
    path.ask(*ids(8 * 600))
    await all_settled(path, 8 * 600)
    assert 8 <= max(path.model.most_running.values()) <= 16
    assert loop().time() - 1000 < 1.25 * 600 / 8 * 0.15
    path.dispatcher.update_gauges()
    assert path.metrics.concurrency_limit._value.get() == path.limiter.limit


# -- rule 8


@in_virtual_time
async def test_a_server_that_names_a_time_is_left_alone_for_so_long() -> None:
    path = Path(concurrency=2)
    infer = path.model.infer
    asked: list[float] = []

    async def busy(*arguments: object) -> object:
        asked.append(loop().time())
        if len(asked) == 2:
            raise CallError(CallFailure.OVERLOADED, "busy", status=503, retry_after_s=7)
        return await infer(*arguments)  # type: ignore[arg-type]  # passed on as they came

    path.model.infer = busy  # type: ignore[assignment,method-assign]  # a server that is busy once
    path.ask(*ids(24))
    await path.settle(24)
    assert asked[2] - asked[1] >= 7, "though the first call was answered in between"
    assert asked[2] - asked[1] < 7.1
    assert set(path.codes().values()) == {"ok"}
    assert {reply.attempts for reply in path.replies_by_id().values()} == {1}


@pytest.mark.parametrize("failure", OVERLOAD)
def test_a_failed_call_is_not_repeated_at_once_although_others_are_answered(failure: CallFailure) -> None:
    async def body() -> None:
        path = Path(concurrency=4)
        infer = path.model.infer
        asked: list[float] = []

        async def fails_once(*arguments: object) -> object:
            asked.append(loop().time())
            if len(asked) == 1:
                await asyncio.sleep(path.model.latency_s / 2)
                raise CallError(failure, "for once")
            return await infer(*arguments)  # type: ignore[arg-type]  # passed on as they came

        path.model.infer = fails_once  # type: ignore[assignment,method-assign]  # a server that fails once
        path.ask(*ids(64))
        await path.settle(64)
        assert asked[:4] == [asked[0]] * 4, "three more that will be answered"
        assert asked[4] - asked[0] >= FIRST_BACKOFF_S
        assert set(path.codes().values()) == {"ok"}

    run(body())


@pytest.mark.parametrize("failure", [CallFailure.TIMEOUT, CallFailure.CONNECTION])
def test_broken_calls_are_repeated_after_a_back_off_and_never_bisected(failure: CallFailure) -> None:
    async def body() -> None:
        path = Path(concurrency=1, timeout_s=1)
        ended: list[float] = []
        path.model.failure = failure
        path.ask(*ids(8))
        while len(path.model.calls) < 2:
            if path.model.calls and not path.model.running and not ended:
                ended.append(loop().time())
            await asyncio.sleep(0.001)
        assert path.model.calls == [ids(8)] * 2
        assert loop().time() - ended[0] >= FIRST_BACKOFF_S - 0.002
        path.model.failure = None
        await path.settle(8)
        assert set(path.codes().values()) == {"ok"}

    run(body())


async def broken_for(path: Path, seconds: float) -> list[float]:
    """Every call breaks at once, but our own probe comes through; when the last one of them was made."""
    made: list[float] = []
    infer = path.model.infer
    over = loop().time() + seconds

    async def flapping(spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float) -> object:
        if batch[0]["prompt"] != b"ping" and loop().time() < over:
            made.append(loop().time())
            await asyncio.sleep(0.001)
            raise CallError(CallFailure.CONNECTION, "closed")
        return await infer(spec, batch, timeout_s)

    path.model.infer = flapping  # type: ignore[assignment,method-assign]  # a server on its way down
    return made


@pytest.mark.parametrize("seconds", [1.0, 29.0])
@pytest.mark.parametrize("count", [1, 8, 100])
def test_connections_that_break_in_a_row_while_triton_restarts_finish_no_prompt(
    seconds: float, count: int
) -> None:
    """Not even if every probe comes through: half a minute of broken calls is a prompt's fault, a few seconds are not."""

    async def body() -> None:
        path = Path(concurrency=4, timeout_s=30)
        made = await broken_for(path, seconds)
        path.ask(*ids(count))
        await all_settled(path, count)
        assert len(made) >= 2
        assert set(path.codes().values()) == {"ok"}
        assert path.dead_letters() == []

    run(body())


@in_virtual_time
async def test_no_broken_call_is_final_before_a_time_out_would_have_been_over() -> None:
    path = Path(concurrency=1, timeout_s=30)
    made = await broken_for(path, 3600)
    path.ask("guilty")
    await path.settle(1)
    assert path.codes() == {"guilty": "inference_timeout"}
    assert path.replies_by_id()["guilty"].attempts == 3
    assert [round(at - made[0]) for at in made] == [0, 0, 0, 30], "nobody hammers in between"


@in_virtual_time
async def test_neighbours_and_others_do_not_wait_for_a_prompt_that_breaks_every_connection() -> None:
    path = Path(concurrency=1, timeout_s=30)
    path.model.breaks = {"p0"}
    began = loop().time()
    path.ask(*ids(80))
    await path.settle(79)
    assert loop().time() - began < 5
    assert path.codes() == dict.fromkeys(ids(80)[1:], "ok")
    await path.settle(80)
    assert path.codes()["p0"] == "inference_timeout"


@in_virtual_time
async def test_a_last_attempt_is_made_before_its_requests_deadline() -> None:
    path = Path(concurrency=1, timeout_s=30)
    await broken_for(path, 1.0)
    path.ask("urgent", headers=deadline_in(10))
    await path.settle(1)
    assert path.codes() == {"urgent": "ok"}


# -- rules 9 and 10, the breaker


@pytest.mark.parametrize("failure", [CallFailure.REFUSED, CallFailure.MODEL_UNHEALTHY, CallFailure.TIMEOUT])
def test_an_outage_pauses_probes_by_inference_and_ends_gently(failure: CallFailure) -> None:
    """Nothing dead-lettered, no attempt burnt for good, one probe at a time; then 1, 2, 4 calls side by side."""

    async def body() -> None:
        path = adaptive(begin_with=4)
        path.ask(*ids(8 * 80))
        await path.settle(80)
        path.model.failure = failure
        await asyncio.sleep(120)
        answered = len(path.broker.written)
        assert path.held == [True], "the partitions are paused"
        assert path.gates.breaker_open
        outage = len(path.model.calls)
        path.model.most_running.clear()
        await asyncio.sleep(60)
        probes = path.model.calls[outage:]
        if failure is not CallFailure.REFUSED:  # there, not even the metadata can be read
            assert probes
            assert all(prompts == ["ping"] for prompts in probes), "a real inference, of a prompt of our own"
            assert path.model.most_running == {"ping": 1}
        assert len(path.broker.written) == answered, "nothing is answered, nothing dead-lettered"
        path.model.failure = None
        while path.held[-1]:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.001)
        assert path.limiter.limit == 1
        side_by_side = []
        for _ in range(3):
            side_by_side.append(len(path.model.running))
            await asyncio.sleep(path.model.latency_s + 0.0015)
        assert side_by_side == [1, 2, 4]
        await path.settle(8 * 80)
        assert set(path.codes().values()) == {"ok"}
        assert path.dead_letters() == []
        if not VERDICTS[failure].counts_attempt:
            assert {reply.attempts for reply in path.replies_by_id().values()} == {1}

    run(body())


@in_virtual_time
async def test_a_model_that_is_not_there_for_a_while_is_read_again_and_waited_for() -> None:
    path = Path(concurrency=2)
    path.ask(*ids(800))
    await path.settle(16)
    path.model.failure = CallFailure.NOT_FOUND
    read: list[float] = []
    read_spec = path.model.read_spec

    async def watched(model: str, version: str | None = None) -> ModelSpec:
        read.append(loop().time())
        return await read_spec(model, version)

    path.model.read_spec = watched  # type: ignore[method-assign]  # a spy
    await asyncio.sleep(600)
    assert path.held == [True]
    assert 600 / LONGEST_BACKOFF_S <= len(read) < 200, "it looks again and again, and does not hammer"
    path.model.failure = None
    await path.settle(800)
    assert set(path.codes().values()) == {"ok"}
    assert {reply.attempts for reply in path.replies_by_id().values()} == {1}


@in_virtual_time
async def test_a_batch_that_a_reloaded_model_finds_too_large_is_split_after_a_look_at_its_metadata() -> None:
    path = Path(concurrency=1)
    path.model.spec = replace(SPEC, max_batch_size=2)
    path.ask(*ids(16))
    await path.settle(16)
    assert set(path.codes().values()) == {"ok"}
    assert max(len(call) for call in path.model.calls[7:]) == 2, (
        "from then on batches are as the model wants them"
    )


@in_virtual_time
async def test_a_poisoned_prompt_beside_one_that_hangs_is_not_hammered() -> None:
    path = Path(concurrency=2, timeout_s=30)
    path.model.poison, path.model.hangs = {"poison"}, {"hang"}
    path.ask("poison")
    path.ask("hang")
    await all_settled(path, 2)
    assert path.codes() == {"poison": "model_error", "hang": "inference_timeout"}
    assert sum("poison" in call for call in path.model.calls) <= 60
