"""Where records come in: answers at once what is no request to run, and lets the others wait for a batch.

It keeps the order of keys, if that is wanted, and knows which records are better run alone or not at all because
worker processes have crashed on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from promptbus.messages import ErrorCode
from promptbus_worker.admission import Admission
from promptbus_worker.batcher import Batcher
from promptbus_worker.crash_suspects import CRASHES, KnownSuspects
from promptbus_worker.deadline import Clock
from promptbus_worker.expiry import Expiry
from promptbus_worker.in_flight_file import InFlightFile
from promptbus_worker.key_order import Item, KeyOrder, pending_of
from promptbus_worker.ledger import Ownership
from promptbus_worker.outcomes import sentence
from promptbus_worker.record import Pending, Phase, Record, Rejection, where
from promptbus_worker.replies import Replies

log = logging.getLogger(__name__)


class Reception:
    """On the event loop."""

    def __init__(
        self,
        *,
        admission: Admission,
        batcher: Batcher,
        replies: Replies,
        expiry: Expiry,
        in_flight_file: InFlightFile,
        pump: Callable[[], None],
        ordered: bool,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """`pump` starts what may start; `ordered`: records of one key go one after the other."""
        self._admission = admission
        self._batcher = batcher
        self._replies = replies
        self._expiry = expiry
        self._in_flight_file = in_flight_file
        self._pump = pump
        self._order = KeyOrder() if ordered else None
        self._clock = clock
        self._wall_clock = wall_clock
        self._suspects = KnownSuspects.from_environment()
        self._freed: list[Item] = []

    def __len__(self) -> int:
        """Requests that wait for their key."""
        return 0 if self._order is None else len(self._order) + len(self._freed)

    def accept(self, records: Sequence[Record]) -> None:
        """Records just polled."""
        suspects = self._suspects.now()
        alone = [record for record in records if record.place in suspects] if suspects else []
        together = [record for record in records if record.place not in suspects] if alone else records
        self._admit(together)
        for record in alone:
            if suspects[record.place] < CRASHES:
                self._admit([record], crash_suspect=True)
            elif record.ownership.live:
                request, code = self._admission.unread(record), ErrorCode.INTERNAL
                extra = {"request_id": request.request_id, **where(record)}
                log.error(f"a request is given up: {CRASHES} worker processes crashed on it", extra=extra)
                self._enter(Rejection(request, code, sentence(code), dead_letter=False), self._clock(), False)
        self._pump()

    def _admit(self, records: Sequence[Record], *, crash_suspect: bool = False) -> None:
        now, wall_ms = self._clock(), self._wall_clock() * 1000
        rows = self._in_flight_file.begin(records)
        for record in records:
            if record.ownership.live:
                try:
                    item = self._admission.admit(record, now=now, wall_ms=wall_ms)
                    self._enter(item, now, crash_suspect)
                except Exception:
                    # Our own defect must not take the worker down with the same record again and again.
                    request = self._admission.bare(record)
                    extra = {"request_id": request.request_id, **where(record)}
                    log.exception("a record could not be admitted", extra=extra)
                    self._replies.error(request, ErrorCode.INTERNAL)
        self._in_flight_file.end(rows)

    def _enter(self, item: Item, now: float, crash_suspect: bool) -> None:
        if self._order is None or self._order.enter(item):
            if crash_suspect and isinstance(item, Pending):
                item.crash_suspect = True
            self._let_in(item, now)
        if isinstance(item, Pending) and item.expires_at is not None:
            self._expiry.watch(item)

    def _let_in(self, item: Item, now: float) -> None:
        if isinstance(item, Rejection):
            self._replies.reject(item)
        else:
            self._batcher.offer(item, now)

    # -- order by key

    def answered(self, requests: Iterable[Pending]) -> None:
        """Their replies are being handed to the producer: once that is done, the next ones of their keys may go on."""
        if self._order is None:
            return
        for request in requests:
            following = self._order.leave(request.record)
            if following is not None:
                if not self._freed:
                    asyncio.get_running_loop().call_soon(self._let_in_freed)
                self._freed.append(following)

    def _let_in_freed(self) -> None:
        freed, self._freed = self._freed, []
        for item in freed:
            # Its deadline may have passed, or its partition may be gone, since its turn came.
            if item.record.ownership.live and pending_of(item).phase is Phase.WAITING:
                self._let_in(item, self._clock())
        self._pump()

    def holds_back(self, request: Pending) -> bool:
        """Whether it waits for its key, and not for a batch."""
        if self._order is None:
            return False
        return self._order.holds_back(request) or any(item is request for item in self._freed)

    def drop(self, unwanted: Callable[[Ownership], bool]) -> list[Pending]:
        """Take out what waits for its key, of these partitions."""
        if self._order is None:
            return []
        freed = [pending_of(item) for item in self._freed if unwanted(item.record.ownership)]
        self._freed = [item for item in self._freed if not unwanted(item.record.ownership)]
        return [*freed, *self._order.drop(unwanted)]

    def forget(self, ownerships: Sequence[Ownership]) -> None:
        """These epochs are over."""
        if self._order is not None:
            self._order.forget(ownerships)
