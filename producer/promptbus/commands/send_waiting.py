"""`promptbus send --wait`: publish, and write replies as they arrive."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future
from typing import cast

from promptbus.client_options import make_exchange
from promptbus.commands.outcome import ERROR_REPLY, NO_REPLY, OK, USAGE, explain, say
from promptbus.commands.send import Skipped
from promptbus.errors import MessageTooLarge, PromptBusError
from promptbus.exchange import Exchange
from promptbus.messages import InvalidReply, Reply
from promptbus.pending import ReplyFuture
from promptbus.printable import write_bytes
from promptbus.progress import Progress
from promptbus.prompts import new_request_id
from promptbus.request_lines import BadLine, RequestLine
from promptbus.settings import KafkaSettings, load
from promptbus.silence import Silence

LINGER_MS = 5.0


class NothingArrives(Exception):
    """No reply for the whole time-out."""


def send_and_wait(
    lines: Iterator[RequestLine], name: str, skipped: Skipped, timeout_s: float, in_flight: int
) -> int:
    """Publish every line and write every reply; returns the exit code."""
    settings = load(KafkaSettings)
    exchange = make_exchange(
        None,
        settings,
        request_topic=None,
        reply_topic=None,
        linger_ms=LINGER_MS,
        connect_timeout_s=5.0,
        delivery_timeout_s=30.0,
        refresh_s=30.0,
    )
    exchange.connect()
    run = _Run(exchange, timeout_s)
    stopped: BadLine | None = None
    code = OK
    try:
        try:
            for line in lines:
                request_id = line.request_id or new_request_id()
                while request_id in run.waiting or len(run.waiting) >= in_flight:
                    run.take_one()
                try:
                    run.send(request_id, line.value)
                except MessageTooLarge as refusal:
                    skipped.add(BadLine(name, line.number, str(refusal)))
                run.take_what_is_there()
        except BadLine as bad:
            stopped = bad
        while run.waiting:
            run.take_one()
    except NothingArrives:
        run.progress.clear()
        silence = Silence(settings, settings.kafka_request_topic, settings.kafka_group_id)
        some = ", ".join(list(run.waiting)[:3])
        say(
            f"no reply for {timeout_s:g} s, {len(run.waiting):,} requests unanswered ({some}…): {silence.reason().sentence}"
        )
        code = NO_REPLY
    except PromptBusError as error:
        run.progress.clear()
        code = explain(error)
    finally:
        run.progress.clear()
        exchange.close(1.0)
    if stopped is not None:
        say(str(stopped))
        code = code or USAGE
    say(run.summary(skipped))
    return code or (NO_REPLY if run.undelivered else ERROR_REPLY if run.errors or run.unreadable else OK)


class _Run:
    def __init__(self, exchange: Exchange, timeout_s: float) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._done: queue.SimpleQueue[ReplyFuture] = queue.SimpleQueue()
        self.waiting: dict[str, ReplyFuture] = {}
        self.progress = Progress()
        self.sent = self.answers = self.errors = self.unreadable = self.undelivered = 0

    def send(self, request_id: str, value: bytes) -> None:
        future = self._exchange.submit(request_id, value, timeout_s=None)
        self.waiting[request_id] = future
        self.sent += 1
        future.add_done_callback(self._put)

    def take_one(self) -> None:
        """Wait for a reply and write it. Raises NothingArrives."""
        try:
            future = self._done.get(timeout=self._timeout_s)
        except queue.Empty:
            raise NothingArrives from None
        self._take(future)

    def take_what_is_there(self) -> None:
        """Write the replies that have arrived."""
        while not self._done.empty():
            self._take(self._done.get())

    def summary(self, skipped: Skipped) -> str:
        """What came of it, in one line."""
        elapsed_s = self.progress.elapsed_s
        parts = [f"{self.sent:,} sent", f"{self.answers:,} answered", f"{self.errors:,} error replies"]
        if self.unreadable:
            parts.append(f"{self.unreadable:,} unreadable replies")
        if self.undelivered:
            parts.append(f"{self.undelivered:,} not taken by Kafka")
        if self.waiting:
            parts.append(f"{len(self.waiting):,} unanswered")
        replies = self.answers + self.errors
        return f"{', '.join(parts)}{skipped} in {elapsed_s:,.1f} s ({replies / elapsed_s:,.0f}/s)"

    def _put(self, future: Future[Reply]) -> None:
        self._done.put(cast("ReplyFuture", future))

    def _take(self, future: ReplyFuture) -> None:
        del self.waiting[future.request_id]
        error = future.exception()
        if error is None:
            if future.result().ok:
                self.answers += 1
            else:
                self.errors += 1
            # a line feed between a value's tokens is as good as a blank, and would end the line here
            write_bytes((future.value or b"").replace(b"\n", b" "))
        elif isinstance(error, InvalidReply):
            self.unreadable += 1
            say(f"the reply to request {future.request_id} cannot be read: {error}")
        else:
            if not self.undelivered:
                say(f"request {future.request_id}: {error}")
            self.undelivered += 1
        replies = self.answers + self.errors
        self.progress.show(replies, f"{self.sent:,} sent, {replies:,} answered")
