"""A TCP proxy on this machine that spoils what goes through it: slow, reset, half-open, answered 503.

All proxies of a run share one thread with one event loop. What is asked of them from other threads takes effect
before the call returns.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

from stack.ports import HOST, free_ports

T = TypeVar("T")

CHUNK_BYTES = 65_536
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_BODY = b'{"error":"Exceeds maximum queue size"}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_BODY), _BODY)
)
_RST = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: closing sends a reset


class _Connection:
    """One client's connection, and ours to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)
        self.dead = False  # half-open: what comes is thrown away, nobody is told

    def reset(self) -> None:
        for writer in self.writers:
            raw = writer.get_extra_info("socket")
            if raw is not None:
                with suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            writer.transport.abort()


class Proxy:
    """Stands in for one server. `http`: requests are framed, so that they can be refused."""

    def __init__(self, proxies: Proxies, *, http: bool) -> None:
        self._proxies = proxies
        self._http = http
        self.target: int | None = None
        """The server's port."""
        self.delay_s = 0.0
        """By how much each piece of an answer comes later."""
        self.refusing = False
        """Every POST is answered 503."""
        self.delayed = 0
        self.refused = 0
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        (self.port,) = free_ports(1)

    def open(self) -> None:
        """Take connections. At first it does not."""
        self._proxies.do(self._open())

    def shut(self) -> None:
        """Refuse new connections, as the port of a server that is gone does."""
        self._proxies.do(self._shut())

    def reset(self) -> int:
        """Break every connection with a TCP reset. Returns how many."""

        async def reset() -> int:
            broken = list(self._connections)
            for connection in broken:
                connection.reset()
            return len(broken)

        return self._proxies.do(reset())

    def half_open(self) -> int:
        """Every connection of now is dead from now on, and neither side hears of it. Returns how many."""

        async def half_open() -> int:
            fresh = [connection for connection in self._connections if not connection.dead]
            for connection in fresh:
                connection.dead = True
            return len(fresh)

        return self._proxies.do(half_open())

    async def close(self) -> None:
        """End every connection, and listen no more."""
        await self._shut()
        for connection in list(self._connections):
            connection.reset()

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            if self.target is None:
                raise ConnectionRefusedError
            from_server, to_server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            to_client.transport.abort()
            return
        connection = _Connection(to_client, to_server)
        self._connections.add(connection)
        asking = self._requests if self._http else self._bytes
        pumps = [
            asyncio.create_task(asking(connection, from_client, to_server, to_client)),
            asyncio.create_task(self._answers(connection, from_server, to_client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._connections.discard(connection)
            for writer in connection.writers:
                writer.close()

    async def _bytes(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        _: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if not connection.dead:
                writer.write(data)
                await writer.drain()

    async def _requests(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        """As `_bytes`, request by request; the worker never sends one before it has the last one's answer."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if connection.dead:
                    continue
                if self.refusing and head.startswith(b"POST "):
                    self.refused += 1
                    back.write(_REFUSAL)
                else:
                    writer.write(head + body)
                    await writer.drain()

    async def _answers(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_s:
                self.delayed += 1
                await asyncio.sleep(self.delay_s)
            if not connection.dead:
                writer.write(data)
                await writer.drain()
        if connection.dead:
            await asyncio.get_running_loop().create_future()  # the server gave up, and even that is not heard


class Proxies:
    """The thread. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxies", daemon=True)
        self._made: list[Proxy] = []

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, *, http: bool = False) -> Proxy:
        """A new one; `open` it when it has a target."""
        proxy = Proxy(self, http=http)
        self._made.append(proxy)
        return proxy

    def do(self, work: Coroutine[object, object, T]) -> T:
        """Run it on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_quiet(self._loop.default_exception_handler))
        self._loop.run_forever()

    async def _close(self) -> None:
        for proxy in self._made:
            await proxy.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


Handler = Callable[[dict[str, object]], None]


def _quiet(usual: Handler) -> Callable[[asyncio.AbstractEventLoop, dict[str, object]], None]:
    def handle(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if not isinstance(context.get("exception"), OSError):  # broken connections are what we are for
            usual(context)

    return handle
