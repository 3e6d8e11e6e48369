"""Dead letters as an operator meets them: where they are, why, and what is sent when one is tried again. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from promptbus.messages import (
    ErrorCode,
    Headers,
    InvalidRequest,
    decode_request,
    read_request_headers,
)
from promptbus.messages import dead_letter as dlq
from promptbus.messages.headers import DEADLINE, REQUEST_ID
from promptbus.printable import on_one_line

REDRIVE_COUNT: Final = dlq.REDRIVE_COUNT
CODES: Final = (
    *(code.value for code in ErrorCode if code.dead_lettered),
    ErrorCode.INVALID_REQUEST.value,  # what is no JSON object
)
"""What `dlq-reason` may say."""

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_PLACE = re.compile(r"(\d{1,9})[:/](\d{1,18})")


class Place(NamedTuple):
    """Where a dead letter lies on its topic; written `partition:offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Span(NamedTuple):
    """A partition's offsets from `start`, up to but without `end`."""

    partition: int
    start: int
    end: int


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead letter topic. `timestamp_ms` is when it got there, Unix milliseconds.

    What a header should say and does not is None or empty: any program may write to the topic.
    """

    place: Place
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def code(self) -> str:
        """Why it is here."""
        return self._text(dlq.REASON)

    @property
    def topic(self) -> str:
        """Where the request arrived."""
        return self._text(dlq.TOPIC)

    @property
    def origin(self) -> Place | None:
        """Where on that topic."""
        partition, offset = self._number(dlq.PARTITION), self._number(dlq.OFFSET)
        return None if partition is None or offset is None else Place(partition, offset)

    @property
    def request_timestamp_ms(self) -> int | None:
        """When the request arrived there."""
        return self._number(dlq.TIMESTAMP)

    @property
    def attempts(self) -> int | None:
        """Inference calls that it took part in and that counted."""
        return self._number(dlq.ATTEMPTS)

    @property
    def worker(self) -> str:
        """The process that gave it up."""
        return self._text(dlq.WORKER)

    @property
    def truncated_from(self) -> int | None:
        """Bytes that the value had before it was cut to fit."""
        return self._number(dlq.TRUNCATED)

    @property
    def whole(self) -> bool:
        """Whether nothing of the request was cut off."""
        return dlq.TRUNCATED not in self._last and dlq.HEADERS_DROPPED not in self._last

    @property
    def redrive_count(self) -> int:
        """How often it was redriven before it came here."""
        return self._number(REDRIVE_COUNT) or 0

    @cached_property
    def request_id(self) -> str | None:
        """The id that the request was answered under; None if that cannot be known.

        As the workers find it: the body's, else the header's, else made from where the request lay.
        """
        if self.whole:
            try:
                in_body = decode_request(self.value, ignore_unknown=True).request_id
            except InvalidRequest as problem:
                in_body = problem.request_id
            if in_body is not None:
                return in_body
        in_header = read_request_headers(self.headers).request_id
        if in_header is not None:
            return in_header
        # of a body that was cut, the id may have been cut off
        if not self.whole or not self.topic or self.origin is None:
            return None
        return f"{self.topic}-{self.origin.partition}-{self.origin.offset}"

    @cached_property
    def _last(self) -> dict[str, bytes | None]:
        return dict(self.headers)

    def _text(self, name: str) -> str:
        return (self._last.get(name) or b"").decode(errors="replace")

    def _number(self, name: str) -> int | None:
        digits = self._last.get(name) or b""
        return int(digits) if digits.isdigit() and len(digits) < 20 else None


@dataclass(frozen=True)
class Selection:
    """Which dead letters are meant; None or empty: any. Times are Unix ms, offsets the first and the last one."""

    codes: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    partitions: frozenset[int] = frozenset()
    from_offset: int | None = None
    to_offset: int | None = None
    request_ids: frozenset[str] = frozenset()

    def takes(self, letter: DeadLetter) -> bool:
        """Whether the letter is one of them. Partition and offsets are the reader's business."""
        return (
            (not self.codes or letter.code in self.codes)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
            and (not self.request_ids or letter.request_id in self.request_ids)
        )


class Obstacle(StrEnum):
    """Why a dead letter is not redriven."""

    NO_DEAD_LETTER = "no dead letter: header dlq-topic is missing"
    OTHER_TOPIC = "from another topic"
    CUT = "cut to fit this topic, the request is not whole"
    NO_REQUEST = "no JSON object"


class Redriven(NamedTuple):
    """What is published again."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def obstacle(
    letter: DeadLetter, *, request_topic: str, to: str | None, codes: Collection[str]
) -> Obstacle | None:
    """What stands against sending it. `to`: the topic that was named to take them, wherever they are from.

    A record that is no JSON object will be none the next time either: it goes only if `codes` names its code.
    """
    if not letter.topic:
        return Obstacle.NO_DEAD_LETTER
    if to is None and letter.topic != request_topic:
        return Obstacle.OTHER_TOPIC
    if not letter.whole:
        return Obstacle.CUT
    if letter.code == ErrorCode.INVALID_REQUEST and letter.code not in codes:
        return Obstacle.NO_REQUEST
    return None


def redriven(letter: DeadLetter, *, keep_deadline: bool = False) -> Redriven:
    """The request as it was, without what made it a dead letter; answered under the id of its first time."""
    ours = {REQUEST_ID, REDRIVE_COUNT} | (set() if keep_deadline else {DEADLINE})
    headers = [
        (name, value)
        for name, value in letter.headers
        if name not in ours and not name.startswith(dlq.PREFIX)
    ]
    if letter.request_id is not None:
        headers.append((REQUEST_ID, letter.request_id.encode()))
    headers.append((REDRIVE_COUNT, str(letter.redrive_count + 1).encode()))
    return Redriven(letter.key, letter.value, headers)


def parse_time(text: str, now_s: float) -> int:
    """`2h`, `30m`, `7d` before now, or an ISO time (local unless it names its zone), as Unix ms.

    Raises ValueError with a sentence.
    """
    relative = _RELATIVE.fullmatch(text.strip())
    if relative:
        return int((now_s - float(relative[1]) * _SECONDS[relative[2]]) * 1000)
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write 30m, 2h or 7d (before now), or 2030-01-31T12:00 (local; add Z for UTC)"
        ) from None


def parse_place(text: str) -> Place:
    """`PARTITION:OFFSET` or `PARTITION/OFFSET`. Raises ValueError with a sentence."""
    match = _PLACE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no place: write PARTITION:OFFSET, as the list does")
    return Place(int(match[1]), int(match[2]))


def iso_time(timestamp_ms: int | None) -> str | None:
    """UTC with milliseconds; None for a record without a time."""
    if timestamp_ms is None or timestamp_ms < 0:
        return None
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def by_code(codes: Counter[str]) -> str:
    """`12 (model_error 7, internal 5)`, the most frequent first."""
    if not codes:
        return "0"
    parts = ", ".join(
        f"{on_one_line(code, 48) or 'no code'} {count:,}" for code, count in codes.most_common()
    )
    return f"{codes.total():,} ({parts})"


def some(places: Iterable[Place], at_most: int = 10) -> str:
    """The first few, and how many more there are."""
    listed = list(places)
    more = f" and {len(listed) - at_most:,} more" if len(listed) > at_most else ""
    return ", ".join(map(str, listed[:at_most])) + more
