"""`promptbus ask --direct` against a scripted Triton."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest

from stack.ports import free_ports
from tests.unit.cli.commands import promptbus
from tests.unit.client.place import environment_for, settings_for


class ScriptedTriton(ThreadingHTTPServer):
    """Answers every POST with `status` and `body`, after `silence` is over; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, orjson.dumps(ANSWER)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.silence = threading.Event()
        self.silence.set()


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedTriton

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        self.server.silence.wait(20)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def output(name: str, datatype: str, value: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [1, 1], "data": [value]}


ANSWER = {
    "model_name": "gpt4_nano",
    "model_version": "1",
    "outputs": [
        output("response", "BYTES", "Kafka is ä log."),
        output("tokens_used", "INT32", 9),
        output("prompt_tokens", "INT32", 4),
        output("completion_tokens", "INT32", 5),
    ],
}


@pytest.fixture
def triton() -> Iterator[ScriptedTriton]:
    server = ScriptedTriton()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.silence.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environment(triton: ScriptedTriton) -> dict[str, str]:
    """No Kafka anywhere, and a proxy that is dead."""
    (dead,) = free_ports(1)
    proxy = f"http://127.0.0.1:{dead}"
    return environment_for(settings_for(f"127.0.0.1:{dead}")) | {
        "TRITON_URL": f"127.0.0.1:{triton.server_port}",
        "HTTP_PROXY": proxy,
        "http_proxy": proxy,
        "NO_PROXY": "",
        "no_proxy": "",
    }


def test_direct_asks_triton_without_kafka_or_proxy(
    triton: ScriptedTriton, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(
        ["ask", "--direct", "-v", "What is Kafka?", "--max-tokens", "5", "--temperature", "0"],
        environment
        | {"TRITON_MODEL_VERSION": "3", "TRITON_API_KEY": "secret", "TRITON_HEADERS__X_TENANT": "t"},
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "Kafka is ä log.\n".encode())
    assert b"4 + 5 = 9 tokens" in done.stderr
    ((path, headers, body),) = triton.requests
    assert path == "/v2/models/gpt4_nano/versions/3/infer"
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer secret", "t")
    assert orjson.loads(body) == {
        "inputs": [
            output("prompt", "BYTES", "What is Kafka?"),
            output("max_tokens", "INT32", 5),
            output("temperature", "FP32", 0.0),
        ]
    }


def test_direct_json(triton: ScriptedTriton, environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["ask", "--direct", "--json", "--model", "other", "x"], environment, tmp_path)
    answer = orjson.loads(done.stdout)
    assert (answer["response"], answer["total_tokens"], answer["finish_reason"]) == (
        "Kafka is ä log.",
        9,
        None,
    )
    assert triton.requests[0][0] == "/v2/models/other/infer"


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b'{"error": "Request for unknown model"}', b"Triton answered 404: Request for unknown model"),
        (500, b"<html>broken</html>", b"Triton answered 500"),
        (200, b"{}", b"no usable output"),
        (200, b"not json", b"no usable output"),
        (200, b'{"outputs": [{"name": "response", "data": []}]}', b"no usable output"),
    ],
)
def test_what_triton_refuses_is_1(
    status: int, body: bytes, says: bytes, triton: ScriptedTriton, environment: dict[str, str], tmp_path: Path
) -> None:
    triton.status, triton.body = status, body
    done = promptbus(["ask", "--direct", "x"], environment, tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert says in done.stderr


def test_triton_that_is_not_there_is_3(environment: dict[str, str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    done = promptbus(
        ["ask", "--direct", "x"], environment | {"TRITON_URL": f"http://127.0.0.1:{port}"}, tmp_path
    )
    assert done.returncode == 3
    assert b"cannot be reached" in done.stderr
    assert b"TRITON_URL" in done.stderr


def test_triton_that_is_silent_is_3(
    triton: ScriptedTriton, environment: dict[str, str], tmp_path: Path
) -> None:
    triton.silence.clear()
    done = promptbus(["ask", "--direct", "x", "--timeout", "0.3"], environment, tmp_path)
    assert done.returncode == 3
    assert b"within 0.3 s" in done.stderr


def test_a_url_that_is_none_is_3(environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["ask", "--direct", "x"], environment | {"TRITON_URL": "ftp://elsewhere"}, tmp_path)
    assert done.returncode == 3
    assert b"it must be host:port" in done.stderr
