"""The port of `/metrics`, `/live` and `/ready`: standard library only, bounded, and never in the workers' way."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Self, cast

from prometheus_client.exposition import choose_encoder

from promptbus_worker.exposition import registry_of
from promptbus_worker.health import View, not_live, not_ready

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 32


class HealthServer(ThreadingMixIn, TCPServer):
    """Listens as soon as it is made; answers once `serve` was called. A context manager."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, host: str, port: int) -> None:
        """`port` 0: a free one. Raises OSError when it cannot listen there."""
        # TCPServer, not HTTPServer: that one looks up the machine's name, which takes seconds where DNS is ill.
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._thread: threading.Thread | None = None
        self.view: Callable[[], View] | None = None
        self.metrics_dir = Path()
        super().__init__(cast("tuple[str, int]", address), _Handler)

    @property
    def port(self) -> int:
        """The port it really listens on."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """`host:port`, with brackets around IPv6."""
        host = str(self.server_address[0])
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def serve(self, view: Callable[[], View], metrics_dir: Path) -> None:
        """Answer from now on, in a thread of its own."""
        self.view = view
        self.metrics_dir = metrics_dir
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread per connection, but never more than a fixed number: the rest is turned away."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the room back when the connection is done."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error; anything else is ours."""
        if isinstance(sys.exception(), ConnectionError | TimeoutError):
            return
        log.exception("a metrics or health request failed")

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()

    def __enter__(self) -> Self:
        return self


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_TIMEOUT_S
    server_version = "promptbus"
    sys_version = ""
    server: HealthServer

    def do_GET(self) -> None:
        view = self.server.view
        if view is None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "starting\n")
            return
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                body = encode(registry_of(self.server.metrics_dir, view()))
                self._answer(HTTPStatus.OK, body, content_type)
            case "/live":
                self._answer_health(not_live(view(), time.monotonic()))
            case "/ready":
                self._answer_health(not_ready(view(), time.monotonic()))
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "there are /metrics, /live and /ready\n")

    do_HEAD = do_GET

    def _answer_health(self, problems: list[str]) -> None:
        if problems:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{problem}\n" for problem in problems))
        else:
            self._answer(HTTPStatus.OK, "ok\n")

    def _answer(
        self, status: HTTPStatus, body: str | bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
