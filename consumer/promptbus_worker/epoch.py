"""One partition while it is owned: what was read of it, what is settled, and what a commit would say.

Pure; the ledger has one for each owned partition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from promptbus_worker.commit_metadata import Runs, encode, encode_until


class Commit(NamedTuple):
    """The next offset to read of a partition, with every lower one settled; what else is settled is in `metadata`."""

    topic: str
    partition: int
    offset: int
    metadata: str = ""


@dataclass(eq=False, slots=True)
class Ownership:
    """One partition during one epoch.

    `live` is written by the consumer thread and read by the event loop (a plain attribute: assignment is atomic).
    """

    topic: str
    partition: int
    epoch: int
    live: bool = True


class Plan(NamedTuple):
    """A commit for the case that these offsets (in order) are settled together with it."""

    ownership: Ownership
    commit: Commit
    offsets: list[int]


@dataclass(slots=True)
class Epoch:
    """The offsets of one partition during one epoch."""

    ownership: Ownership
    begins_at: int | None = None  # None until the position is known
    sent: tuple[int, str] | None = None  # offset and metadata last taken to be committed
    last_tracked: int = -1
    last_settled: int = -1  # the highest offset that any owner is known to have settled
    last_ms: int = -1
    unsettled: dict[int, tuple[int | None, int]] = field(
        default_factory=dict
    )  # offset → bytes (None once released) and timestamp; in order
    settled_before: Runs = field(default_factory=list)  # by an earlier owner, from `last_tracked` on
    records: int = 0  # in hand
    bytes: int = 0

    @property
    def watermark(self) -> int:
        """The next offset to read for somebody who knows nothing of runs."""
        return self._watermark(self.unsettled)

    def progress(self) -> tuple[int, str]:
        """Offset and metadata of a commit now."""
        watermark = self.watermark
        return watermark, encode(watermark, self._runs(self.unsettled))

    def plan(self, offsets: Iterable[int]) -> Plan:
        """What to commit if `offsets` are settled with it: as many of the lowest as the metadata can name.

        Metadata that is cut is no harm as long as it names all that is settled; what is cut off then is gaps between
        offsets that are not.
        """
        chosen = sorted(offsets)
        few, many = 0, len(chosen) + 1  # so many fit; so many do not
        found = None
        count = len(chosen)
        while few < many - 1:
            if self._fits(text := self._if_settled(chosen[:count]), chosen[:count]):
                few, found = count, text
            else:
                many = count
            count = (few + many) // 2
        offset, metadata, _ = found or self._if_settled(())
        topic, partition = self.ownership.topic, self.ownership.partition
        return Plan(self.ownership, Commit(topic, partition, offset, metadata), chosen[:few])

    def is_settled_before(self, offset: int) -> bool:
        """Whether an earlier owner has settled it. Asked in the order of offsets: what lies below is forgotten."""
        while self.settled_before and self.settled_before[0][1] <= offset:
            del self.settled_before[0]
        return bool(self.settled_before) and self.settled_before[0][0] <= offset

    def _if_settled(self, offsets: Collection[int]) -> tuple[int, str, int | None]:
        """Offset, metadata, and from where on it is cut."""
        also = frozenset(offsets)
        unsettled = [offset for offset in self.unsettled if offset not in also]
        watermark = self._watermark(unsettled)
        return watermark, *encode_until(watermark, self._runs(unsettled))

    def _fits(self, commit: tuple[int, str, int | None], offsets: Collection[int]) -> bool:
        _, _, cut_at = commit
        return cut_at is None or max(self.last_settled, *offsets, -1) < cut_at

    def _watermark(self, unsettled: Iterable[int]) -> int:
        assert self.begins_at is not None, "the epoch has begun"
        return next(iter(unsettled), max(self.begins_at, self.last_tracked + 1))

    def _runs(self, unsettled: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Above the watermark, everything between two unsettled offsets is settled, or does not exist and never will."""
        read_to = max(self.begins_at or 0, self.last_tracked + 1)
        first = self._watermark(unsettled)
        for offset in unsettled:
            if offset > first:
                yield first, offset
            first = offset + 1
        # What this owner has settled last, and what an earlier one has behind it, may touch.
        end = read_to
        for next_first, next_end in self.settled_before:
            if next_first > end:
                if end > first:
                    yield first, end
                first = next_first
            end = next_end
        if end > first:
            yield first, end
