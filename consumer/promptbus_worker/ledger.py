"""Which offsets are settled, and what may be committed.

Theory of operation. A record is *tracked* when it was polled and *settled* when the broker has acknowledged its
reply (and its dead letter, if there is one). The watermark of a partition is the lowest tracked offset that is not
settled, or one past the last tracked offset when all are: it is the next offset to read, which is what Kafka wants
committed. Offsets have gaps (compaction, transaction markers), so the ledger keeps the offsets it saw and never
counts.

A partition is owned for an *epoch*, from assignment to revocation or loss. The `Ownership` object is the epoch: a
partition that comes back gets a new one, and whatever still arrives for the old one changes nothing.

A record is *in hand* from tracked until settled or released. Released records (dropped while they waited, at a
revocation or a drain) stay unsettled, so the watermark never passes them and the next owner reads them again.

Pure; used by one thread, the consumer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class LedgerError(Exception):
    """A move that cannot happen if the rest of the worker is right."""


class Commit(NamedTuple):
    """The next offset to read of a partition, with every lower one settled."""

    topic: str
    partition: int
    offset: int


@dataclass(eq=False, slots=True)
class Ownership:
    """One partition during one epoch.

    `live` is written by the consumer thread and read by the event loop (a plain attribute: assignment is atomic).
    `highest_answered` belongs to the event loop: the highest offset with a reply on its way.
    """

    topic: str
    partition: int
    epoch: int
    live: bool = True
    highest_answered: int = -1


@dataclass(slots=True)
class _Partition:
    ownership: Ownership
    watermark: int | None = None  # None until the position is known
    sent: int | None = None  # the watermark last taken to be committed
    last_tracked: int = -1
    unsettled: deque[int] = field(default_factory=deque)  # offsets in order; settled ones leave from the left
    settled: set[int] = field(default_factory=set)  # settled, but above the watermark
    in_hand: dict[int, int] = field(default_factory=dict)  # offset → bytes
    bytes_in_hand: int = 0


class Ledger:
    """The offsets of every owned partition."""

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._epoch = 0
        self._records = 0
        self._bytes = 0
        self._moved: set[tuple[str, int]] = set()

    @property
    def records_in_hand(self) -> int:
        """Records tracked and neither settled nor released, over all owned partitions."""
        return self._records

    @property
    def bytes_in_hand(self) -> int:
        """Bytes of those records."""
        return self._bytes

    @property
    def epoch(self) -> int:
        """Grows with every epoch that begins."""
        return self._epoch

    def watermark(self, ownership: Ownership) -> int | None:
        """The next offset to commit, if the epoch has begun and is not over."""
        part = self._find(ownership)
        return None if part is None else part.watermark

    @property
    def span(self) -> int:
        """Offsets kept over all partitions: those in hand, and those settled above a watermark."""
        return sum(len(part.unsettled) for part in self._partitions.values())

    def assign(self, topic: str, partition: int) -> Ownership:
        """Begin an epoch; nothing can be tracked in it before `begin`.

        Raises LedgerError if the partition is owned already.
        """
        key = (topic, partition)
        if key in self._partitions:
            raise LedgerError(f"{topic}[{partition}] is owned already")
        self._epoch += 1
        ownership = Ownership(topic, partition, self._epoch)
        self._partitions[key] = _Partition(ownership)
        return ownership

    def begin(self, ownership: Ownership, watermark: int, *, committed: bool) -> None:
        """The epoch reads from offset `watermark` on. A position that is not `committed` yet will be.

        Raises LedgerError if the epoch is over or has begun.
        """
        part = self._find(ownership)
        if part is None or part.watermark is not None:
            raise LedgerError(f"{ownership.topic}[{ownership.partition}] cannot begin")
        part.watermark = watermark
        part.sent = watermark if committed else None
        if not committed:
            self._moved.add((ownership.topic, ownership.partition))

    def end(self, ownership: Ownership) -> None:
        """End an epoch: nothing of it can settle or be committed any more."""
        ownership.live = False
        part = self._find(ownership)
        if part is not None:
            self._records -= len(part.in_hand)
            self._bytes -= part.bytes_in_hand
            del self._partitions[ownership.topic, ownership.partition]
            self._moved.discard((ownership.topic, ownership.partition))

    def owned(self, topic: str, partition: int) -> Ownership | None:
        """The current epoch of a partition, if it is owned."""
        part = self._partitions.get((topic, partition))
        return part.ownership if part else None

    def ownerships(self) -> list[Ownership]:
        """Every current epoch."""
        return [part.ownership for part in self._partitions.values()]

    def track(self, ownership: Ownership, offset: int, size: int) -> bool:
        """Take a polled record of `size` bytes in hand. False if it is not new or not of a current epoch: skip it."""
        part = self._find(ownership)
        if part is None or part.watermark is None or offset <= part.last_tracked or offset < part.watermark:
            return False
        part.last_tracked = offset
        part.unsettled.append(offset)
        part.in_hand[offset] = size
        part.bytes_in_hand += size
        self._records += 1
        self._bytes += size
        return True

    def settle(self, ownership: Ownership, offset: int) -> bool:
        """Note that everything this record asks for is acknowledged. False if its epoch is over.

        Raises LedgerError for an offset that is not in hand: never tracked, settled already, or released.
        """
        part = self._find(ownership)
        if part is None:
            return False
        if not self._let_go(part, offset):
            raise LedgerError(f"{ownership.topic}[{ownership.partition}] offset {offset} cannot be settled")
        part.settled.add(offset)
        unsettled, settled = part.unsettled, part.settled
        if unsettled[0] == offset:
            while unsettled and unsettled[0] in settled:
                settled.remove(unsettled.popleft())
            part.watermark = unsettled[0] if unsettled else part.last_tracked + 1
            self._moved.add((ownership.topic, ownership.partition))
        return True

    def release(self, ownership: Ownership, offset: int) -> bool:
        """Let go of a record that will not be answered in this epoch. False if its epoch is over."""
        part = self._find(ownership)
        return part is not None and self._let_go(part, offset)

    def in_hand(self, ownerships: Iterable[Ownership]) -> int:
        """Records in hand of these epochs."""
        parts = (self._find(ownership) for ownership in ownerships)
        return sum(len(part.in_hand) for part in parts if part is not None)

    def take_commits(self, ownerships: Iterable[Ownership] | None = None) -> list[Commit]:
        """What has moved since it was last taken, for all partitions or only these epochs."""
        if ownerships is None:
            keys = list(self._moved)
        else:
            keys = [(o.topic, o.partition) for o in ownerships if (o.topic, o.partition) in self._moved]
        commits = []
        for key in keys:
            self._moved.discard(key)
            part = self._partitions[key]
            if part.watermark is not None and part.watermark != part.sent:
                part.sent = part.watermark
                commits.append(Commit(*key, part.watermark))
        return commits

    def commit_failed(self, topic: str, partition: int) -> None:
        """The commit taken for this partition did not reach the broker: it will be taken again."""
        part = self._partitions.get((topic, partition))
        if part is not None:
            part.sent = None
            self._moved.add((topic, partition))

    def _let_go(self, part: _Partition, offset: int) -> bool:
        size = part.in_hand.pop(offset, None)
        if size is None:
            return False
        part.bytes_in_hand -= size
        self._records -= 1
        self._bytes -= size
        return True

    def _find(self, ownership: Ownership) -> _Partition | None:
        part = self._partitions.get((ownership.topic, ownership.partition))
        return part if part is not None and part.ownership is ownership else None
