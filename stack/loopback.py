"""Questions to servers on this machine. `http.client` and plain sockets know no proxies, and that is wanted."""

import http.client
import json
import socket
import struct
from dataclasses import dataclass

from stack.ports import HOST

API_METADATA = 3


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


def http_get(port: int, path: str, timeout_s: float = 2.0) -> Answer | None:
    """GET http://127.0.0.1:port/path; None while nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def kafka_brokers(port: int, timeout_s: float = 2.0) -> set[int]:
    """The ids of the brokers that are alive, asked of one of them (Metadata request, version 1, no topics).

    Empty while it does not answer. A fenced broker is not in the answer, so this says more than an open port.
    Layout: the protocol guide's Metadata API; strings have a 16-bit length, arrays a 32-bit one.
    """
    client = b"promptbus-stack"
    head = struct.pack(">hhih", API_METADATA, 1, 1, len(client)) + client
    body = head + struct.pack(">i", 0)
    try:
        with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            with connection.makefile("rb") as stream:
                (size,) = struct.unpack(">i", stream.read(4))
                reply = stream.read(size)
        return _broker_ids(reply)
    except (OSError, struct.error):
        return set()


def _broker_ids(reply: bytes) -> set[int]:
    _correlation, count = struct.unpack_from(">ii", reply)
    at, found = 8, set()
    for _ in range(count):
        (node,) = struct.unpack_from(">i", reply, at)
        found.add(node)
        at = _skip_string(reply, at + 4) + 4  # host, then a 32-bit port
        at = _skip_string(reply, at)  # rack
    return found


def _skip_string(data: bytes, at: int) -> int:
    length = int.from_bytes(data[at : at + 2], "big", signed=True)
    return at + 2 + max(0, length)  # -1 is null
