"""A worker without Triton: answers requests from a thread, so that the client can be tested alone.

The prompt decides: `fail` is answered with an error reply, `silent…` never, `twice…` twice with one reply id,
`garbage` with bytes that are no reply; anything else with `re: <prompt>`.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, Message, Producer

from promptbus.messages import (
    ErrorCode,
    InvalidRequest,
    Timings,
    Usage,
    decode_request,
    encode_answer,
    encode_error,
    read_request_headers,
    reply_headers,
    reply_id,
)
from promptbus.reply_reader import ReplyReader
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import record_headers
from tests.unit.client.place import QUIET

TIMINGS = Timings(1.0, 2.0, 3.0)


class Responder:
    """Reads the request topic from its end, without a group; with `group_id`, as a member of that group instead."""

    def __init__(self, settings: KafkaSettings, *, group_id: str | None = None) -> None:
        self._settings = settings
        self._group_id = group_id
        self._producer = Producer(
            {
                **settings.client_config(),
                "linger.ms": 0,
                "partitioner": "murmur2_random",
                "message.max.bytes": 8_000_000,
            },
            logger=QUIET,
        )
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="responder")
        self.seen: list[Message] = []
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(30):
            self._stop.set()
            raise TimeoutError("the responder got no partitions") from self.failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None and error is None:
            raise self.failure

    def _run(self) -> None:
        try:
            if self._group_id is None:
                self._serve_all()
            else:
                self._serve_as_member(self._group_id)
        except BaseException as failure:
            self.failure = failure
        finally:
            self._producer.flush(10)
            self._producer.close()

    def _serve_all(self) -> None:
        reader = ReplyReader(self._settings, self._settings.kafka_request_topic)
        reader.open(20)
        self._ready.set()
        while not self._stop.is_set():
            for message in reader.read(0.02):
                self._answer(message)
            self._producer.poll(0)
        reader.close()

    def _serve_as_member(self, group_id: str) -> None:
        consumer = Consumer(
            {
                **self._settings.client_config(),
                "group.id": group_id,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            },
            logger=QUIET,
        )
        consumer.subscribe(
            [self._settings.kafka_request_topic], on_assign=lambda _consumer, _partitions: self._ready.set()
        )
        while not self._stop.is_set():
            message = consumer.poll(0.02)
            if message is not None and message.error() is None:
                self._answer(message)
                consumer.commit(message=message, asynchronous=True)
            self._producer.poll(0)
        consumer.close()

    def _answer(self, message: Message) -> None:
        if message.error() is not None:
            return
        self.seen.append(message)
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        reply = reply_id(topic, partition, offset, message.timestamp()[1])
        asked = read_request_headers(record_headers(message))
        request_id = asked.request_id or f"{topic}-{partition}-{offset}"
        status, copies = "ok", 1
        try:
            request = decode_request(message.value())
        except InvalidRequest as problem:
            status = "error"
            request_id = problem.request_id or request_id
            value = encode_error(
                request_id=request_id,
                reply_id=reply,
                code=problem.code,
                message=problem.message,
                metadata=problem.metadata,
                timings=TIMINGS,
                attempts=0,
            )
        else:
            request_id = request.request_id or request_id
            if request.prompt.startswith("silent"):
                return
            if request.prompt.startswith("twice"):
                copies = 2
            if request.prompt.startswith("fail"):
                status = "error"
                value = encode_error(
                    request_id=request_id,
                    reply_id=reply,
                    code=ErrorCode.MODEL_ERROR,
                    message="the model could not answer this prompt",
                    metadata=request.metadata,
                    model="double",
                    timings=TIMINGS,
                    attempts=1,
                )
            elif request.prompt == "garbage":
                value = b"\xff not a reply"
            else:
                words = len(request.prompt.split())
                value = encode_answer(
                    request_id=request_id,
                    reply_id=reply,
                    response=f"re: {request.prompt}",
                    finish_reason="stop",
                    usage=Usage(words, words + 1, 2 * words + 1),
                    model=request.model or "double",
                    model_version="1",
                    metadata=request.metadata,
                    timings=TIMINGS,
                    attempts=1,
                )
        headers: list[tuple[str, str | bytes | None]] = [
            *reply_headers(request_id=request_id, reply_id=reply, status=status)
        ]
        for _ in range(copies):
            self._producer.produce(
                asked.reply_topic or self._settings.kafka_reply_topic,
                value,
                message.key() or request_id.encode(),
                headers=headers,
            )
