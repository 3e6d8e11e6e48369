"""The path without Kafka and Triton: a broker that acknowledges at the next poll, a model that does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from confluent_kafka import KafkaException

from promptbus.messages import Headers, Reply, decode_reply
from promptbus_worker.acknowledged_replies import PARTITION_OF_KEY, AcknowledgedReplies, DeliveryReport
from promptbus_worker.admission import Admission, Limits
from promptbus_worker.batcher import Batcher
from promptbus_worker.dispatcher import Dispatcher
from promptbus_worker.gates import Gates
from promptbus_worker.ledger import Ledger, Ownership, Tracked
from promptbus_worker.limiter import Limiter
from promptbus_worker.metrics import Metrics
from promptbus_worker.model import BadRow, Inputs, ModelSpec, ModelStatistics, Row, TensorSpec
from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.record import Record
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import ReplyRecords
from promptbus_worker.tracing import OFF, Tracing
from promptbus_worker.triton_load import TritonLoad
from tests.unit.worker.virtual_time import loop

SPEC = ModelSpec(
    name="gpt4_nano",
    version="1",
    inputs={
        "prompt": TensorSpec("prompt", "BYTES", optional=False),
        "max_tokens": TensorSpec("max_tokens", "INT32", optional=True),
        "temperature": TensorSpec("temperature", "FP32", optional=True),
        "top_p": TensorSpec("top_p", "FP32", optional=True),
        "stop": TensorSpec("stop", "BYTES", optional=True),
    },
    outputs={},
    max_batch_size=8,
    instances=2,
)

LIMITS = Limits(
    max_bytes=1 << 20,
    max_prompt_chars=10_000,
    default_max_tokens=150,
    default_temperature=0.7,
    ignore_unknown_fields=False,
    reply_topic="results",
    reply_topics_allowed=frozenset({"other"}),
)


class Refusal:
    """The error of a delivery report. The real ones never have flags either, whatever the error is."""

    def __init__(self, name: str, *, fatal: bool = False) -> None:
        self._name, self._fatal = name, fatal

    def name(self) -> str:
        return self._name

    def str(self) -> str:
        return self._name

    def fatal(self) -> bool:
        return self._fatal

    def retriable(self) -> bool:
        return False


@dataclass
class Written:
    """A record as the broker has it."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: dict[str, bytes | None]


class FakeBroker:
    """The producer and the broker behind it."""

    def __init__(self) -> None:
        self.written: list[Written] = []
        self.answers: Callable[[str, int], Refusal | None] = lambda topic, size: None
        self.queue_size = 10_000
        self.acknowledging = True
        self._fatal_by: str | None = None
        self._queue: list[tuple[Written, DeliveryReport]] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        callback: DeliveryReport,
        on_delivery: None,
        timestamp: int,
        headers: list[tuple[str, bytes | None]],
    ) -> None:
        if self._fatal_by == "produce":
            raise KafkaException(Refusal("_FATAL", fatal=True))
        assert (partition, on_delivery, timestamp) == (PARTITION_OF_KEY, None, 0)
        if len(self._queue) >= self.queue_size:
            raise BufferError("queue full")
        self._queue.append((Written(topic, value, key, dict(headers)), callback))

    def fail_for_good(self, by: str) -> None:
        """A fatal error, met in a delivery `report` (by name only), in `produce` or in `poll` (with its flag)."""
        self._fatal_by = by
        if by == "report":
            self.answers = lambda topic, size: Refusal("_FATAL")

    def poll(self, timeout: float) -> int:
        assert timeout == 0, "the event loop must never block in poll"
        if not self.acknowledging:
            return 0
        if self._fatal_by == "poll":
            raise KafkaException(Refusal("_FATAL", fatal=True))
        queue, self._queue = self._queue, []
        for record, report in queue:
            refusal = self.answers(record.topic, len(record.value or b""))
            if refusal is None:
                self.written.append(record)
            report(refusal, None)
        return len(queue)


class FakeModel:
    """Answers each prompt with its echo, unless `behaves` says otherwise; a float is seconds until a time-out."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.latency_s = 0.01
        self.failure: CallFailure | None = None
        self.poison: set[str] = set()
        self.bad_rows: set[str] = set()
        self.hangs: set[str] = set()
        self.breaks: set[str] = set()
        self.running: list[list[str]] = []
        self.most_running: dict[str, int] = {}
        """Calls at once while each prompt was running."""
        self.spec = SPEC
        self.counted = ModelStatistics(0, 0, 0)
        self.before_answer: Callable[[], None] = lambda: None
        self._instances: asyncio.Semaphore | None = None
        self._seconds: dict[str, float] = {}
        self._working: set[asyncio.Task[None]] = set()

    def occupy(self, instances: int, seconds: dict[str, float]) -> None:
        """Calls queue for `instances` that work on, even if nobody waits any more; prompts may take `seconds`."""
        self._instances = asyncio.Semaphore(instances)
        self._seconds = seconds

    async def _occupied(self, prompts: list[str]) -> None:
        assert self._instances is not None
        came = _now()
        async with self._instances:
            began = _now()
            await asyncio.sleep(max(self._seconds.get(prompt, self.latency_s) for prompt in prompts))
            self._count(came, began)

    def _count(self, came: float, began: float) -> None:
        queue_s, compute_s = began - came, _now() - began
        calls, queue_ns, compute_ns = self.counted
        self.counted = ModelStatistics(
            calls + 1, queue_ns + round(queue_s * 1e9), compute_ns + round(compute_s * 1e9)
        )

    async def statistics(self, model: str, version: str | None = None) -> dict[str, ModelStatistics]:
        return {"fake:8000": self.counted}

    async def read_spec(self, model: str, version: str | None = None) -> ModelSpec:
        if self.failure in (CallFailure.REFUSED, CallFailure.NOT_FOUND):
            raise CallError(self.failure, "down")
        return self.spec

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        prompts = [str(inputs["prompt"], "utf-8") for inputs in batch if isinstance(inputs["prompt"], bytes)]
        self.calls.append(prompts)
        self.running.append(prompts)
        for prompt in chain.from_iterable(self.running):
            self.most_running[prompt] = max(self.most_running.get(prompt, 0), len(self.running))
        try:
            if self.failure is CallFailure.TIMEOUT or self.hangs & set(prompts) or self.latency_s > timeout_s:
                await asyncio.sleep(timeout_s)
                self.before_answer()
                raise CallError(CallFailure.TIMEOUT, "no answer")
            if self.failure is not None:
                raise CallError(self.failure, "/secret/path Traceback")
            if self._instances is not None:
                working = asyncio.create_task(self._occupied(prompts))
                self._working.add(working)
                done, _ = await asyncio.wait({working}, timeout=timeout_s)
                if not done:
                    raise CallError(CallFailure.TIMEOUT, "no answer")
            else:
                began = _now()
                await asyncio.sleep(self.latency_s)
                self._count(began, began)
            self.before_answer()
            if self.breaks & set(prompts):
                raise CallError(CallFailure.CONNECTION, "closed")
            if self.poison & set(prompts):
                raise CallError(CallFailure.MODEL_ERROR, "Traceback: /secret/path", status=500)
            if len(batch) > self.spec.max_batch_size:
                raise CallError(CallFailure.BAD_REQUEST, "batch too large", status=400)
        finally:
            self.running.remove(prompts)
        return "1", [
            BadRow("not UTF-8") if p in self.bad_rows else Row(f"echo {p}", 5, 2, 3, "stop") for p in prompts
        ]

    async def close(self) -> None: ...


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Path:
    """The wired parts, and the intake's side of them, with a real ledger."""

    concurrency: int = 4
    concurrency_max: int | None = None
    """None: the number in flight is fixed. Otherwise `concurrency` is where the limiter begins."""
    ordered: bool = False
    linger_s: float = 0.0
    max_bytes: int = 1 << 20
    timeout_s: float = 30.0
    tracing: Tracing = OFF
    limits: dict[str, int] = field(
        default_factory=lambda: {"results": 1 << 20, "dead": 1 << 20, "other": 1 << 20}
    )

    def __post_init__(self) -> None:
        self.broker = FakeBroker()
        self.model = FakeModel()
        self.ledger = Ledger()
        self.metrics = Metrics(["gpt4_nano"])
        self.stopped: list[str] = []
        self.may_restart: list[bool] = []
        self.held: list[bool] = []
        self.settled_offsets: list[int] = []
        self.released_offsets: list[int] = []
        self.polled_at = float("-inf")
        self.polls_wanted = 0
        self.owned = self.assign(0)
        specs = {"gpt4_nano": SPEC}
        gates = self.gates = Gates(specs)
        fixed = self.concurrency_max is None
        self.limiter = Limiter(
            self.concurrency,
            minimum=self.concurrency if fixed else 1,
            maximum=self.concurrency_max or self.concurrency,
        )
        self.replies = AcknowledgedReplies(
            self.broker,
            ReplyParts(
                records=ReplyRecords(self.limits, dead_letter_topic="dead", worker="test-0"),
                metrics=self.metrics,
                on_answered=lambda requests, now: self.dispatcher.answered(requests, now),
                on_settled=self._settled,
                on_stop=self._stop,
                tracing=self.tracing,
                clock=loop().time,
                wall_clock=loop().time,
            ),
            must_wait=lambda: self.dispatcher.must_poll_first(),
            on_room=lambda: self.dispatcher.pump(),
        )
        self.dispatcher = Dispatcher(
            admission=Admission(LIMITS, specs, "gpt4_nano"),
            batcher=Batcher(
                lambda model: specs[model].max_batch_size, max_bytes=self.max_bytes, linger_s=self.linger_s
            ),
            gates=gates,
            client=self.model,
            specs=specs,
            replies=self.replies,
            intake=self,
            metrics=self.metrics,
            on_stop=self.stopped.append,
            limiters={"gpt4_nano": self.limiter},
            ordered=self.ordered,
            timeout_s=self.timeout_s,
            tracing=self.tracing,
            clock=loop().time,
            wall_clock=loop().time,
        )
        limiters = {"gpt4_nano": self.limiter}
        TritonLoad(self.model, None, limiters, specs, self.dispatcher.in_flight, loop().time).start()
        self._offset = 0
        self.polling = True
        self._tick()

    def _tick(self) -> None:
        """The worker's ticker, and the consumer thread's polls."""
        self.dispatcher.freeze.tick(loop().time())
        if self.polling:
            self.polled_at = loop().time()
        loop().call_later(0.1, self._tick)

    def assign(self, partition: int) -> Ownership:
        ownership = self.ledger.assign("requests", partition)
        self.ledger.begin(ownership, 0, committed=True)
        return ownership

    # dispatcher.Intake

    def released(self, records: list[Record]) -> None:
        for record in records:
            self.ledger.release(record.ownership, record.offset)
            self.released_offsets.append(record.offset)

    def hold(self, held: bool) -> None:
        self.held.append(held)

    def poll_soon(self) -> None:
        self.polls_wanted += 1

    def _stop(self, reason: str, restart: bool) -> None:
        self.stopped.append(reason)
        self.may_restart.append(restart)

    def _settled(self, records: list[Record]) -> None:
        for record in records:
            if self.ledger.settle(record.ownership, record.offset):
                self.settled_offsets.append(record.offset)

    # what a test does

    def publish(
        self, *values: bytes | Mapping[str, object], headers: Headers | None = None, key: bytes | None = None
    ) -> list[Record]:
        """Records arrive in one poll."""
        records = []
        for value in values:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            now = loop().time()
            record = Record(self.owned, self._offset, int(now * 1000), key, body, headers, len(body), now)
            self._offset += 1
            assert self.ledger.track(self.owned, record.offset, record.size) is Tracked.NEW
            records.append(record)
        self.dispatcher.accept(records)
        return records

    def ask(self, *prompts: str, headers: Headers | None = None) -> None:
        """Requests whose id is their prompt."""
        self.publish(*({"request_id": prompt, "prompt": prompt} for prompt in prompts), headers=headers)

    async def settle(self, count: int, within_s: float = 3600) -> None:
        """Wait until that many records are settled."""
        async with asyncio.timeout(within_s):
            while len(self.settled_offsets) < count:  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.001)

    def replies_by_id(self) -> dict[str, Reply]:
        """All replies; fails if a request has two."""
        replies = [decode_reply(record.value) for record in self.broker.written if record.topic == "results"]
        by_id = {reply.request_id: reply for reply in replies}
        assert len(by_id) == len(replies), "a request was answered twice"
        return by_id

    def codes(self) -> dict[str, str]:
        """Request id → "ok" or its error code."""
        return {i: "ok" if r.error is None else r.error.code for i, r in self.replies_by_id().items()}

    def dead_letters(self) -> list[Written]:
        return [record for record in self.broker.written if record.topic == "dead"]

    def commits(self) -> int | None:
        """The offset that would be committed now, if it moved."""
        commits = self.ledger.take_commits()
        return commits[0].offset if commits else None
