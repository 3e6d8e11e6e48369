"""Every kind of request that the worker's clients send to Kafka fails in every way that there is, in mid-stream.

Each case is one worker path with a broker of its own: 160 requests are there, some are answered, then the fault is
injected, is seen to be used up, 160 more requests come, and in the end the account must be right: every request has
its reply, none is wrong, none is lost, all is committed. A right that is missing must stop the worker with a sentence
that names it; the next worker then answers what was left.

What the in-memory Kafka cannot show, and where it is shown instead:

    | what                                              | where                                               |
    |---------------------------------------------------|-----------------------------------------------------|
    | DescribeConfigs, CreateTopics (start, doctor)     | integration/test_start.py, test_doctor.py           |
    | transactions: aborted records stay visible        | (the worker uses none)                              |
    | SASL, ACLs: only the error code is given back     | integration/test_doctor.py                          |
    | a leader that moves, replicas that are missing    | (here the code alone; brokers that die:             |
    |                                                   | integration/test_failures.py)                       |
    | retention, compaction, corrupt records            | unit/worker/test_ledger.py, test_intake.py          |
    | a record refused for its size                     | integration/test_error_codes.py                     |
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import Enum, auto

import pytest

from promptbus_worker.worker_process import Exit
from tests.faults.mock_kafka import DISCONNECT, Api
from tests.faults.whole_path import LATE_MS, Account, Line, eventually, line
from tests.unit.worker.path import SPEC, FakeModel

REQUESTS = 160
BEGUN = 40
"""So many are answered before the fault."""
NEVER_MS = 120_000
"""An answer so late never comes within a test."""

# Kafka's error codes: https://kafka.apache.org/protocol#protocol_error_codes
LEADER_NOT_AVAILABLE = 5
NOT_LEADER = 6
REQUEST_TIMED_OUT = 7
OFFSET_METADATA_TOO_LARGE = 12
COORDINATOR_LOADING = 14
COORDINATOR_NOT_AVAILABLE = 15
NOT_COORDINATOR = 16
NOT_ENOUGH_REPLICAS = 19
ILLEGAL_GENERATION = 22
UNKNOWN_MEMBER = 25
REBALANCING = 27
TOPIC_DENIED = 29
GROUP_DENIED = 30
CLUSTER_DENIED = 31
UNSUPPORTED_VERSION = 35


class When(Enum):
    """What makes the client send this request."""

    BY_ITSELF = auto()
    """It goes on all the time."""
    ANSWERS = auto()
    """Requests are answered."""
    START = auto()
    """A worker starts; the requests are there already."""
    REJOIN = auto()
    """The group says that it does not know this member (any more)."""
    RECONNECT = auto()
    """A connection was lost."""
    MOVED = auto()
    """The group's coordinator says that it is not."""
    LEAVING = auto()
    """The worker drains."""


@dataclass(frozen=True)
class Case:
    """`refused`: the right, or what else the sentence must name, when the worker has to stop."""

    api: Api
    when: When
    errors: tuple[int, ...] = ()
    late_ms: int = 0
    refused: str | None = None

    def __str__(self) -> str:
        return f"{self.api.name} {f'late by {self.late_ms} ms' if self.late_ms else self.errors}"


def each_way(api: Api, when: When, retriable: int, refused: tuple[int, str | None]) -> list[Case]:
    return [
        # Leaving is not tried twice.
        Case(api, when, (retriable,) if when is When.LEAVING else (retriable, retriable)),
        Case(api, when, (refused[0],), refused=refused[1]),
        Case(api, when, (DISCONNECT,)),
        Case(api, when, (0,), late_ms=LATE_MS),
    ]


# No sentence: the client asks again by itself, and if a right is really missing, FindCoordinator, JoinGroup or Fetch
# say so.
MATRIX = {
    Api.PRODUCE: each_way(Api.PRODUCE, When.ANSWERS, NOT_ENOUGH_REPLICAS, (TOPIC_DENIED, "WRITE")),
    Api.FETCH: each_way(Api.FETCH, When.BY_ITSELF, NOT_LEADER, (TOPIC_DENIED, "READ")),
    Api.LIST_OFFSETS: each_way(Api.LIST_OFFSETS, When.START, NOT_LEADER, (TOPIC_DENIED, None)),
    Api.METADATA: each_way(Api.METADATA, When.BY_ITSELF, LEADER_NOT_AVAILABLE, (TOPIC_DENIED, None)),
    Api.OFFSET_COMMIT: [
        *each_way(Api.OFFSET_COMMIT, When.ANSWERS, COORDINATOR_LOADING, (GROUP_DENIED, "READ on group")),
        Case(
            Api.OFFSET_COMMIT, When.ANSWERS, (OFFSET_METADATA_TOO_LARGE,), refused="offset.metadata.max.bytes"
        ),
        Case(Api.OFFSET_COMMIT, When.ANSWERS, (ILLEGAL_GENERATION, REBALANCING)),
    ],
    Api.OFFSET_FETCH: [
        *each_way(Api.OFFSET_FETCH, When.REJOIN, COORDINATOR_LOADING, (GROUP_DENIED, None)),
        # Refused at once and allowed right after: what was there before the worker must not be skipped.
        Case(Api.OFFSET_FETCH, When.START, (GROUP_DENIED,)),
    ],
    Api.FIND_COORDINATOR: each_way(
        Api.FIND_COORDINATOR, When.MOVED, COORDINATOR_NOT_AVAILABLE, (GROUP_DENIED, "READ on group")
    ),
    Api.JOIN_GROUP: [
        *each_way(Api.JOIN_GROUP, When.REJOIN, COORDINATOR_LOADING, (GROUP_DENIED, "READ on group")),
        # No other request has a longer time-out: with the client's default of 300 s the member would be away for so long.
        Case(Api.JOIN_GROUP, When.REJOIN, (0,), late_ms=NEVER_MS),
    ],
    Api.SYNC_GROUP: each_way(Api.SYNC_GROUP, When.REJOIN, REBALANCING, (GROUP_DENIED, None)),
    Api.HEARTBEAT: [
        *each_way(Api.HEARTBEAT, When.BY_ITSELF, NOT_COORDINATOR, (GROUP_DENIED, None)),
        Case(Api.HEARTBEAT, When.BY_ITSELF, (REBALANCING,)),
        Case(Api.HEARTBEAT, When.BY_ITSELF, (UNKNOWN_MEMBER,)),
    ],
    Api.LEAVE_GROUP: each_way(Api.LEAVE_GROUP, When.LEAVING, COORDINATOR_LOADING, (GROUP_DENIED, None)),
    Api.API_VERSIONS: each_way(
        Api.API_VERSIONS, When.RECONNECT, REQUEST_TIMED_OUT, (UNSUPPORTED_VERSION, None)
    ),
    Api.INIT_PRODUCER_ID: each_way(
        Api.INIT_PRODUCER_ID, When.START, COORDINATOR_LOADING, (CLUSTER_DENIED, "WRITE")
    ),
}


class SlowModel(FakeModel):
    """The echo model with one instance: two calls at a time, `latency_s` each."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(SPEC, max_batch_size=4, instances=1)
        self.latency_s = 0.05


async def inject(case: Case, made: Line) -> None:
    made.kafka.fail(case.api, *case.errors, delay_ms=case.late_ms)
    match case.when:
        case When.REJOIN:
            made.kafka.fail(Api.HEARTBEAT, UNKNOWN_MEMBER)
        case When.MOVED:
            made.kafka.fail(Api.HEARTBEAT, NOT_COORDINATOR)
        case When.RECONNECT:
            made.kafka.fail(Api.HEARTBEAT, DISCONNECT)


async def play(case: Case) -> Account:
    """One case from the first request to the account."""
    model = SlowModel()
    async with line(model) as made:
        await made.ask(REQUESTS)
        if case.when is When.START:
            await inject(case, made)
        await made.start()
        if case.when is not When.START:
            await eventually(f"{case}: {BEGUN} are answered", lambda: made.settled >= BEGUN)
            assert made.settled < REQUESTS, "in mid-stream"
            if case.when is not When.LEAVING:
                model.latency_s = 0.25  # so that it is still mid-stream when a heartbeat is due
                await inject(case, made)
        if case.when is not When.LEAVING:
            await eventually(f"{case}: the fault fires", lambda: made.kafka.left(case.api) == 0)
            assert made.settled < REQUESTS, "in mid-stream"
        model.latency_s = 0.02
        if case.refused is not None:
            await eventually(f"{case}: the worker stops", lambda: made.stopped)
            ((code, why),) = made.stopped
            assert code is Exit.GAVE_UP, why
            assert case.refused in why
            await made.stop()
            made.stopped.clear()
            await made.start()
        await made.ask(REQUESTS)
        if case.when is When.LEAVING:
            await inject(case, made)
            await made.stop()
            await eventually(f"{case}: the fault fires", lambda: made.kafka.left(case.api) == 0)
            await made.start()
        await eventually(f"{case}: all are answered", lambda: made.settled >= 2 * REQUESTS or made.stopped)
        await made.all_committed()
        assert await made.stop()
        assert made.stopped == []
        account = await made.account()
        assert set(account.codes) == {"ok"}
        account.right(made, lambda prompt: f"echo {prompt}")
        assert account.uncommitted == 0
        assert account.dead_letters == 0
        # One fault, one repetition: of what was in hand when the worker or its partitions went.
        assert account.most_replies <= 2
        return account


# Cases of a group run at once: most of their time is waiting.
GROUPS = {
    "records": (Api.PRODUCE, Api.FETCH, Api.LIST_OFFSETS),
    "offsets": (Api.OFFSET_COMMIT, Api.OFFSET_FETCH, Api.FIND_COORDINATOR),
    "group": (Api.JOIN_GROUP, Api.SYNC_GROUP, Api.HEARTBEAT, Api.LEAVE_GROUP),
    "connection": (Api.METADATA, Api.API_VERSIONS, Api.INIT_PRODUCER_ID),
}


@pytest.mark.parametrize("group", GROUPS)
async def test_no_request_is_lost_whatever_fails(group: str) -> None:
    cases = [case for api in GROUPS[group] for case in MATRIX[api]]
    outcomes = await asyncio.gather(*(play(case) for case in cases), return_exceptions=True)
    failed = {str(c): o for c, o in zip(cases, outcomes, strict=True) if isinstance(o, BaseException)}
    assert failed == {}


async def test_a_late_answer_to_an_old_question_skips_nothing() -> None:
    """A worker that was refused its offsets once must not follow an answer about the end of the log."""
    model = SlowModel()
    async with line(model) as made:
        await made.ask(REQUESTS)
        await made.start()
        await eventually("some are answered", lambda: made.settled >= BEGUN)
        await made.stop()
        made.kafka.fail(Api.OFFSET_FETCH, GROUP_DENIED)
        made.kafka.fail(Api.LIST_OFFSETS, 0, 0, delay_ms=500)
        await made.start()
        await eventually("it is refused", lambda: made.kafka.left(Api.OFFSET_FETCH) == 0)
        await eventually("all are answered", lambda: made.settled >= REQUESTS)
        await made.all_committed()
        assert await made.stop()
        account = await made.account()
        assert account.codes == {"ok": REQUESTS}
        account.right(made, lambda prompt: f"echo {prompt}")


def test_every_request_fails_in_every_way() -> None:
    assert set(MATRIX) == set(Api) == {api for group in GROUPS.values() for api in group}
    for cases in MATRIX.values():
        assert any(case.late_ms for case in cases)
        assert any(DISCONNECT in case.errors for case in cases)
        assert len({case.errors for case in cases}) >= 4
