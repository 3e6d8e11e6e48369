"""An OTLP receiver for tests: takes spans over HTTP as a collector does, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, its ids as on the wire in hexadecimal; `parent` is empty for a root."""

    name: str
    kind: int
    trace: str
    span: str
    parent: str
    links: frozenset[str]
    error: bool
    attributes: Mapping[str, object]
    resource: Mapping[str, object]
    begin_ns: int
    end_ns: int


class OtlpReceiver:
    """Listens on a loopback port until it is closed. `status`: what it answers to the next exports."""

    def __init__(self) -> None:
        self.status = 200
        self.requests = 0
        self.paths: set[str] = set()
        self.spans: list[ReceivedSpan] = []
        self.json: list[bytes] = []
        """Exports in OTLP's other form, as they came: Triton's."""
        self.go_on = threading.Event()
        """While it is cleared, exports hang."""
        self.go_on.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests += 1
                receiver.paths.add(self.path)
                receiver.go_on.wait(60)
                if self.headers["content-type"] == "application/json":
                    receiver.json.append(body)
                elif receiver.status == 200:
                    packed = self.headers.get("content-encoding") == "gzip"
                    receiver.spans += _decoded(gzip.decompress(body) if packed else body)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def named(self, begin: str) -> list[ReceivedSpan]:
        """The spans whose name begins so, in the order of their beginning."""
        return sorted((s for s in self.spans if s.name.startswith(begin)), key=lambda s: s.begin_ns)

    def close(self) -> None:
        """Stop listening."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


def _decoded(body: bytes) -> list[ReceivedSpan]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        ReceivedSpan(
            name=span.name,
            kind=span.kind,
            trace=span.trace_id.hex(),
            span=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            links=frozenset(link.span_id.hex() for link in span.links),
            error=span.status.code == 2,
            attributes={each.key: _value(each.value) for each in span.attributes},
            resource={each.key: _value(each.value) for each in of_resource.resource.attributes},
            begin_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
