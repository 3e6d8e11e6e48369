"""Requests from a JSON Lines file, one at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from promptbus.messages import InvalidRequest, decode_request

LINE_BYTES = 16 << 20


class RequestLine(NamedTuple):
    """One line to send, as it is. `request_id` is the one it names itself, if any."""

    number: int
    value: bytes
    request_id: str | None


class BadLine(Exception):
    """A line that is no request. `number` counts from 1."""

    def __init__(self, name: str, number: int, reason: str) -> None:
        super().__init__(f"{name}:{number}: {reason}")
        self.number = number


def read_requests(
    file: BinaryIO, name: str, *, raw: bool = False, on_invalid: Callable[[BadLine], None]
) -> Iterator[RequestLine]:
    """The lines of `file` that are requests; blank lines are passed over.

    `on_invalid` is told of every other line and may raise to stop. With `raw` every line is taken, checked only for
    its length.
    """
    number = 0
    while line := file.readline(LINE_BYTES + 2):
        number += 1
        value = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(value) > LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(LINE_BYTES)
            on_invalid(BadLine(name, number, f"the line is longer than {LINE_BYTES:,} bytes"))
            continue
        if not value.strip():
            continue
        try:
            request_id = decode_request(value).request_id
        except InvalidRequest as problem:
            if not raw:
                on_invalid(BadLine(name, number, problem.message))
                continue
            request_id = problem.request_id
        yield RequestLine(number, value, request_id)
