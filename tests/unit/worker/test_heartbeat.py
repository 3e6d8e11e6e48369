"""The line of JSON between a worker process and its supervisor."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker.heartbeat import Heartbeat, HeartbeatWriter, decode_lines

heartbeats = st.builds(
    Heartbeat,
    ready=st.booleans(),
    poll_age_s=st.floats(0, 1e6),
    stopping=st.none() | st.text(max_size=300),
    waiting_for=st.none() | st.text(max_size=300),
)


@given(st.lists(heartbeats, max_size=5), st.integers(1, 50))
def test_what_was_written_is_read_however_the_pipe_cuts_it(sent: list[Heartbeat], size: int) -> None:
    stream = b"".join(h.encode() for h in sent)
    buffer = bytearray()
    read: list[Heartbeat] = []
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        read += decode_lines(buffer)
    assert read == sent
    assert not buffer


def test_every_member_arrives() -> None:
    sent = Heartbeat(True, 1.5, stopping="why", waiting_for="what", oldest_call_s=2.5)
    assert decode_lines(bytearray(sent.encode())) == [sent]


@given(st.binary(max_size=200))
def test_garbage_never_raises_and_never_hides_the_next_heartbeat(garbage: bytes) -> None:
    good = Heartbeat(ready=True, poll_age_s=0.1)
    assert decode_lines(bytearray(garbage + b"\n" + good.encode()))[-1] == good


@given(st.text(st.characters(), min_size=1000, max_size=1100))
def test_a_line_always_fits_one_atomic_write(text: str) -> None:
    line = Heartbeat(ready=False, poll_age_s=0.0, stopping=text, waiting_for="\x01" * 4000).encode()
    assert len(line) <= 4096
    assert line.count(b"\n") == 1


def test_a_lone_surrogate_from_an_error_text_does_not_lose_the_line() -> None:
    (read,) = decode_lines(bytearray(Heartbeat(ready=False, poll_age_s=0, stopping="file \udcff").encode()))
    assert read.stopping == "file ?"


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    buffer = bytearray(b"x" * 100_000)
    assert decode_lines(buffer) == []
    assert not buffer


def test_writing_to_a_full_pipe_does_not_block() -> None:
    reader, writer_fd = os.pipe()
    writer = HeartbeatWriter(writer_fd)
    heartbeat = Heartbeat(ready=True, poll_age_s=0.0, waiting_for="x" * 300)
    for _ in range(100_000):
        if not writer.write(heartbeat):
            break
    else:
        pytest.fail("the pipe never filled")
    os.close(reader)
    assert not writer.write(heartbeat), "a supervisor that is gone is no error either"
    writer.close()


def test_outside_of_a_supervisor_the_writer_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTBUS_HEARTBEAT_FD", raising=False)
    with pytest.raises(RuntimeError, match="promptbus worker"):
        HeartbeatWriter.from_environment()
