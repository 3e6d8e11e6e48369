"""Which requests wait for which replies. Pure: no client, no clock; `now` is passed in, in monotonic seconds.

Theory of operation. A reply topic is shared by many clients, so most records are somebody else's: one look into a
dict, by the raw bytes of the `request-id` header, decides whether a value is parsed at all. The first reply to a
request takes it out of the table; whatever comes later under its id is nobody's. Workers repeat a reply after a
crash, under the same `reply-id`: should the same request id be in use again by then, the ids of replies already seen
keep the repetition from answering the new request. (A reply with a *new* reply id does answer it: it may be the
answer to an earlier use of the same request id. Reuse ids only for requests to which the same answer is right.)
"""

from __future__ import annotations

import heapq
import threading
from concurrent.futures import Future
from itertools import islice

from promptbus.errors import DuplicateRequestId, ReplyTimeout
from promptbus.messages import Headers, Reply
from promptbus.messages.headers import REPLY_ID, REQUEST_ID
from promptbus.tracing import NOT_TRACED

REMEMBERED = 10_000  # ids of replies seen


class ReplyFuture(Future[Reply]):
    """The reply to come. Its exception is a PromptBusError, or InvalidReply."""

    def __init__(self, request_id: str, timeout_s: float | None, now: float) -> None:
        super().__init__()
        self.request_id = request_id
        self.timeout_s = timeout_s
        self.deadline = None if timeout_s is None else now + timeout_s
        self.acknowledged = False
        """Whether Kafka has acknowledged the request."""
        self.value: bytes | None = None
        """The reply as it was on the topic, once there is one."""
        self.sending = NOT_TRACED

    def timed_out(self) -> ReplyTimeout:
        """The error for this request after its time-out."""
        return ReplyTimeout(self.request_id, self.timeout_s or 0.0, acknowledged=self.acknowledged)


class PendingReplies:
    """A table of futures by request id. Every method may be called from any thread; none settles a future."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._waiting: dict[bytes, ReplyFuture] = {}
        self._deadlines: list[tuple[float, bytes]] = []  # a heap; entries of answered requests go lazily
        self._seen: dict[bytes, None] = {}  # reply ids, oldest first
        self._remembered = remembered
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, future: ReplyFuture) -> None:
        """Wait for a reply to `future.request_id`. Raises DuplicateRequestId if somebody does already."""
        key = future.request_id.encode()
        with self._lock:
            if key in self._waiting:
                raise DuplicateRequestId(future.request_id)
            self._waiting[key] = future
            if future.deadline is not None:
                heapq.heappush(self._deadlines, (future.deadline, key))
                if len(self._deadlines) > 2 * len(self._waiting) + 1_000:
                    self._drop_answered()

    def take(self, headers: Headers | None) -> ReplyFuture | None:
        """The future that a record with these headers answers, taken out of the table; None if it is not ours."""
        request_id = reply_id = None
        for name, value in headers or ():
            if name == REQUEST_ID:
                request_id = value
            elif name == REPLY_ID:
                reply_id = value
        if request_id is None or request_id not in self._waiting:
            return None
        with self._lock:
            if reply_id is not None:
                if reply_id in self._seen:
                    return None
                self._seen[reply_id] = None
                if len(self._seen) > self._remembered:
                    del self._seen[next(iter(self._seen))]
            return self._waiting.pop(request_id, None)

    def forget(self, future: ReplyFuture) -> bool:
        """No longer wait for this one; False if the table did not hold it."""
        key = future.request_id.encode()
        with self._lock:
            if self._waiting.get(key) is not future:
                return False
            del self._waiting[key]
            return True

    def expired(self, now: float) -> list[ReplyFuture]:
        """Futures whose deadline has passed, taken out of the table."""
        late: list[ReplyFuture] = []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                deadline, key = heapq.heappop(self._deadlines)
                future = self._waiting.get(key)
                if future is not None and future.deadline == deadline:
                    late.append(self._waiting.pop(key))
        return late

    def next_deadline(self) -> float | None:
        """When `expired` may next find something (or a little earlier)."""
        with self._lock:
            return self._deadlines[0][0] if self._deadlines else None

    def take_all(self) -> list[ReplyFuture]:
        """Every future, taken out of the table."""
        with self._lock:
            futures = list(self._waiting.values())
            self._waiting.clear()
            self._deadlines.clear()
        return futures

    def some_ids(self, count: int) -> list[str]:
        """A few request ids that wait, for messages."""
        with self._lock:
            return [future.request_id for future in islice(self._waiting.values(), count)]

    def _drop_answered(self) -> None:
        self._deadlines = [
            (deadline, key)
            for deadline, key in self._deadlines
            if (future := self._waiting.get(key)) is not None and future.deadline == deadline
        ]
        heapq.heapify(self._deadlines)
