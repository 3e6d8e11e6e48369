"""At most one record per key goes on at a time; the others wait here, in their order (WORKER_ORDERING=key).

A record holds its key from admission until its reply is handed to the producer, retries included. So replies of one
key stand in the reply topic in the order of their requests, and other keys go on. A null key is nobody's: such
records are not ordered. A request whose deadline passes is answered then, wherever it stands in line.

Across a lost partition two owners may answer the same records. Each writes a key's replies in order, so the first
reply of each `reply_id`, which is the one a reader keeps, is in order too. What breaks the order is a reply that
librdkafka gave up and the worker writes again: it comes after those written meanwhile.

Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Pending, Phase, Record, Rejection

Item = Pending | Rejection


class KeyOrder:
    """The lines of all keys. The first of each line goes on; the rest is held back."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Ownership, bytes], deque[Item]] = {}

    def __len__(self) -> int:
        """How many are held back."""
        return sum(len(line) - 1 for line in self._lines.values())

    def enter(self, item: Item) -> bool:
        """Whether it may go on at once; if not, it is held back until `leave` returns it."""
        record = item.record
        if record.key is None:
            return True
        line = self._lines.setdefault((record.ownership, record.key), deque())
        line.append(item)
        if len(line) == 1:
            return True
        pending_of(item).phase = Phase.WAITING
        return False

    def leave(self, record: Record) -> Item | None:
        """The record is answered. Whoever may go on now, if it was the first of its line."""
        if record.key is None:
            return None
        key = (record.ownership, record.key)
        line = self._lines.get(key)
        if line is None:
            return None
        if line[0].record is not record:  # its deadline came before its turn
            self._lines[key] = deque(item for item in line if item.record is not record)
            return None
        line.popleft()
        if not line:
            del self._lines[key]
            return None
        return line[0]

    def holds_back(self, request: Pending) -> bool:
        """Whether it waits here for its turn."""
        record = request.record
        line = self._lines.get((record.ownership, record.key)) if record.key is not None else None
        return line is not None and line[0] is not request and request in line

    def drop(self, unwanted: Callable[[Ownership], bool]) -> list[Pending]:
        """Take everything out that is held back of these partitions; it is left for their next owner."""
        dropped: list[Pending] = []
        for (ownership, _), line in self._lines.items():
            if unwanted(ownership):
                while len(line) > 1:
                    dropped.append(pending_of(line.pop()))
        return dropped

    def forget(self, ownerships: Iterable[Ownership]) -> None:
        """These epochs are over."""
        over = set(ownerships)
        self._lines = {key: line for key, line in self._lines.items() if key[0] not in over}


def pending_of(item: Item) -> Pending:
    """The record in hand that this is about."""
    return item.pending if isinstance(item, Rejection) else item
