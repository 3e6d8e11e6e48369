"""The HTTP protocol by itself: answers in whatever pieces and whatever state, and what becomes of connections."""

import asyncio
import gc
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from promptbus_worker import http_protocol
from promptbus_worker.http_protocol import MAX_HEAD, Answer, BrokenConnection, NotConnected, Pool, Reading

REQUEST = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DEADLINE_S = 5.0

WHOLE = {
    "by length": (OK, b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "without a reason": (b"HTTP/1.1 200\r\ncontent-length:5\r\n\r\nhello", b"hello"),
    "chunked": (CHUNKED + b"3\r\nhel\r\n2;name=value\r\nlo\r\n0\r\n\r\n", b"hello"),
    "chunked with trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"hello"),
    "chunks that hold line ends": (CHUNKED + b"009\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r\n"),
    "no chunk": (CHUNKED + b"0\r\n\r\n", b""),
    "after interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + OK,
        b"hello",
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
}
BROKEN = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "another version": b"HTTP/2 200\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "an odd status": b"HTTP/1.1 999 Odd\r\n\r\n",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "a folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * (MAX_HEAD + 1),
    "a long head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    "a length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that was not asked for": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a chunk of no length": CHUNKED + b"\r\nhello\r\n",
    "a chunk of odd length": CHUNKED + b"0x5\r\nhello\r\n",
    "a chunk of huge length": CHUNKED + b"123456789\r\n",
    "a chunk that goes on": CHUNKED + b"3\r\nhello\r\n",
    "an endless chunk line": CHUNKED + b"5;" + b"x" * (MAX_HEAD + 1),
    "endless trailers": CHUNKED + b"0\r\nA: " + b"b" * (MAX_HEAD + 1),
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
}


def read(data: bytes, piece: int = 1 << 30) -> Answer | None:
    """Feed in pieces; nothing may be left over after the answer."""
    reading = Reading(limit=1 << 20)
    for at in range(0, len(data), piece):
        answer = reading.feed(data[at : at + piece])
        if answer is not None:
            assert at + piece >= len(data)
            return answer
    return None


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 30])
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(name: str, piece: int) -> None:
    data, body = WHOLE[name]
    answer = read(data, piece)
    assert answer is not None
    assert answer.body == body


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_that_is_cut_short_anywhere_is_broken(name: str) -> None:
    data = WHOLE[name][0]
    for end in range(len(data)):
        reading = Reading()
        if data[:end]:
            assert reading.feed(data[:end]) is None
        with pytest.raises(BrokenConnection):
            reading.end()


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("piece", [1, 4096, 1 << 30])
def test_what_is_not_http_is_said_to_be_so_at_once(name: str, piece: int) -> None:
    with pytest.raises(BrokenConnection):
        read(BROKEN[name], piece)


def test_whatever_the_bytes_they_are_an_answer_or_not_enough_or_broken() -> None:
    chance = random.Random(7)
    seeds = [data for data, _ in WHOLE.values()]
    for _ in range(5000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        reading = Reading(limit=1000)
        try:
            if reading.feed(bytes(data)) is None:
                reading.end()
        except BrokenConnection:
            pass


def outcome(pieces: Sequence[bytes], limit: int) -> tuple[Answer | None, bool] | type[BrokenConnection]:
    """The answer, and whether the connection can be kept."""
    reading, answer = Reading(limit), None
    try:
        for piece in pieces:
            answer = reading.feed(piece)
    except BrokenConnection:
        return BrokenConnection
    return answer, reading.keep_alive


def test_tritons_own_head_is_read_as_any_other() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        b"Inference-Header-Content-Length: 2\r\nContent-Length: 5\r\n\r\n"
    )
    whole = head + b"{}abc"
    headers = {
        b"content-type": b"application/octet-stream",
        b"inference-header-content-length": b"2",
        b"content-length": b"5",
    }
    assert outcome([whole], 1000) == (Answer(200, headers, b"{}abc"), True)
    chance = random.Random(5)
    seeds = [whole, whole + b"d", whole[:-1], head.replace(b"5", b"000000000000005") + b"{}abc"]
    for _ in range(5000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.choice(b"0123456789\r\n: a\xff")
        limit = chance.choice([len(data) - 1, len(data), 1000])
        assert outcome([bytes(data)], limit) == outcome([bytes(data[:1]), bytes(data[1:])], limit)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        CHUNKED + b"3e0\r\n" + bytes(0x3E0) + b"\r\n",
        b"HTTP/1.1 503 Busy\r\n\r\n" + bytes(1000),
    ],
)
def test_an_answer_beyond_the_limit_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenConnection, match="longer than 1000 bytes"):
        Reading(limit=1000).feed(data)


def test_headers_are_lower_case_and_joined() -> None:
    answer = read(b"HTTP/1.1 503 Busy\r\nX-A:  1 \r\nx-a: 2\r\nContent-Length: 0\r\n\r\n")
    assert answer == Answer(503, {b"x-a": b"1, 2", b"content-length": b"0"}, b"")


def test_an_error_page_may_end_with_the_connection_and_a_200_may_not() -> None:
    reading = Reading()
    assert reading.feed(b"HTTP/1.0 503 Busy\r\n\r\nbusy") is None
    assert reading.end() == Answer(503, {}, b"busy")
    reading = Reading()
    assert reading.feed(b"HTTP/1.1 200 OK\r\n\r\n{}") is None
    with pytest.raises(BrokenConnection, match="cut short"):
        reading.end()


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (OK, True),
        (OK + b"H", False),
        (OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), False),
        (OK.replace(b"OK\r\n", b"OK\r\nConnection: Close, x\r\n"), False),
        (OK.replace(b"1.1", b"1.0"), False),
        (OK.replace(b"1.1", b"1.0").replace(b"OK\r\n", b"OK\r\nConnection: Keep-Alive\r\n"), True),
        (WHOLE["chunked"][0], True),
        (WHOLE["chunked"][0] + b"\r\n", False),
    ],
)
def test_a_connection_is_kept_only_if_both_sides_agree_where_the_answer_ended(
    data: bytes, kept: bool
) -> None:
    reading = Reading()
    assert reading.feed(data) is not None
    assert reading.keep_alive is kept


class Server:
    """Counts connections and requests, and does per request what `behave` says."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0
        self.closed = 0
        self.port = 0
        self.behave: Callable[[asyncio.StreamWriter], Awaitable[None]] = self.answer

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        """Well."""
        writer.write(OK)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while not writer.is_closing():
                await reader.readexactly(len(REQUEST))
                self.requests += 1
                await self.behave(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed += 1
            writer.close()


@asynccontextmanager
async def pool_for(server: Server, size: int = 4, max_answer: int = 1 << 20) -> AsyncIterator[Pool]:
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        pool = Pool("127.0.0.1", server.port, size=size, max_answer=max_answer)
        try:
            yield pool
        finally:
            await pool.close()
            await until(lambda: server.closed == server.connections)
    gc.collect()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def test_one_connection_serves_call_after_call_and_the_last_used_is_used_first() -> None:
    server = Server()
    async with pool_for(server) as pool:
        for _ in range(5):
            assert (await pool.send(REQUEST)).body == b"hello"
        assert (server.connections, server.requests) == (1, 5)
        await asyncio.gather(*(pool.send(REQUEST) for _ in range(3)))
        assert server.connections == 3


async def test_connections_are_never_more_than_allowed_and_calls_wait_their_turn() -> None:
    server = Server()
    async with pool_for(server, size=2) as pool:
        answers = await asyncio.gather(*(pool.send(REQUEST) for _ in range(20)))
    assert len(answers) == server.requests == 20
    assert server.connections == 2


async def test_small_writes_are_not_held_back() -> None:
    server = Server()
    async with pool_for(server):
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, "127.0.0.1", server.port
        )
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()


async def test_a_connection_that_the_server_closed_while_idle_is_passed_over() -> None:
    server = Server()

    async def answer_and_close(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    server.behave = answer_and_close
    async with pool_for(server) as pool:
        for number in range(1, 4):
            assert (await pool.send(REQUEST)).status == 200
            await until(lambda: not any(one.usable for one in pool.connections))
            assert (server.connections, server.requests) == (number, number)


async def test_a_connection_that_speaks_while_idle_is_not_trusted_with_a_request() -> None:
    server = Server()
    proceed = asyncio.Event()

    async def answer_twice(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await proceed.wait()
        writer.write(OK.replace(b"hello", b"wrong"))

    server.behave = answer_twice
    async with pool_for(server) as pool:
        await pool.send(REQUEST)
        proceed.set()
        await until(lambda: not any(one.usable for one in pool.connections))
        server.behave = server.answer
        assert (await pool.send(REQUEST)).body == b"hello"
        assert server.connections == 2


async def test_bytes_after_an_answer_cost_the_connection_and_not_the_answer() -> None:
    server = Server()

    async def too_much(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + OK.replace(b"hello", b"wrong"))

    server.behave = too_much
    async with pool_for(server) as pool:
        for number in range(1, 4):
            assert (await pool.send(REQUEST)).body == b"hello"
            assert server.connections == number


async def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    async with pool_for(server) as pool:
        await pool.send(REQUEST)
        monkeypatch.setattr(http_protocol, "IDLE_S", -1.0)
        await pool.send(REQUEST)
        await until(lambda: server.closed == 1)
        assert server.connections == 2


async def test_connections_that_nobody_needs_any_more_are_closed() -> None:
    server = Server()
    async with pool_for(server) as pool:
        await asyncio.gather(*(pool.send(REQUEST) for _ in range(3)))
        await pool.send(REQUEST)
        assert len(pool.connections) == 3, "the next peak may come soon"
        for connection in pool._idle[:-1]:
            connection.idle_since -= 2 * http_protocol.IDLE_S
        await pool.send(REQUEST)
        await until(lambda: server.closed == 2)
        assert len(pool.connections) == 1
        assert server.connections == 3


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", OK[:-1], b"SSH-2.0\r\n"])
async def test_a_request_is_sent_once_however_its_connection_breaks(reused: bool, answer: bytes) -> None:
    server = Server()

    async def break_off(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with pool_for(server) as pool:
        if reused:
            await pool.send(REQUEST)
        server.behave = break_off
        with pytest.raises(BrokenConnection):
            await pool.send(REQUEST)
        assert (server.connections, server.requests) == (1, 1 + reused)
        server.behave = server.answer
        assert (await pool.send(REQUEST)).status == 200


@pytest.mark.parametrize("begun", [b"", OK[:-1]])
async def test_a_call_that_is_given_up_closes_its_connection(begun: bytes) -> None:
    server = Server()

    arrived, given_up = asyncio.Event(), asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        arrived.set()
        await given_up.wait()
        writer.write(OK)

    server.behave = late
    async with pool_for(server, size=1) as pool:
        call = asyncio.create_task(pool.send(REQUEST, 0.03))
        await arrived.wait()
        with pytest.raises(TimeoutError):
            await pool.send(REQUEST, 0.001)  # which waits for the same connection
        with pytest.raises(TimeoutError):
            await call
        given_up.set()
        server.behave = server.answer
        assert (await pool.send(REQUEST)).body == b"hello"
        assert (server.connections, server.requests) == (2, 2)
        call = asyncio.create_task(pool.send(REQUEST))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await pool.send(REQUEST)).body == b"hello"


def answers_later(server: Server) -> asyncio.Event:
    """It reads requests, and answers them once this is set."""
    answer = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await answer.wait()
        writer.write(OK)

    server.behave = late
    return answer


async def test_every_call_has_its_own_time_out_whatever_others_have() -> None:
    server = Server()
    answer = answers_later(server)
    loop = asyncio.get_running_loop()
    ended: list[float] = []

    async def give_up(timeout_s: float) -> None:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await pool.send(REQUEST, timeout_s)
        assert -0.005 < loop.time() - began - timeout_s < 1.0
        ended.append(timeout_s)

    async with pool_for(server) as pool:
        patient = asyncio.create_task(pool.send(REQUEST, DEADLINE_S))
        await until(lambda: server.requests == 1)
        await asyncio.gather(give_up(0.2), give_up(0.01), give_up(0.1))
        assert ended == [0.01, 0.1, 0.2]
        answer.set()
        assert (await patient).body == b"hello"


async def test_a_call_that_was_answered_leaves_no_time_out_to_the_next() -> None:
    server = Server()
    async with pool_for(server, size=1) as pool:
        await pool.send(REQUEST, 0.05)

        async def late(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.1)
            writer.write(OK)

        server.behave = late
        assert (await pool.send(REQUEST, DEADLINE_S)).body == b"hello"
        assert (await pool.send(REQUEST)).body == b"hello"
        with pytest.raises(TimeoutError):
            await pool.send(REQUEST, 0.02)
        assert server.connections == 1


@pytest.mark.parametrize("given_a_place", [False, True])
async def test_a_call_that_is_given_up_while_it_waits_leaves_its_place_to_the_next(
    given_a_place: bool,
) -> None:
    server = Server()
    answer = answers_later(server)
    async with pool_for(server, size=1) as pool, asyncio.timeout(DEADLINE_S):

        async def first() -> None:
            await pool.send(REQUEST)
            if given_a_place:  # in this very step of the loop
                second.cancel()

        running = asyncio.create_task(first())
        second, third = (asyncio.create_task(pool.send(REQUEST)) for _ in range(2))
        await until(lambda: server.requests == 1)
        if not given_a_place:
            second.cancel()
        answer.set()
        await running
        assert (await third).body == b"hello"
        assert second.cancelled()
        await asyncio.gather(*(pool.send(REQUEST) for _ in range(3)))
        assert (server.connections, server.requests) == (1, 5)


async def test_an_early_answer_to_a_long_request_costs_the_connection() -> None:
    early = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await early.wait()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1024) as listening:
        pool = Pool("127.0.0.1", listening.sockets[0].getsockname()[1], size=1)
        async with asyncio.timeout(DEADLINE_S):
            assert (await pool.send(b"x" * (32 << 20))).status == 413
        assert not any(one.usable for one in pool.connections)
        early.set()
        await pool.close()


async def test_a_closed_pool_breaks_the_calls_under_way_and_refuses_others() -> None:
    server = Server()

    async def never(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)

    server.behave = never
    async with pool_for(server, size=1) as pool:
        calls = [asyncio.create_task(pool.send(REQUEST)) for _ in range(2)]
        await until(lambda: server.requests == 1)
        await pool.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [BrokenConnection, NotConnected]
    assert server.requests == 1


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "no-such-host.invalid"])
async def test_a_host_that_cannot_be_is_no_connection(host: str) -> None:
    pool = Pool(host, 1, size=1)
    with pytest.raises(NotConnected):
        await pool.send(REQUEST)
    await pool.close()
