"""Whatever comes and whatever Triton does meanwhile: each request of a partition we keep gets one reply, a just one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus.messages import decode_reply
from promptbus_worker.breaker import FIRST_BACKOFF_S
from promptbus_worker.ledger import Ownership, Tracked
from promptbus_worker.outcomes import CallFailure
from promptbus_worker.record import Record
from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import loop, run

KINDS = ["good", "good", "good", "good", "poison", "bad_row", "hangs", "deadline", "garbage"]
FAILURES = [
    CallFailure.OVERLOADED,
    CallFailure.REFUSED,
    CallFailure.MODEL_ERROR,
    CallFailure.MODEL_UNHEALTHY,
    CallFailure.NOT_FOUND,
]
ALLOWED = {
    "good": {"ok"},
    "poison": {"model_error"},
    "bad_row": {"bad_model_output"},
    "hangs": {"inference_timeout"},
    "deadline": {"ok", "expired", "unavailable"},
    "garbage": {"invalid_request"},
}
LEAVE = ["keep", "keep", "keep", "revoke", "lose"]


@dataclass
class Plan:
    """One run: bursts of requests over two partitions, phases in which Triton fails, and a partition that may go."""

    bursts: list[tuple[float, list[str]]]
    phases: list[tuple[float, float, CallFailure]]
    leave: str
    leave_at: float
    concurrency: int
    seed: int


PLANS = st.builds(
    Plan,
    bursts=st.lists(
        st.tuples(st.floats(0, 3), st.lists(st.sampled_from(KINDS), min_size=1, max_size=20)),
        min_size=1,
        max_size=4,
    ),
    phases=st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 8), st.sampled_from(FAILURES)), max_size=2),
    leave=st.sampled_from(LEAVE),
    leave_at=st.floats(0, 6),
    concurrency=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)


class Run:
    """A plan being carried out on the path."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = Path(concurrency=plan.concurrency, timeout_s=2)
        self.kept, self.leaving = self.path.owned, self.path.assign(1)
        self.random = random.Random(plan.seed)
        self.kinds: dict[str, str] = {}
        self.records: dict[str, Record] = {}

    async def carry_out(self) -> None:
        await asyncio.gather(self._publish(), self._fail(), self._leave())
        async with asyncio.timeout(3600):
            while self.path.ledger.in_hand([self.kept]):  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.5)
            while self.leaving.live and self.path.ledger.in_hand([self.leaving]):  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.5)
        assert await self.path.dispatcher.idle(30)
        assert await self.path.replies.all_acknowledged(30)

    async def _publish(self) -> None:
        model = self.path.model
        for pause, burst in self.plan.bursts:
            await asyncio.sleep(pause)
            for kind in burst:
                name = f"{kind}-{len(self.kinds)}"
                self.kinds[name] = kind
                {"poison": model.poison, "bad_row": model.bad_rows, "hangs": model.hangs}.get(
                    kind, set()
                ).add(name)
                self._publish_one(name, kind, self.random.choice([self.kept, self.leaving]))

    def _publish_one(self, name: str, kind: str, ownership: Ownership) -> None:
        if not ownership.live or (ownership is self.leaving and loop().time() >= self.leaving_since):
            ownership = self.kept
        body = b"garbage" if kind == "garbage" else json.dumps({"request_id": name, "prompt": name}).encode()
        headers: list[tuple[str, bytes | None]] = [("request-id", name.encode())]
        now = loop().time()
        if kind == "deadline":
            headers.append(("deadline", str(int((now + self.random.uniform(0, 6)) * 1000)).encode()))
        offset = len(self.kinds)
        record = Record(ownership, offset, int(now * 1000), None, body, headers, len(body), now)
        assert self.path.ledger.track(ownership, offset, record.size) is Tracked.NEW
        self.records[name] = record
        self.path.dispatcher.accept([record])

    leaving_since = float("inf")

    async def _fail(self) -> None:
        for pause, seconds, failure in self.plan.phases:
            await asyncio.sleep(pause)
            self.path.model.failure = failure
            await asyncio.sleep(seconds)
            self.path.model.failure = None

    async def _leave(self) -> None:
        if self.plan.leave == "keep":
            return
        await asyncio.sleep(self.plan.leave_at)
        self.leaving_since = loop().time()
        if self.plan.leave == "revoke":
            self.path.dispatcher.release([self.leaving])
            try:
                async with asyncio.timeout(5):
                    while self.path.ledger.in_hand([self.leaving]):  # noqa: ASYNC110 - virtual time costs nothing
                        await asyncio.sleep(0.5)
            except TimeoutError:
                pass
        self.path.ledger.end(self.leaving)
        self.path.dispatcher.forget([self.leaving])


@settings(max_examples=40, deadline=None)
@given(PLANS)
def test_each_request_of_a_partition_we_keep_gets_exactly_one_just_reply(plan: Plan) -> None:
    async def body() -> None:
        began = loop().time()
        work = Run(plan)
        await work.carry_out()
        path = work.path
        replies = [decode_reply(r.value) for r in path.broker.written if r.topic == "results" and r.value]
        counts = Counter(reply.request_id for reply in replies)
        assert not [name for name, count in counts.items() if count > 1], "answered twice"
        codes = {reply.request_id: reply.error.code if reply.error else "ok" for reply in replies}
        # While every call is a 500, who is alone cannot be told from a poisoned prompt (DESIGN rule 9).
        broken = any(failure is CallFailure.MODEL_ERROR for _, _, failure in plan.phases)
        charged = {"model_error"} if broken else set()
        for name, record in work.records.items():
            if record.ownership.live:
                assert name in codes, "not answered"
            if name in codes:
                assert codes[name] in ALLOWED[work.kinds[name]] | charged, (name, codes[name])
        assert path.ledger.records_in_hand == 0
        assert path.stopped == []
        # A few calls for each request, and otherwise one round per shortest back-off while nobody can be blamed yet.
        rounds = (loop().time() - began) / FIRST_BACKOFF_S
        assert len(path.model.calls) <= 12 * len(work.kinds) + rounds * plan.concurrency

    run(body())
