"""The small parts behind the commands."""

from __future__ import annotations

import io
from importlib.util import find_spec

import pytest

from promptbus.commands import worker_extra
from promptbus.commands.tail import as_line
from promptbus.messages import Reply, ReplyError, Timings, Usage
from promptbus.plain_http import is_loopback
from promptbus.printable import on_one_line, printable
from promptbus.request_lines import LINE_BYTES, BadLine, RequestLine, read_requests


def test_lines_keep_their_numbers_and_bytes() -> None:
    file = io.BytesIO(b'{"prompt": "a"}\r\n\n  \n{"prompt": "b", "request_id": "r"}')
    assert list(read_requests(file, "f", on_invalid=_never)) == [
        RequestLine(1, b'{"prompt": "a"}', None),
        RequestLine(4, b'{"prompt": "b", "request_id": "r"}', "r"),
    ]


def test_a_line_that_is_too_long_is_passed_over_without_being_kept() -> None:
    long = b'{"prompt": "' + b"x" * 2 * LINE_BYTES + b'"}\n'
    told: list[str] = []
    file = io.BytesIO(long + b'{"prompt": "b"}\n' + long)
    lines = list(read_requests(file, "f", on_invalid=lambda bad: told.append(str(bad))))
    assert [line.number for line in lines] == [2]
    assert told == [f"f:{number}: the line is longer than 16,777,216 bytes" for number in (1, 3)]


def test_a_line_of_exactly_the_limit_is_read() -> None:
    value = b'{"prompt": "' + b"x" * (LINE_BYTES - 14) + b'"}'
    assert len(value) == LINE_BYTES
    for end in (b"", b"\n", b"\r\n"):
        (line,) = read_requests(io.BytesIO(value + end), "f", on_invalid=_never)
        assert line.value == value


def test_raw_lines_are_taken_whatever_they_are() -> None:
    file = io.BytesIO(b'nonsense\n{"prompt": 1, "request_id": "r"}\n')
    lines = read_requests(file, "f", raw=True, on_invalid=_never)
    assert [line.request_id for line in lines] == [None, "r"]


def test_a_models_text_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07\tb\nc\x9b2J\u202e") == "a\ufffd]0;title\ufffd\tb\nc\ufffd2J\ufffd"
    assert on_one_line("a\n\tb\x1b  c", 20) == "a b\ufffd c"
    assert on_one_line("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("error", [None, ReplyError("expired", "too\nlate", True)])
def test_a_followed_reply_fits_the_terminal(error: ReplyError | None) -> None:
    reply = Reply(
        request_id="r" * 100,
        reply_id="x",
        status="ok" if error is None else "error",
        response="long " * 100 if error is None else None,
        error=error,
        finish_reason=None,
        usage=Usage(None, None, 12),
        model=None,
        model_version=None,
        metadata={},
        timings=Timings(1, 2, 1234.5),
        attempts=1,
    )
    line = as_line(reply, 0, 100)
    assert len(line) <= 100
    assert "\n" not in line
    assert ("expired: too late" in line) == (error is not None)
    assert "12 tok   1,234 ms" in line


def test_a_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        worker_extra, "find_spec", lambda name: None if name == "tritonclient" else find_spec(name)
    )
    assert worker_extra.missing_extra("worker")
    assert capsys.readouterr().err == (
        "promptbus: `promptbus worker` needs tritonclient: pip install 'promptbus[worker]'\n"
    )


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:8000", True),
        ("http://127.1.2.3", True),
        ("https://[::1]:8000/v2", True),
        ("http://triton:8000", False),
        ("http://10.0.0.1", False),
    ],
)
def test_what_counts_as_this_machine(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


def _never(bad: BadLine) -> None:
    raise bad
