"""Sends dead letters again, counts what becomes of each, and knows from where to go on."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Protocol

from promptbus.dead_letters import DeadLetter, Obstacle, Place, Selection, Span, obstacle, redriven
from promptbus.errors import MessageTooLarge, PromptBusError
from promptbus.flush import LOOK_EVERY_S, flush
from promptbus.messages import Headers

CATCH_UP_S = 0.1  # a rate is kept over this long; what was not sent earlier is not made up for
POLL_EVERY = 100  # records


class Writer(Protocol):
    """What is used of RequestWriter."""

    def publish_waiting(
        self,
        value: bytes | None,
        *,
        headers: Headers,
        key: bytes | None,
        delivered: Callable[[PromptBusError | None], None],
    ) -> None: ...

    def poll(self, timeout_s: float) -> None: ...

    def flush(self, timeout_s: float) -> int: ...


class Pace:
    """At most so many a second, evenly; None: as fast as it goes. Pure: `now` is monotonic seconds."""

    def __init__(self, rate: float | None) -> None:
        self._interval_s = 0.0 if rate is None else 1 / rate
        self._due = float("-inf")

    def next_at(self, now: float) -> float:
        """When the next one may go; `now` or earlier: at once."""
        due = self._due
        self._due = max(due, now - CATCH_UP_S) + self._interval_s
        return due


class Redrive:
    """One run. Everything is counted by code; what is not in `sent` is in one of the others."""

    def __init__(
        self,
        writer: Writer | None,
        *,
        selection: Selection,
        request_topic: str,
        to: str | None = None,
        keep_deadline: bool = False,
        rate: float | None = None,
        limit: int | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`writer` None: nothing is sent, everything is counted as if it were. `stop`: asked between two
        letters, whether to end as on Ctrl-C. `clock`: monotonic seconds."""
        self._writer = writer
        self._selection = selection
        self._request_topic = request_topic
        self._to = to
        self._keep_deadline = keep_deadline
        self._pace = Pace(rate)
        self._limit = limit
        self._on_progress = on_progress
        self._stop = stop
        self._clock = clock
        self._taken = 0
        self._waiting: dict[Place, str] = {}  # sent and not acknowledged, and the code
        self.sent: Counter[str] = Counter()
        self.obstacles: defaultdict[Obstacle, list[Place]] = defaultdict(list)
        self.other_topics: Counter[str] = Counter()
        self.too_large: dict[Place, MessageTooLarge] = {}
        self.failure: PromptBusError | None = None
        self.interrupted = False
        self.stopped_at: Place | None = None
        """The first that was neither sent nor passed over, unless all were read."""

    @property
    def unacknowledged(self) -> Collection[Place]:
        """Those that were sent and not acknowledged."""
        return self._waiting.keys()

    def run(self, letters: Iterable[DeadLetter]) -> None:
        """Send what is selected, and wait until the broker has it all. Ctrl-C and the first failure end it early."""
        try:
            self._send(letters)
        except KeyboardInterrupt:
            self.interrupted = True
        except PromptBusError as error:
            self.failure = self.failure or error
        if self._writer is not None:
            try:
                flush(self._writer, self._hopeful)
            except KeyboardInterrupt:
                self.interrupted = True
        if self._waiting:
            self.stopped_at = min([*self._waiting, *([self.stopped_at] if self.stopped_at else [])])

    def remaining(self, spans: Sequence[Span]) -> list[Span]:
        """What of `spans` is still to be read; the first one begins where this run stopped."""
        at = self.stopped_at
        if at is None:
            return []
        return [
            span._replace(start=max(span.start, at.offset)) if span.partition == at.partition else span
            for span in spans
            if span.partition > at.partition or (span.partition == at.partition and at.offset < span.end)
        ]

    def _hopeful(self) -> bool:
        self.interrupted = self.interrupted or self._stop()
        return self.failure is None and not self.interrupted

    def _send(self, letters: Iterable[DeadLetter]) -> None:
        for letter in letters:
            # before anything else: wherever this is interrupted, it goes on with this one
            self.stopped_at = letter.place
            if self._taken == self._limit:
                return
            if self._selection.takes(letter):
                self._take(letter)
                if self.failure is not None or self.interrupted:
                    return
            self.stopped_at = letter.place._replace(offset=letter.place.offset + 1)
        self.stopped_at = None

    def _take(self, letter: DeadLetter) -> None:
        against = obstacle(
            letter, request_topic=self._request_topic, to=self._to, codes=self._selection.codes
        )
        if against is not None:
            self.obstacles[against].append(letter.place)
            if against is Obstacle.OTHER_TOPIC:
                self.other_topics[letter.topic] += 1
            return
        self._taken += 1
        if self._writer is None:
            self.sent[letter.code] += 1
            return
        self._wait_for_turn(self._writer)
        if not self._hopeful():
            return
        record = redriven(letter, keep_deadline=self._keep_deadline)
        self._waiting[letter.place] = letter.code
        try:
            self._writer.publish_waiting(
                record.value,
                headers=record.headers,
                key=record.key,
                delivered=partial(self._delivered, letter.place),
            )
        except MessageTooLarge as error:
            self._delivered(letter.place, error)
        if self._taken % POLL_EVERY == 0:
            self._writer.poll(0)
        self._on_progress(self.sent.total())

    def _wait_for_turn(self, writer: Writer) -> None:
        due = self._pace.next_at(self._clock())
        while (left := due - self._clock()) > 0 and self._hopeful():
            self._on_progress(self.sent.total())
            writer.poll(min(left, LOOK_EVERY_S))

    def _delivered(self, place: Place, error: PromptBusError | None) -> None:
        if isinstance(error, MessageTooLarge):
            # its own fault: the others go on
            self.too_large[place] = error
            self._waiting.pop(place, None)
        elif error is not None:
            self.failure = self.failure or error
        else:
            self.sent[self._waiting.pop(place)] += 1
