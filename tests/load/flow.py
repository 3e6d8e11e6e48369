"""A flow of requests at a rate that can be changed, and what is answered to each, and when."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from uuid import uuid4

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from promptbus.messages import decode_reply
from promptbus.settings import DURABLE
from tests.integration.system import System

TICK_S = 0.02
OK, EXPIRED = "ok", "expired"
CLOCK_S = 0.005
"""Deadlines are compared by wall clock once and monotonic from then on."""


@dataclass(slots=True)
class Asked:
    """One request. Times are Unix seconds; `replied_at` is when the worker made the first reply, of which `code` is."""

    at: float
    deadline: float | None
    replied_at: float = 0.0
    code: str = ""
    replies: int = 0


class Flow:
    """A context manager: a thread publishes `per_s` requests a second, and reads the replies until exit."""

    def __init__(self, system: System, *, deadline_s: float = 0.0, patient_every: int = 1) -> None:
        """All requests but each `patient_every`-th have a deadline, `deadline_s` after they were published."""
        self.per_s = 0.0
        self.asked: list[Asked] = []
        self.refused: list[str] = []
        """Requests that the broker has not taken, and why."""
        self.strange: list[str] = []
        """Replies to nobody."""
        self._system = system
        self._deadline_s = deadline_s
        self._patient_every = patient_every
        self._end = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)
        bootstrap = {"bootstrap.servers": system.kafka.bootstrap, "log_level": 0}
        self._producer = Producer({**bootstrap, "linger.ms": 5, **DURABLE})
        self._consumer = Consumer(
            {**bootstrap, "group.id": f"flow-{uuid4().hex}", "enable.auto.commit": False}
        )
        self._consumer.assign([TopicPartition(system.replies, n, 0) for n in range(system.partitions)])

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._producer.flush(30)
        self._consumer.close()

    def check(self) -> None:
        """Raises what ended the thread, if something did."""
        if self._failure is not None:
            raise self._failure

    def at(self, per_s: float, seconds: float) -> tuple[float, float]:
        """Publish at this rate for so long; from when until when, in Unix seconds."""
        began = time.time()
        self.per_s = per_s
        while time.time() < began + seconds:
            self.check()
            time.sleep(min(0.1, max(0.0, began + seconds - time.time())))
        return began, time.time()

    def unanswered(self) -> int:
        """Requests without a reply."""
        return sum(not each.replies for each in list(self.asked))

    def published(self, since: float, until: float) -> Iterator[Asked]:
        """Those of a time."""
        return (each for each in list(self.asked) if since <= each.at < until)

    def answered_per_s(self, since: float, until: float) -> float:
        """Answers, not errors, that were given in this time."""
        answers = (each for each in list(self.asked) if each.code == OK and since <= each.replied_at < until)
        return sum(1 for _ in answers) / (until - since)

    def codes(self) -> Counter[str]:
        """How requests ended."""
        return Counter(each.code for each in self.asked)

    def violations(self) -> list[str]:
        """What may not be, whatever the load."""
        nobodys = [f"request {request_id}: a reply to nobody" for request_id in self.strange]
        return [*violations(self.asked), *nobodys, *self.refused]

    def _run(self) -> None:
        try:
            last, owed = time.monotonic(), 0.0
            while not self._end.is_set():
                now = time.monotonic()
                owed += self.per_s * (now - last)
                last = now
                for _ in range(int(owed)):
                    self._publish()
                owed -= int(owed)
                self._producer.poll(0)
                self._read()
        except BaseException as error:
            self._failure = error

    def _publish(self) -> None:
        number = len(self.asked)
        now = time.time()
        headers: list[tuple[str, str | bytes | None]] = []
        deadline = None
        if number % self._patient_every:
            deadline = now + self._deadline_s
            headers.append(("deadline", b"%d" % (deadline * 1000)))
        self.asked.append(Asked(now, deadline))
        value = orjson.dumps({"request_id": str(number), "prompt": f"what is the number {number}?"})
        delivered = partial(self._delivered, number)
        # The partitions in turn: the client would fill one for a while, and then the next one. Each gets its share of
        # those without a deadline.
        self._producer.produce(
            self._system.requests,
            value,
            partition=number // self._patient_every % self._system.partitions,
            headers=headers,
            on_delivery=delivered,
        )

    def _delivered(self, number: int, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.refused.append(f"request {number}: {error}")

    def _read(self) -> None:
        for message in self._consumer.consume(500, TICK_S):
            if message.error() is None:
                reply = decode_reply(message.value())
                if not reply.request_id.isdecimal() or int(reply.request_id) >= len(self.asked):
                    self.strange.append(reply.request_id)
                    continue
                request = self.asked[int(reply.request_id)]
                request.replies += 1
                if request.replies == 1:
                    request.replied_at = message.timestamp()[1] / 1000
                    request.code = OK if reply.error is None else reply.error.code


def violations(asked: Sequence[Asked]) -> list[str]:
    """Each request gets one reply, an answer or an honest `expired`: what is not so."""
    early = (
        each.code == EXPIRED and (each.deadline is None or each.replied_at < each.deadline - CLOCK_S)
        for each in asked
    )
    found = {
        "requests without a reply": sum(each.replies == 0 for each in asked),
        "requests with several replies": sum(each.replies > 1 for each in asked),
        "errors beside expired": sum(each.code not in (OK, EXPIRED, "") for each in asked),
        "requests expired before their deadline": sum(early),
    }
    return [f"{count} {what}" for what, count in found.items() if count]


def latencies_s(asked: Iterator[Asked]) -> list[float]:
    """From published to answered, of those that were."""
    return [each.replied_at - each.at for each in asked if each.code == OK]


def p50_p99(seconds: list[float]) -> tuple[float, float]:
    """Of at least two."""
    return median(seconds), quantiles(seconds, n=100, method="inclusive")[98]
