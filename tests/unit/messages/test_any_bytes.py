"""Any bytes decode to a request or are refused: there is no third way. (test_fuzz.py throws more, faster.)"""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptbus.messages import (
    InvalidReply,
    InvalidRequest,
    Reply,
    Request,
    decode_reply,
    decode_request,
    read_request_headers,
)

SEEDS = [
    b'{"request_id":"r-1","prompt":"What is Kafka?","max_tokens":150,"temperature":0.7,"model":"m",'
    b'"parameters":{"top_p":0.9},"metadata":{"any":["object",1,-2.5e3,null,true]}}',
    '{"prompt":"é😀","metadata":{"n":1e400,"m":123456789012345678901234567890,"s":"\\"}{"}}'.encode(),
    b'{"prompt":"a","metadata":' + b'{"a":[' * 200 + b"]}" * 200 + b"}",
    b'{"request_id":"r","reply_id":"i","status":"ok","response":"x","usage":{"total_tokens":1},"metadata":{},'
    b'"timings":{"queue_ms":1.5,"inference_ms":2,"total_ms":3},"attempts":1}',
    b'{"request_id":"r","reply_id":"i","status":"error","error":{"code":"expired","message":"m","retryable":true}}',
]
PIECES = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"1e400",
    b"9" * 25,
    b"NaN",
    b"null",
    b"\xff",
    b"\xed\xa0\x80",
]
PIECES += [
    b"\\ud800",
    b"\0",
    b"\xef\xbb\xbf",
    b'{"a":' * 600,
    b"[" * 600,
    b"-",
    b"true",
    b'"metadata":',
    b'"prompt":',
]


def decodes_or_refuses(value: bytes) -> bool:
    try:
        request = decode_request(value, ignore_unknown=len(value) % 2 == 0)
    except InvalidRequest as error:
        refusal = error
    else:
        assert isinstance(request, Request)
        assert isinstance(request.prompt, str)
        return True
    assert 0 < len(refusal.message) < 300
    assert isinstance(refusal.metadata, dict)
    return False


def reads_or_refuses(value: bytes) -> None:
    try:
        reply = decode_reply(value)
    except InvalidReply:
        return
    assert isinstance(reply, Reply)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES + SEEDS), max_size=12).map(b"".join))
@example(b'{"prompt":"a","metadata":' * 100_000)
@example(b'{"a":"' + b"\\" * 1_000_001)
def test_arbitrary_bytes(value: bytes) -> None:
    decodes_or_refuses(value)
    reads_or_refuses(value)


names = st.sampled_from(
    ["request-id", "deadline", "reply-topic", "correlation-id", "traceparent", "tracestate", "x"]
)


@settings(max_examples=300)
@given(st.none() | st.lists(st.tuples(names | st.text(), st.none() | st.binary(max_size=80)), max_size=8))
def test_arbitrary_headers(headers: list[tuple[str, bytes | None]] | None) -> None:
    found = read_request_headers(headers)
    assert found.problem is None or found.problem.startswith("the header ")
