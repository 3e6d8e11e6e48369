"""What stands before a Triton in production: TLS, and a key that it asks for. Passes everything else on."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any

from stack.ports import HOST

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length"}


class Gateway(ThreadingHTTPServer):
    """On a free port of 127.0.0.1. `certificate`: PEM, key and chain; None: no TLS."""

    daemon_threads = True

    def __init__(self, triton_url: str, certificate: Path | None) -> None:
        super().__init__((HOST, 0), _Handler)
        self.triton_url = triton_url
        self.refusal: tuple[int, bytes] | None = None
        """Status and body of every answer, instead of Triton's."""
        self.headers: list[dict[str, str]] = []
        """Of every request."""
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"{HOST}:{self.server_address[1]}"

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake is the handler's, in a thread of its own.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that do not trust us, or hang up: that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Gateway

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.refusal is not None:
            status, content = self.server.refusal
            self._answer(status, {"content-type": "application/json"}, content)
            return
        triton = http.client.HTTPConnection(self.server.triton_url, timeout=60)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP_BY_HOP}
            triton.request(self.command, self.path, body, headers)
            answer = triton.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            triton.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content)


@contextmanager
def gateway(triton_url: str, certificate: Path | None) -> Iterator[Gateway]:
    """One that serves until the block ends."""
    made = Gateway(triton_url, certificate)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join(10)
