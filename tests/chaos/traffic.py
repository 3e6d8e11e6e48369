"""The steady load of a chaos run: one thread publishes requests and counts who is answered."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from promptbus.messages import InvalidReply, decode_reply
from promptbus.settings import DURABLE
from tests.chaos.requests import Requests, Sent
from tests.integration.system import System

TICK_S = 0.05
FEWEST_OPEN, MOST_OPEN = 400, 1500
"""Requests published and not answered: below the first it publishes more than its rate, above the second nothing."""


class Traffic:
    """A context manager: publishes from entry until `stop`, reads until exit."""

    def __init__(self, system: System, requests: Requests, per_s: float) -> None:
        self._system = system
        self._requests = requests
        self._per_s = per_s
        self.sent: list[Sent] = []
        """What the broker has taken."""
        self.refused: list[str] = []
        """What it has not, and why: a failure of the run, not of the workers."""
        self.answered: set[str] = set()
        """Request ids with a reply, as far as this thread has read."""
        self._pending = 0
        self._publishing = True
        self._end = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        bootstrap = {"bootstrap.servers": system.kafka.bootstrap, "log_level": 0}
        self._producer = Producer(
            {
                **bootstrap,
                "linger.ms": 5,
                **DURABLE,  # a broker that dies must not make two requests of one
                "message.timeout.ms": 0,  # nor none
                "partitioner": "murmur2_random",
            }
        )
        self._consumer = Consumer(
            {
                **bootstrap,
                "group.id": f"traffic-{uuid4().hex}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._consumer.assign([TopicPartition(system.replies, n, 0) for n in range(system.partitions)])

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._consumer.close()

    @property
    def open(self) -> int:
        """Requests without a reply, those included that the broker has not taken yet."""
        return len(self.sent) + self._pending - len(self.answered)

    def check(self) -> None:
        """Raises what ended the thread, if something did."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Publish nothing new."""
        self._publishing = False

    @property
    def published(self) -> bool:
        """Whether the broker has taken all there is, after `stop`."""
        return not self._publishing and self._pending == 0

    def _run(self) -> None:
        try:
            last = time.monotonic()
            while not self._end.is_set():
                now = time.monotonic()
                if self._publishing and now - last >= TICK_S:
                    steady = int(self._per_s * min(1.0, now - last))
                    self._publish(max(steady, FEWEST_OPEN - self.open))
                    last = now
                self._producer.poll(0)
                self._read()
        except BaseException as error:
            self._failure = error

    def _publish(self, count: int) -> None:
        now = time.time()
        for _ in range(min(count, MOST_OPEN - self.open)):
            request = self._requests.next(now)
            request.published_at = now
            self._pending += 1
            self._producer.produce(
                self._system.requests,
                request.value,
                request.key,
                headers=list(request.headers),
                on_delivery=partial(self._delivered, request),
            )

    def _delivered(self, request: Sent, error: KafkaError | None, _: Message) -> None:
        self._pending -= 1
        if error is not None:
            self.refused.append(f"{request.number}: {error}")
        else:
            self.sent.append(request)

    def _read(self) -> None:
        for message in self._consumer.consume(500, TICK_S / 2):
            if message.error() is None:
                with suppress(InvalidReply):  # the judgement will say so
                    self.answered.add(decode_reply(message.value()).request_id)
