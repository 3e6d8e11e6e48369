"""The proxy of the chaos suite against a small server: each way of spoiling is seen from the client's side."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.chaos.proxy import Proxies, Proxy
from tests.integration.system import eventually

REQUEST = b"POST /v2/infer HTTP/1.1\r\nInference-Header-Content-Length: 99\r\nContent-Length: 5\r\n\r\nhello"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def server() -> Iterator[int]:
    """Answers every request of REQUEST's size; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection:
            try:
                while len(connection.recv(len(REQUEST), socket.MSG_WAITALL)) == len(REQUEST):
                    connection.sendall(ANSWER)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield int(listening.getsockname()[1])
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    """An HTTP-aware proxy before the server."""
    with Proxies() as proxies:
        made = proxies.add(http=True)
        made.target = server
        made.open()
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """Connected, and answered once."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        assert ask(connection) == ANSWER
        yield connection


def ask(connection: socket.socket) -> bytes:
    connection.sendall(REQUEST)
    return connection.recv(4096)


def test_requests_and_answers_pass(client: socket.socket) -> None:
    assert ask(client) == ANSWER


def test_a_flood_is_answered_503_and_the_connection_lives_on(proxy: Proxy, client: socket.socket) -> None:
    proxy.refusing = True
    assert ask(client).startswith(b"HTTP/1.1 503 ")
    assert proxy.refused == 1
    proxy.refusing = False
    assert ask(client) == ANSWER


def test_a_reset_breaks_the_connections_of_now(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as fresh:
        assert ask(fresh) == ANSWER


def test_half_open_connections_stay_silent_and_new_ones_work(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.half_open() == 1
    assert proxy.half_open() == 0
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        ask(client)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as fresh:
        assert ask(fresh) == ANSWER


def test_delayed_answers_are_counted(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay_s = 0.05
    assert ask(client) == ANSWER
    assert proxy.delayed == 1


def test_a_shut_proxy_refuses_and_opens_again_on_its_port(proxy: Proxy) -> None:
    proxy.shut()

    def refuses() -> bool:
        try:
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually("it refuses", refuses, 10)
    proxy.open()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as fresh:
        assert ask(fresh) == ANSWER


def test_an_absent_server_ends_the_connection(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy.target = int(taken.getsockname()[1])
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as fresh:
        fresh.settimeout(10)
        with suppress(ConnectionResetError):
            assert fresh.recv(1) == b""
