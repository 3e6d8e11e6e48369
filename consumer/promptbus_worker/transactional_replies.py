"""Exactly-once, the event loop's side: hands what is to be written to the consumer's thread, and hears what became of it.

The other side is `transactional_commits`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from promptbus_worker.record import Pending
from promptbus_worker.replies import Replies
from promptbus_worker.reply_parts import ReplyParts
from promptbus_worker.reply_records import Outgoing


class TransactionalReplies(Replies):
    """Replies that transactions write."""

    def __init__(self, hand_over: Callable[[list[Outgoing]], None], parts: ReplyParts) -> None:
        """`hand_over` takes all records of some requests."""
        super().__init__(parts)
        self._hand_over = hand_over
        self._collected: list[Outgoing] = []

    @property
    def congested(self) -> bool:
        """Never: what waits to be written is in hand, and that is bounded."""
        return False

    def _send(self, records: Sequence[Outgoing]) -> None:
        self._due += len(records)
        if records and not self._given_up:
            self._all_acknowledged.clear()
        for outgoing in records:
            self._resend(outgoing)

    def _resend(self, outgoing: Outgoing) -> None:
        if not self._collected:  # all of one request come in this turn of the loop
            asyncio.get_running_loop().call_soon(self._pass_on)
        self._collected.append(outgoing)

    def _pass_on(self) -> None:
        collected, self._collected = self._collected, []
        self._hand_over(collected)

    def give_up(self) -> None:
        """No transaction will be committed any more: what is due is not waited for."""
        self._given_up = True
        self._all_acknowledged.set()

    # -- from the consumer's thread, by way of the loop

    def written(self, records: Sequence[Outgoing]) -> None:
        """These are committed, all of each request."""
        self._settle(self._gone(records))

    def dropped(self, records: Sequence[Outgoing]) -> None:
        """The epochs of these are over: the next owner answers."""
        self._gone(records)

    def refused(self, records: Sequence[Outgoing], too_large: Sequence[Outgoing]) -> None:
        """`too_large` are, of all the `records` of some requests. They are made anew, and all come again."""
        large = set(map(id, too_large))
        for outgoing in records:
            if id(outgoing) in large:
                self._refused_for_size(outgoing)
            else:
                self._resend(outgoing)

    def _gone(self, records: Sequence[Outgoing]) -> list[Pending]:
        requests = list(dict.fromkeys(outgoing.pending for outgoing in records))
        self._due -= len(records)
        for request in requests:
            self.unacknowledged.pop(request, None)
        if not self._due:
            self._all_acknowledged.set()
        return requests
