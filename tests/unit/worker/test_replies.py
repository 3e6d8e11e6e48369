"""What becomes of replies that lie here for a moment, or cannot be written, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.worker.path import Path, Refusal
from tests.unit.worker.virtual_time import in_virtual_time, loop, run


def ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


async def with_collected(path: Path) -> None:
    """Until replies lie here to be written in bulk."""
    path.ask(*ids(200))
    while not path.replies._collected:  # noqa: ASYNC110 - virtual time costs nothing
        await asyncio.sleep(0.001)


@in_virtual_time
async def test_collected_replies_wait_for_a_poll_after_a_freeze() -> None:
    path = Path(concurrency=1)
    await with_collected(path)
    produced = len(path.broker._queue) + len(path.broker.written)
    path.polling = False
    loop().freeze(60)
    await asyncio.sleep(1)
    assert len(path.broker._queue) + len(path.broker.written) == produced
    path.polling = True
    await path.settle(200)
    assert set(path.codes().values()) == {"ok"}


@in_virtual_time
async def test_collected_replies_of_a_partition_that_is_gone_are_not_written() -> None:
    path = Path(concurrency=1)
    await with_collected(path)
    written = len(path.broker._queue) + len(path.broker.written)
    path.ledger.end(path.owned)
    path.dispatcher.forget([path.owned])
    await asyncio.sleep(5)
    assert len(path.broker.written) == written
    assert path.replies.due == 0


@in_virtual_time
async def test_a_missing_right_on_one_topic_does_not_give_up_what_others_may_still_acknowledge() -> None:
    path = Path()

    def answer(topic: str, size: int) -> Refusal | None:
        return Refusal("TOPIC_AUTHORIZATION_FAILED") if topic == "other" else None

    path.broker.answers = answer
    path.ask("forbidden", headers=[("reply-topic", b"other")])
    await asyncio.sleep(1)
    assert len(path.stopped) == 1
    path.broker.acknowledging = False
    path.ask("allowed")
    await asyncio.sleep(1)
    waiting = asyncio.create_task(path.replies.all_acknowledged(10))
    await asyncio.sleep(1)
    path.broker.acknowledging = True
    assert not await waiting, "one is never acknowledged"
    assert loop().time() < 1000 + 5, "and is not waited for"
    assert path.settled_offsets == [1]


@in_virtual_time
async def test_a_reply_that_cannot_be_produced_by_a_defect_costs_no_other_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = Path(concurrency=1)
    produce, broken = path.broker.produce, True

    def defective(*arguments: Any, **more: Any) -> None:
        if broken and b'"p1"' in arguments[1]:
            raise TypeError("a defect")
        produce(*arguments, **more)

    path.broker.produce = defective  # type: ignore[method-assign]
    path.ask(*ids(4))
    await asyncio.sleep(2)
    assert sorted(path.settled_offsets) == [0, 2, 3]
    assert path.replies.due == len(path.replies.unacknowledged) == 1
    told = [vars(line) for line in caplog.records if "could not be produced" in line.message]
    assert told, "it is logged"
    assert {line["request_id"] for line in told} == {"p1"}
    broken = False
    await path.settle(4)
    assert path.codes() == dict.fromkeys(ids(4), "ok")
    assert path.replies.due == 0


@pytest.mark.parametrize(
    ("error", "restart"),
    [("TOPIC_AUTHORIZATION_FAILED", False), ("INVALID_RECORD", False), ("_FATAL", True), ("UNKNOWN", True)],
)
def test_what_only_an_operator_can_mend_is_not_tried_again_by_a_restart(error: str, restart: bool) -> None:
    async def refused() -> None:
        path = Path()
        path.broker.answers = lambda topic, size: Refusal(error)
        path.ask("a", "b")
        await asyncio.sleep(1)
        assert path.may_restart == [restart]
        assert path.settled_offsets == []

    run(refused())


@in_virtual_time
async def test_a_producer_that_is_denied_its_id_says_which_right_is_missing() -> None:
    path = Path()
    path.replies.client_error(Refusal("CLUSTER_AUTHORIZATION_FAILED", fatal=True))
    assert path.may_restart == [False]
    assert "IDEMPOTENT_WRITE" in path.stopped[0]
