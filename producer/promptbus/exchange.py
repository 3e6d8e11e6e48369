"""The core that both clients share: publishes requests, reads replies, settles futures.

One background thread owns the reply consumer, polls the producer and watches the time-outs. Futures are settled on
that thread (a delivery failure also on a thread that waits for room in the producer's queue), so their callbacks
must be short.

The order at the start is what makes the first request safe: topics are checked, every reply partition is assigned at
the end it has *now*, and only then can anything be published.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Message

from promptbus import tracing
from promptbus.errors import ClientClosed, ForkedClient, PromptBusError
from promptbus.kafka_errors import LOG, ConnectionNotes, describe, refused
from promptbus.messages import InvalidReply, Reply, decode_reply
from promptbus.messages.headers import REQUEST_ID
from promptbus.pending import PendingReplies, ReplyFuture
from promptbus.reply_reader import ReplyReader
from promptbus.request_writer import Header, QueueFull, RequestWriter
from promptbus.rights import Right
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import record_headers

TURN_S = 0.02  # longest wait for records: a poll cannot be woken, so this bounds how late a close is seen
FROZEN_S = 1.0  # a turn that took this long was not running: replies may lie in the socket
REFRESH_TIMEOUT_S = 0.5


class Exchange:
    """Requests out, replies in. Every method may be called from any thread of the process that made it."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        request_topic: str,
        reply_topic: str,
        linger_ms: float,
        connect_timeout_s: float,
        delivery_timeout_s: float,
        refresh_s: float,
        decode: Callable[[bytes | None], Reply] = decode_reply,
    ) -> None:
        self.request_topic = request_topic
        self.reply_topic = reply_topic
        self.settings = settings
        self._linger_ms = linger_ms
        self._connect_timeout_s = connect_timeout_s
        self._delivery_timeout_s = delivery_timeout_s
        self._refresh_s = refresh_s
        self._decode = decode
        self._pending = PendingReplies()
        self._notes = ConnectionNotes()
        self._lifecycle = threading.Lock()
        self._pid = os.getpid()
        self._writer: RequestWriter | None = None
        self._reader: ReplyReader | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._flush_s = 0.0
        self._closed: str | None = None

    def __len__(self) -> int:
        """Requests that wait for their reply."""
        return len(self._pending)

    def connect(self) -> None:
        """Check both topics and assign the reply partitions; a second call does nothing.

        Raises KafkaUnavailable, TopicMissing, NotAllowed, SettingsRefused, ClientClosed.
        """
        if self._thread is not None:
            return
        with self._lifecycle:
            self.check_usable()
            if self._thread is not None:
                return
            until = time.monotonic() + self._connect_timeout_s
            reader = ReplyReader(self.settings, self.reply_topic, notes=self._notes)
            try:
                reader.partitions(
                    self.request_topic, "KAFKA_REQUEST_TOPIC", self._connect_timeout_s, operation="WRITE"
                )
                reader.open(max(0.1, until - time.monotonic()))
                writer = RequestWriter(
                    self.settings,
                    self.request_topic,
                    linger_ms=self._linger_ms,
                    delivery_timeout_s=self._delivery_timeout_s,
                    notes=self._notes,
                )
                writer.open(max(0.1, until - time.monotonic()))
            except BaseException:
                reader.close()
                raise
            self._reader, self._writer = reader, writer
            # a daemon, so that a client that was never closed does not keep a program from ending; what it still
            # has to say is flushed at exit
            thread = threading.Thread(target=self._run, name="promptbus-replies", daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self.close)

    def submit(
        self,
        request_id: str,
        value: bytes,
        *,
        headers: Sequence[Header] = (),
        key: bytes | None = None,
        timeout_s: float | None,
        wait_for_room: bool = True,
    ) -> ReplyFuture:
        """Publish one request and return the future of its reply. `value` is sent as it is.

        The header `request-id` is added, so that even a value that turns out to be no request is answered under
        this id. With no room in the producer's queue: waits, or with `wait_for_room=False` raises QueueFull.

        Raises DuplicateRequestId, MessageTooLarge, DeliveryFailed, ClientClosed, ForkedClient.
        """
        self.check_usable()
        writer = self._writer
        if writer is None:
            raise RuntimeError("connect() comes before submit()")
        future = ReplyFuture(request_id, timeout_s, time.monotonic())
        self._pending.add(future)

        def delivered(error: PromptBusError | None) -> None:
            future.sending.acknowledged(error)
            if error is None:
                future.acknowledged = True
            elif self._pending.forget(future):
                _fail(future, error if self._closed is None else self._closed_error(request_id))

        publish = writer.publish_waiting if wait_for_room else writer.publish
        try:
            future.sending = sending = tracing.send(self.request_topic, request_id, headers)
            own = [(REQUEST_ID, request_id.encode()), *headers, *sending.headers]
            publish(value, headers=own, key=key, delivered=delivered)
        except BaseException as error:
            self._pending.forget(future)
            if isinstance(error, Exception) and not isinstance(error, QueueFull):  # that is tried again
                future.sending.acknowledged(error)
            if self._closed is not None and isinstance(
                error, RuntimeError
            ):  # closed meanwhile, by another thread
                raise self._closed_error(request_id) from None
            raise
        future.add_done_callback(self._forget_if_cancelled)
        if self._closed is not None and self._pending.forget(future):
            _fail(future, self._closed_error(request_id))  # close() may have looked before this was added
        return future

    def is_large(self, value: bytes) -> bool:
        """Whether `submit` may block on a question to the broker."""
        return self._writer is not None and self._writer.is_large(value)

    def close(self, timeout_s: float = 10.0) -> None:
        """Flush what is not acknowledged (at most `timeout_s`), stop the thread, fail what was not answered.

        In a forked child this does nothing: the connections are the parent's.
        """
        if os.getpid() != self._pid:
            return
        with self._lifecycle:
            if self._closed is not None:
                return
            self._closed = "the client was closed"
            thread = self._thread
        atexit.unregister(self.close)
        self._flush_s = timeout_s
        self._stop.set()
        # in a callback of ours this is that thread: it ends when the callback returns
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # ---- the thread

    def _run(self) -> None:
        reader, writer = self._reader, self._writer
        assert reader is not None
        assert writer is not None
        try:
            self._turn_until_stopped(reader, writer)
        except Exception as error:
            LOG.exception("the client's thread ended")
            self._closed = f"the client's thread ended: {error!r}; make a new client"
        finally:
            if writer.flush(self._flush_s):
                writer.discard()
            self._fail_all()
            reader.close()
            writer.close()

    def _turn_until_stopped(self, reader: ReplyReader, writer: RequestWriter) -> None:
        last = time.monotonic()
        refresh_at = last + self._refresh_s
        while not self._stop.is_set():
            deadline = self._pending.next_deadline()
            wait = TURN_S if deadline is None else min(TURN_S, max(0.0, deadline - time.monotonic()))
            for message in reader.read(wait):
                self._handle(message)
            writer.poll()
            now = time.monotonic()
            if now - last < FROZEN_S:
                for future in self._pending.expired(now):
                    _fail(future, future.timed_out())
            if now >= refresh_at:
                reader.assign_new_partitions(REFRESH_TIMEOUT_S)
                refresh_at = now + self._refresh_s
            last = now

    def _handle(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            LOG.warning("reading %s: %s", self.reply_topic, describe(error))
            forbidden = refused(error, self.settings, Right("READ", "topic", self.reply_topic))
            if forbidden is not None:
                self._fail_all(forbidden)
            return
        headers = record_headers(message)
        future = self._pending.take(headers)
        if future is None:
            return
        future.value = message.value()
        future.sending.answered(self.reply_topic, future.request_id, headers or ())
        try:
            reply = self._decode(future.value)
        except InvalidReply as problem:
            _fail(future, problem)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(reply)

    # ---- endings

    def _forget_if_cancelled(self, future: object) -> None:
        if isinstance(future, ReplyFuture) and future.cancelled():
            self._pending.forget(future)

    def _fail_all(self, error: PromptBusError | None = None) -> None:
        for future in self._pending.take_all():
            _fail(future, error or self._closed_error(future.request_id))

    def _closed_error(self, request_id: str) -> ClientClosed:
        return ClientClosed(f"{self._closed} before request {request_id} was answered")

    def check_usable(self) -> None:
        """Raises ForkedClient or ClientClosed."""
        if os.getpid() != self._pid:
            raise ForkedClient(self._pid)
        if self._closed is not None:
            raise ClientClosed(f"{self._closed}: make a new one")


def _fail(future: ReplyFuture, error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
