"""At-least-once: writes each reply at once, and settles a record once the broker has acknowledged all that it asks for.

Everything here runs on the event loop, which alone produces and alone serves delivery reports: a timer serves them
while any is due, so that they arrive in bulk and settle in bulk. Nobody waits for them: the reply is read long before.

librdkafka tells of failures in two ways. A delivery report names an error, but its flags (fatal, retriable) are
always false. What `produce` and `poll` raise, and what the error callback hears, has true flags. So reports are
judged by name, and the other two decide about fatal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from confluent_kafka import KafkaException

from promptbus.rights import Right
from promptbus_worker.kafka_outcomes import (
    DeliveryAction,
    delivery_verdict,
    needs_operator,
    stop_sentence,
)
from promptbus_worker.record import about
from promptbus_worker.replies import Replies
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import Outgoing

log = logging.getLogger(__name__)

RESEND_AFTER_S = 0.5
BULK_S = 0.05
"""While more waits, replies are collected for this long: each partition then gets a few large produce requests
instead of many of one record, which cost the broker several times as much."""
PARTITION_OF_KEY = -1
REPORTS_S = 0.005
"""How often delivery reports are served. At 500 replies a second, one report at a time cost a seventh of the loop's time."""


class DeliveryError(Protocol):
    """What is used of confluent_kafka.KafkaError."""

    def name(self) -> str: ...
    def str(self) -> str: ...
    def fatal(self) -> bool: ...
    def retriable(self) -> bool: ...


DeliveryReport = Callable[[DeliveryError | None, object], None]


class Producer(Protocol):
    """What is used of confluent_kafka.Producer.

    `produce` raises BufferError while its queue is full, and KafkaException like `poll`.
    """

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
    ) -> None: ...

    def poll(self, timeout: float) -> int: ...


def produce(producer: Producer, outgoing: Outgoing, report: DeliveryReport) -> None:
    """Hand a record to the producer, for the partition of its key. Raises like `Producer.produce`."""
    # All by position: with one argument by name the client looks for the name of each, a quarter of what a call takes.
    # `on_delivery` is another name of `callback`; a timestamp of 0 is now.
    producer.produce(
        outgoing.topic, outgoing.value, outgoing.key, PARTITION_OF_KEY, report, None, 0, outgoing.headers
    )


class AcknowledgedReplies(Replies):
    """Replies through an idempotent producer."""

    def __init__(
        self,
        producer: Producer,
        parts: ReplyParts,
        *,
        must_wait: Callable[[], bool],
        on_room: Callable[[], None],
    ) -> None:
        """`must_wait`: whether what lay here for a while may not be sent yet, for somebody else may own its partition
        by now. `on_room` hears that it is no longer `congested`."""
        super().__init__(parts)
        self._producer = producer
        self._must_wait = must_wait
        self._on_room = on_room
        self._collected: list[Outgoing] = []
        self._collecting: asyncio.Handle | None = None  # ends it
        self._unsent: deque[Outgoing] = deque()
        self._delivered: list[Outgoing] = []
        self._tick: asyncio.TimerHandle | None = None
        self._failed_for_good = False

    @property
    def congested(self) -> bool:
        """Whether the producer's queue is full: dispatch nothing more until it is not."""
        return bool(self._unsent)

    # -- producing

    def _send(self, records: Sequence[Outgoing]) -> None:
        if not records:
            return
        self._due += len(records)
        self._all_acknowledged.clear()
        if self.in_bulk or self._collected:  # behind those, or replies of one key would change their order
            self._collect(records)
        else:
            self._produce(records)
        if self._tick is None:
            self._serve_soon()

    def write_in_bulk(self, in_bulk: bool) -> None:
        """As for all replies. What a burst has left here leaves with its end, or everybody after it would be late too."""
        super().write_in_bulk(in_bulk)
        if not in_bulk and self._collecting is not None:
            self._collecting.cancel()
            self._collecting = asyncio.get_running_loop().call_soon(self._produce_collected)

    def _collect(self, records: Sequence[Outgoing]) -> None:
        self._collected += records
        if self._collecting is None:
            self._collecting = asyncio.get_running_loop().call_later(BULK_S, self._produce_collected)

    def _produce_collected(self) -> None:
        self._collecting = None
        if self._must_wait():
            self._collecting = asyncio.get_running_loop().call_later(BULK_S, self._produce_collected)
            return
        collected, self._collected = self._collected, []
        self._produce(collected)

    def _produce(self, records: Sequence[Outgoing]) -> None:
        for outgoing in records:
            if not outgoing.pending.record.ownership.live:
                self._drop(outgoing)  # the next owner answers it
            elif self._unsent:  # behind those, or replies of one key would change their order
                self._unsent.append(outgoing)
            else:
                self._try_to_produce(outgoing)

    def _try_to_produce(self, outgoing: Outgoing) -> bool:
        """False: the producer's queue is full, and this record first in the line of the unsent."""
        try:
            produce(self._producer, outgoing, partial(self._reported, outgoing))
        except BufferError:
            self._unsent.appendleft(outgoing)
            return False
        except KafkaException as error:
            self._failed(outgoing, error.args[0])
        except Exception:  # our defect: neither this record nor those behind it may be lost
            extra = {**about(outgoing.pending), "written_to": outgoing.topic}
            log.exception("a record could not be produced, trying again", extra=extra)
            self._resend(outgoing)
        return True

    def _serve_soon(self) -> None:
        # In bulk twice for each time that records are produced: their reports come about together.
        pause_s = BULK_S / 2 if self.in_bulk else REPORTS_S
        self._tick = asyncio.get_running_loop().call_later(pause_s, self._serve)

    def _serve(self) -> None:
        """Serve delivery reports, try again what did not fit into the producer's queue, settle."""
        try:
            self._producer.poll(0)
            if self._unsent and not self._must_wait():
                self._produce_unsent()
            if self._delivered:
                self._settle_delivered()
        except KafkaException as error:
            self.client_error(error.args[0])
        except Exception:
            log.exception("serving delivery reports failed by a defect of the worker")
        finally:
            self._tick = None
            if self._failed_for_good or not self._due:
                self._all_acknowledged.set()
            else:
                self._serve_soon()

    def _produce_unsent(self) -> None:
        while self._unsent:
            outgoing = self._unsent.popleft()
            if not outgoing.pending.record.ownership.live:
                self._drop(outgoing)
            elif not self._try_to_produce(outgoing):
                return
        self._on_room()

    def client_error(self, error: DeliveryError) -> None:
        """An error of the client as a whole, raised or from its error callback: only a fatal one matters."""
        if error.fatal():
            self._failed_for_good = True
            self._stop_for(error, "The Kafka producer failed for good.")

    def _stop_for(self, error: DeliveryError, what: str, right: Right | None = None) -> None:
        name = error.name()
        self._stop(f"{what} {stop_sentence(name, error.str(), right)}", restart=not needs_operator(name))

    # -- delivery reports

    def _reported(self, outgoing: Outgoing, error: DeliveryError | None, _: object) -> None:
        if error is None:
            self._delivered.append(outgoing)
        else:
            self._failed(outgoing, error)

    def _settle_delivered(self) -> None:
        delivered, self._delivered = self._delivered, []
        self._due -= len(delivered)
        settled = []
        for outgoing in delivered:
            request = outgoing.pending
            request.unacknowledged -= 1
            if not request.unacknowledged:
                self.unacknowledged.pop(request, None)
                settled.append(request)
        if settled:
            self._settle(settled)

    def _failed(self, outgoing: Outgoing, error: DeliveryError) -> None:
        name = error.name()
        action = delivery_verdict(name, fatal=error.fatal(), retriable=error.retriable())
        if not outgoing.pending.record.ownership.live:
            action = DeliveryAction.DROPPED  # the next owner answers it
        match action:
            case DeliveryAction.RESEND:
                extra = {**about(outgoing.pending), "written_to": outgoing.topic, "error": name}
                log.warning("a record was not written, trying again", extra=extra)
                self._resend(outgoing)
            case DeliveryAction.TOO_LARGE:
                self._refused_for_size(outgoing)
            case DeliveryAction.STOP:
                self._drop(outgoing)  # it stays unsettled; what else is due may still be acknowledged
                self._given_up = True
                what = f"Writing to {outgoing.topic} failed for good."
                self._stop_for(error, what, Right("WRITE", "topic", outgoing.topic))
            case DeliveryAction.DROPPED:
                self._drop(outgoing)

    def _drop(self, outgoing: Outgoing) -> None:
        self._due -= 1
        self.unacknowledged.pop(outgoing.pending, None)

    def _resend(self, outgoing: Outgoing) -> None:
        asyncio.get_running_loop().call_later(RESEND_AFTER_S, self._collect, [outgoing])
