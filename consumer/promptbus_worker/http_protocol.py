"""HTTP/1.1 without TLS, as little of it as calls to an inference server take: one request, one answer.

Rules of RFC 9112 that are kept: a head of at most MAX_HEAD bytes; a body by `Content-Length`, `chunked`, or until the
server closes; interim 1xx answers are passed over. A message that claims two lengths is refused. Redirects, cookies,
compression and proxies do not exist here.

A request goes out at most once. Before it does, a connection that is known to be closed is passed over for another;
from the first byte on, every failure is BrokenConnection: the server may have read the request and run it. A
connection that did not end its answer in order (failed, cancelled, timed out) is closed, never used again.

A call has one time-out for all of it. While an answer is waited for, a pool's one timer watches it: nearly every call
finds a connection at once and is answered long before its deadline, so most calls set no timer at all. asyncio.timeout,
which may interrupt anything, costs more than all the rest of a call. TCP_NODELAY is set by both event loops, asyncio's
and uvloop's.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from math import inf
from time import monotonic
from typing import NamedTuple, cast

MAX_HEAD = 32 * 1024
"""Bytes of a status line with its headers, and of a chunk's line or the trailers."""
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of a whole answer as it is on the wire."""
IDLE_S = 15.0
"""A connection that was idle for longer is not used again: servers and load balancers close such ones, and a request
that meets the close on its way is lost."""
_EARLY_S = 0.001
"""A loop's timer can fire so much early: uvloop counts whole milliseconds."""

_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\r\n\0]*)?((?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)*)"
)
_TRITONS = re.compile(
    rb"HTTP/1\.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    rb"Inference-Header-Content-Length: (\d{1,15})\r\nContent-Length: (\d{1,15})\r\n\r\n"
)
"""The head that Triton writes before tensors, to the letter. It is one of _HEAD, which any other has to be as well."""
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_LENGTH = re.compile(rb"\d{1,15}")
_BEGINNING = b"HTTP/1."


class NotConnected(Exception):
    """No connection came about, so nothing was sent: refused, unknown name, unreachable."""


class BrokenConnection(Exception):
    """The request was sent, wholly or in part, and no whole HTTP answer came back."""


class Answer(NamedTuple):
    """Header names are lower-case; a header given twice is joined by ", "."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Reading:
    """One answer as its bytes arrive. Whatever they are, they are an Answer, not enough, or BrokenConnection."""

    keep_alive = False
    _received: bytes | bytearray = b""  # mostly an answer comes in one piece, which is not copied
    _at = 0  # everything before it is dealt with
    _searched = 0
    _status = 0  # 0 until the head is complete
    _length: int | None = None
    _chunks: bytearray | None = None

    def __init__(self, limit: int = MAX_ANSWER) -> None:
        self._limit = limit
        self._headers: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> Answer | None:
        """The answer if these bytes complete it."""
        received = self._received
        if not received:
            # Two thirds cheaper than the long way, which comes to the same.
            tritons = _TRITONS.match(data)
            if tritons is not None and len(data) == tritons.end() + int(tritons[2]) <= self._limit:
                self.keep_alive = True
                headers = {
                    b"content-type": b"application/octet-stream",
                    b"inference-header-content-length": tritons[1],
                    b"content-length": tritons[2],
                }
                return tuple.__new__(Answer, (200, headers, data[tritons.end() :]))
            received = data
        else:
            if not isinstance(received, bytearray):
                received = bytearray(received)
            received += data
        self._received = received
        if len(received) > self._limit:
            raise BrokenConnection(f"the answer is longer than {self._limit} bytes")
        if not self._status and not self._read_head(received):
            return None
        if self._chunks is not None:
            return self._answer(self._chunks) if self._read_chunks() else None
        if self._length is None or len(received) < self._at + self._length:
            return None
        begin, self._at = self._at, self._at + self._length
        return self._answer(received[begin : self._at])

    def end(self) -> Answer:
        """The server closed: the answer if that is how its end is marked."""
        if not self._received:
            raise BrokenConnection("the server closed the connection without an answer")
        # A 200 must mark its end otherwise: one that is cut short would be taken for the model's bad output.
        if self._status in (0, 200) or self._length is not None or self._chunks is not None:
            raise BrokenConnection(f"the answer was cut short after {len(self._received)} bytes")
        begin, self._at = self._at, len(self._received)
        return self._answer(self._received[begin:])

    def _answer(self, body: bytes | bytearray) -> Answer:
        if self._at != len(self._received):  # the next answer would be somebody else's
            self.keep_alive = False
        # What a NamedTuple's own __new__ does, without its being called.
        return tuple.__new__(Answer, (self._status, self._headers, bytes(body)))

    def _read_head(self, received: bytes | bytearray) -> bool:
        while True:
            at = self._at
            if not _BEGINNING.startswith(received[at : at + len(_BEGINNING)]):
                raise BrokenConnection(f"the answer is not HTTP: {bytes(received[at : at + 40])!r}")
            end = received.find(b"\r\n\r\n", max(at, self._searched - 3))
            if (len(received) if end < 0 else end) - at > MAX_HEAD:
                raise BrokenConnection(f"the answer's head is longer than {MAX_HEAD} bytes")
            if end < 0:
                self._searched = len(received)
                return False
            head = _HEAD.fullmatch(received, at, end)
            if head is None:
                raise BrokenConnection(f"the answer's head is not HTTP: {bytes(received[at : at + 80])!r}")
            self._at = end + 4
            version, status, lines = head.groups()
            if status[0] != ord("1"):
                self._understand(version == b"1", int(status), bytes(lines))
                return True
            if status == b"101":
                raise BrokenConnection("the server wants to switch protocols")

    def _understand(self, persistent: bool, status: int, lines: bytes) -> None:
        headers = self._headers
        for line in lines.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            headers[name] = headers[name] + b", " + value if name in headers else value
        length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
        if status in (204, 304):
            self._length = 0
        elif coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise BrokenConnection("the answer's length is not understood (Transfer-Encoding)")
            self._chunks = bytearray()
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise BrokenConnection(f"the answer's length is not understood: {length[:40]!r}")
            self._length = int(length)
            if self._length > self._limit:
                raise BrokenConnection(f"the answer is longer than {self._limit} bytes")
        if b"connection" in headers:
            wishes = headers[b"connection"].lower()
            persistent = b"close" not in wishes and (persistent or b"keep-alive" in wishes)
        self.keep_alive = persistent and (self._length is not None or self._chunks is not None)
        self._status = status

    def _read_chunks(self) -> bool:
        received, body = self._received, self._chunks
        assert body is not None
        while True:
            end = received.find(b"\r\n", self._at)
            if (len(received) if end < 0 else end) - self._at > MAX_HEAD:
                raise BrokenConnection("a chunk's line is too long")
            if end < 0:
                return False
            line = _CHUNK.fullmatch(received, self._at, end)
            if line is None:
                raise BrokenConnection(f"a chunk has no length: {bytes(received[self._at : end][:40])!r}")
            size = int(line[1], 16)
            if size == 0:
                return self._read_trailers(end)
            begin = end + 2
            if len(received) < begin + size + 2:
                return False
            if received[begin + size : begin + size + 2] != b"\r\n":
                raise BrokenConnection("a chunk is longer than it says")
            body += received[begin : begin + size]
            self._at = begin + size + 2

    def _read_trailers(self, last: int) -> bool:
        end = self._received.find(b"\r\n\r\n", last)
        if (len(self._received) if end < 0 else end) - last > MAX_HEAD:
            raise BrokenConnection("the answer's trailers are too long")
        if end >= 0:
            self._at = end + 4
        return end >= 0


class Connection(asyncio.Protocol):
    """One connection: an exchange at a time, and none any more once `usable` is False."""

    def __init__(self, limit: int) -> None:
        self.usable = False
        self.idle_since = 0.0
        self.deadline = inf
        """When the exchange under way is late, by time.monotonic()."""
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._reading = Reading(limit)

    def begin(self, request: bytes, deadline: float) -> asyncio.Future[Answer]:
        """Send a whole request; the future of its answer, of BrokenConnection or, through `late`, of TimeoutError.

        Only while `usable`. Next is `finish` once there is an answer, and `abort` if none is waited for any more.
        """
        assert self._transport is not None
        assert self._answer is None
        self._reading = Reading(self._limit)
        self._answer = self._loop.create_future()
        self.deadline = deadline
        self._transport.write(request)
        return self._answer

    def finish(self) -> None:
        """The answer was taken: the connection is idle, or closed if it cannot be used again."""
        assert self._transport is not None
        self._answer = None
        self.deadline = inf
        self.idle_since = monotonic()
        # An answer before the whole request was sent leaves a rest that the next request would follow.
        if not self._reading.keep_alive or self._transport.get_write_buffer_size():
            self.abort()

    def late(self) -> None:
        """The deadline has passed."""
        self.deadline = inf
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TimeoutError())

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.usable = True

    def data_received(self, data: bytes) -> None:
        waiting = self._answer
        if waiting is None or waiting.done():  # nobody asked: do not trust it with a request
            self.abort()
            return
        try:
            answer = self._reading.feed(data)
        except BrokenConnection as error:
            waiting.set_exception(error)
            self.abort()
            return
        if answer is not None:
            waiting.set_result(answer)

    def eof_received(self) -> None:
        self.usable = False
        self._ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._ended(error)
        self.gone.set_result(None)

    def _ended(self, error: Exception | None) -> None:
        if self._answer is None or self._answer.done():
            return
        try:
            if error is not None:
                raise BrokenConnection(f"the connection broke: {type(error).__name__}: {error}")
            self._answer.set_result(self._reading.end())
        except BrokenConnection as broken:
            self._answer.set_exception(broken)


class Pool:
    """Connections to one server, at most `size`; the one used last is used first, so that the surplus grows old."""

    def __init__(self, host: str, port: int, *, size: int, max_answer: int = MAX_ANSWER) -> None:
        self._host, self._port = host, port
        self._max_answer = max_answer
        self._free = size  # places for calls; above 0 only while nobody waits
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[Connection] = []
        self.connections: set[Connection] = set()  # all that are open
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = inf  # no deadline of an exchange is before it
        self._closed = False

    async def send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        """Send the request's bytes, head included, once. Waits for a connection, in order of arrival.

        `timeout_s` bounds everything from waiting for a connection to the last byte of the answer; None: nothing does.

        Raises NotConnected: nothing was sent. BrokenConnection, TimeoutError: it may have run.
        """
        now = monotonic()
        deadline = inf if timeout_s is None else now + timeout_s
        connection = self._take(now) if self._free else None
        if connection is not None:
            self._free -= 1
        else:
            async with asyncio.timeout(timeout_s):
                connection = await self._wait_for_connection()
        if deadline < self._wakes_at:
            self._wake_at(deadline)
        try:
            answer = await connection.begin(request, deadline)
            connection.finish()
            return answer
        except BaseException:  # broken, cancelled or out of time: the answer can still come, and is nobody's
            connection.abort()
            raise
        finally:
            self._release()
            self._close_surplus(connection.idle_since)
            if connection.usable:
                self._idle.append(connection)

    async def _wait_for_connection(self) -> Connection:
        await self._acquire()
        try:
            return self._take(monotonic()) or await self._connect()
        except BaseException:
            self._release()
            raise

    async def _acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():  # it came in the same moment
                self._release()
            place.cancel()
            raise

    def _release(self) -> None:
        """A place goes to who waits longest, past everybody who comes now."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else it was given up
                place.set_result(None)
                return
        self._free += 1

    def _wake_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = deadline
        self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - monotonic()), self._wake)

    def _wake(self) -> None:
        """End the exchanges that are late, mostly none: a call that ends leaves the timer. Then wait for the next."""
        self._timer, self._wakes_at = None, inf
        now = monotonic() + _EARLY_S
        for connection in self.connections:
            if connection.deadline <= now:
                connection.late()
        deadline = min((connection.deadline for connection in self.connections), default=inf)
        if deadline < inf:
            self._wake_at(deadline)

    async def close(self) -> None:
        """Break every connection, and with it the calls under way; returns when all are gone."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*(connection.gone for connection in list(self.connections)))

    def _close_surplus(self, now: float) -> None:
        """Whom nobody has needed for long: the peak of an hour ago shall not stay open for ever."""
        while self._idle and self._idle[0].idle_since < now - IDLE_S:
            self._idle.pop(0).abort()

    def _take(self, now: float) -> Connection | None:
        oldest = now - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        if self._closed:
            raise NotConnected("the client was closed")
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._max_answer), self._host, self._port
            )
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
            raise NotConnected(f"{type(error).__name__}: {error}") from error
        self.connections.add(connection)
        connection.gone.add_done_callback(lambda _: self.connections.discard(connection))
        if self._closed or not connection.usable:
            connection.abort()
            raise NotConnected("the connection was closed before anything was sent")
        return connection
