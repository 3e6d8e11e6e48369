"""Replies as the worker writes them and the client reads them."""

import json

import pytest

from promptbus.messages import (
    ErrorCode,
    InvalidReply,
    Reply,
    ReplyError,
    Timings,
    Usage,
    decode_reply,
    encode_answer,
    encode_error,
)

TIMINGS = Timings(1.2, 8.4, 11.0)


def answer(response: str = "Kafka is …", timings: Timings = TIMINGS) -> bytes:
    return encode_answer(
        request_id="r-1",
        reply_id="i-1",
        response=response,
        finish_reason="stop",
        usage=Usage(5, 42, 47),
        model="gpt4_nano",
        model_version="1",
        metadata={"a": 1},
        timings=timings,
        attempts=1,
    )


def error(code: ErrorCode = ErrorCode.INVALID_REQUEST, model: str | None = None) -> bytes:
    return encode_error(
        request_id="r-2",
        reply_id="i-2",
        code=code,
        message="max_tokens must be at least 1",
        metadata={},
        model=model,
        timings=Timings(0.0, 0.0, 2.0),
        attempts=0,
    )


def test_an_answer_on_the_wire() -> None:
    assert json.loads(answer()) == {
        "request_id": "r-1",
        "reply_id": "i-1",
        "status": "ok",
        "response": "Kafka is …",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "completion_tokens": 42, "total_tokens": 47},
        "model": "gpt4_nano",
        "model_version": "1",
        "metadata": {"a": 1},
        "timings": {"queue_ms": 1.2, "inference_ms": 8.4, "total_ms": 11.0},
        "attempts": 1,
    }


def test_an_error_on_the_wire() -> None:
    assert json.loads(error()) == {
        "request_id": "r-2",
        "reply_id": "i-2",
        "status": "error",
        "error": {"code": "invalid_request", "message": "max_tokens must be at least 1", "retryable": False},
        "model": None,
        "metadata": {},
        "timings": {"queue_ms": 0.0, "inference_ms": 0.0, "total_ms": 2.0},
        "attempts": 0,
    }


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_says_whether_to_try_again(code: ErrorCode) -> None:
    reply = decode_reply(error(code, "m"))
    assert reply.error == ReplyError(code.value, "max_tokens must be at least 1", code.retryable)
    assert (reply.ok, reply.response, reply.model) == (False, None, "m")


def test_an_answer_read_back() -> None:
    assert decode_reply(answer("with\0nul 😀")) == Reply(
        request_id="r-1",
        reply_id="i-1",
        status="ok",
        response="with\0nul 😀",
        error=None,
        finish_reason="stop",
        usage=Usage(5, 42, 47),
        model="gpt4_nano",
        model_version="1",
        metadata={"a": 1},
        timings=Timings(1.2, 8.4, 11.0),
        attempts=1,
    )
    assert decode_reply(answer("")).ok


def test_timings_are_rounded_and_never_negative() -> None:
    timings = decode_reply(answer(timings=Timings(-5.0, 1.23456, float("nan")))).timings
    assert timings == Timings(0.0, 1.235, 0.0)


MINIMAL = {"request_id": "r", "reply_id": "i", "status": "ok", "response": "x"}


def test_readers_ignore_unknown_fields_and_do_without_what_is_left_out() -> None:
    reply = decode_reply(json.dumps({**MINIMAL, "new": {"field": 1}}).encode())
    assert reply.usage == Usage(None, None, None)
    assert reply.timings == Timings(0.0, 0.0, 0.0)
    assert (reply.metadata, reply.attempts, reply.model) == ({}, 0, None)


def test_a_code_of_a_newer_worker_is_readable() -> None:
    body = {
        **MINIMAL,
        "status": "error",
        "error": {"code": "new_code", "message": "m", "retryable": True, "x": 1},
    }
    found = decode_reply(json.dumps(body).encode()).error
    assert found is not None
    assert found.code == "new_code"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"request_id": None}, "request_id is missing"),
        ({"reply_id": 5}, "reply_id must be of type str"),
        ({"status": "done"}, "status must be"),
        ({"status": None}, "status must be"),
        ({"response": None}, "response is missing"),
        ({"status": "error"}, "error is missing"),
        ({"status": "error", "error": {}}, "code is missing"),
        ({"status": "error", "error": {"code": "c", "message": "m", "retryable": 1}}, "retryable must be"),
        ({"usage": []}, "usage must be"),
        ({"usage": {"total_tokens": True}}, "total_tokens must be"),
        ({"timings": {"queue_ms": "1"}}, "queue_ms must be"),
        ({"metadata": "x"}, "metadata must be"),
        ({"attempts": 1.5}, "attempts must be"),
    ],
)
def test_what_a_reader_needs_must_be_right(change: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidReply, match=word):
        decode_reply(json.dumps({**MINIMAL, **change}).encode())


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_not_a_reply(value: bytes | None) -> None:
    with pytest.raises(InvalidReply, match="the message"):
        decode_reply(value)
