"""The event loop's side of transactions: what belongs together is handed over together, and comes back."""

from __future__ import annotations

import asyncio

from promptbus.messages import ErrorCode, decode_reply
from promptbus_worker.ledger import Ownership
from promptbus_worker.metrics import Metrics
from promptbus_worker.model import Row
from promptbus_worker.record import Pending, Record
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import Outgoing, ReplyRecords
from promptbus_worker.transactional_replies import TransactionalReplies
from tests.unit.worker.virtual_time import in_virtual_time, loop

ROW = Row("an answer", 5, 2, 3, "stop")


class Rig:
    """Replies whose transactions are run by hand."""

    def __init__(self) -> None:
        self.handed_over: list[list[Outgoing]] = []
        self.settled: list[int] = []
        self.stopped: list[str] = []
        self.ownership = Ownership("requests", 0, 1)
        self.replies = TransactionalReplies(
            self.handed_over.append,
            ReplyParts(
                records=ReplyRecords(
                    {"results": 1 << 20, "dead": 1 << 20}, dead_letter_topic="dead", worker="test-0"
                ),
                metrics=Metrics(["gpt4_nano"]),
                on_answered=lambda requests, now: None,
                on_settled=lambda records: self.settled.extend(record.offset for record in records),
                on_stop=lambda reason, restart: self.stopped.append(reason),
                clock=loop().time,
                wall_clock=loop().time,
            ),
        )

    def request(self, offset: int) -> Pending:
        record = Record(self.ownership, offset, 0, b"key", b"{}", None, 2, 0.0)
        pending = Pending(record, f"id-{offset}", f"reply-{offset}", "results")
        pending.model = "gpt4_nano"
        return pending


def topics(records: list[Outgoing]) -> list[str]:
    return [outgoing.topic for outgoing in records]


@in_virtual_time
async def test_a_reply_and_its_dead_letter_go_together() -> None:
    rig = Rig()
    rig.replies.answer([rig.request(0)], [ROW], "1")
    rig.replies.error(rig.request(1), ErrorCode.MODEL_ERROR)
    await asyncio.sleep(0)
    (records,) = rig.handed_over
    assert topics(records) == ["results", "results", "dead"]
    assert len(rig.replies.unacknowledged) == 2
    waiting = asyncio.create_task(rig.replies.all_acknowledged(10))
    await asyncio.sleep(1)
    assert not waiting.done()
    rig.replies.written(records)
    assert await waiting
    assert rig.settled == [0, 1]
    assert not rig.replies.unacknowledged


@in_virtual_time
async def test_what_the_next_owner_answers_is_not_waited_for() -> None:
    rig = Rig()
    rig.replies.error(rig.request(0), ErrorCode.MODEL_ERROR)
    await asyncio.sleep(0)
    rig.replies.dropped(rig.handed_over[0])
    assert rig.replies.due == 0
    assert await rig.replies.all_acknowledged(1)
    assert rig.settled == []


@in_virtual_time
async def test_an_answer_that_is_too_large_becomes_an_error_and_comes_again() -> None:
    rig = Rig()
    request = rig.request(0)
    rig.replies.answer([request], [Row("long " * 1_000, 5, 2, 3, "stop")], "1")
    await asyncio.sleep(0)
    # The topic takes less than it said: what is near its limit is made smaller, what is not is tried again.
    rig.replies._records.lower_limit("results", 6_000)
    rig.replies.refused(rig.handed_over[0], rig.handed_over[0])
    await asyncio.sleep(0)
    again = rig.handed_over[1]
    assert topics(again) == ["results", "dead"]
    reply = decode_reply(again[0].value)
    assert reply.error is not None
    assert reply.error.code == "reply_too_large"
    assert rig.replies.due == 2
    rig.replies.written(again)
    assert rig.settled == [0]
    assert rig.replies.due == 0


@in_virtual_time
async def test_a_dead_letter_that_is_too_large_is_cut_and_comes_again_with_its_reply() -> None:
    rig = Rig()
    request = rig.request(0)
    request.record.value = b"x" * 5_000
    rig.replies.error(request, ErrorCode.MODEL_ERROR)
    await asyncio.sleep(0)
    (first,) = rig.handed_over
    rig.replies._records.lower_limit("dead", 6_000)
    rig.replies.refused(first, [first[1]])
    await asyncio.sleep(0)
    again = rig.handed_over[1]
    assert topics(again) == ["results", "dead"]
    assert again[0] is first[0]
    assert again[1].size < first[1].size
    assert rig.replies.due == 2


@in_virtual_time
async def test_a_small_record_refused_beside_others_is_tried_again_as_it_is() -> None:
    rig = Rig()
    rig.replies.answer([rig.request(0)], [ROW], "1")
    await asyncio.sleep(0)
    (first,) = rig.handed_over
    rig.replies.refused(first, first)
    await asyncio.sleep(0)
    ((again,),) = rig.handed_over[1:]
    assert again is first[0]
    assert again.refusals == 1
    assert rig.replies.due == 1
    assert rig.stopped == []


@in_virtual_time
async def test_what_can_never_be_committed_is_not_waited_for() -> None:
    rig = Rig()
    rig.replies.answer([rig.request(0)], [ROW], "1")
    rig.replies.give_up()
    rig.replies.answer([rig.request(1)], [ROW], "1")
    assert not await rig.replies.all_acknowledged(100)
    assert loop().time() < 1000 + 1
