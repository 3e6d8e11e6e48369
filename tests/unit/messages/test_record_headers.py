"""Headers of request and reply records, and the reply id."""

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus.messages import RequestHeaders, read_request_headers, reply_headers, reply_id

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_no_headers() -> None:
    assert read_request_headers(None) == read_request_headers([]) == RequestHeaders()


def test_every_header_is_read_and_others_are_ignored() -> None:
    headers = [
        ("request-id", "é".encode()),
        ("deadline", b"1760000000000"),
        ("reply-topic", b"replies"),
        ("correlation-id", b"\xff\0"),
        ("traceparent", TRACE),
        ("tracestate", b"a=1, b@v=2"),
        ("other", b"x"),
    ]
    assert read_request_headers(headers) == RequestHeaders(
        "é", 1760000000000, "replies", b"\xff\0", TRACE, b"a=1, b@v=2", None
    )


def test_the_last_duplicate_wins_and_none_is_absent() -> None:
    assert read_request_headers([("deadline", b"x"), ("deadline", b"5")]) == RequestHeaders(deadline_ms=5)
    assert read_request_headers([("deadline", b"5"), ("deadline", None)]) == RequestHeaders()
    assert read_request_headers([("request-id", None), ("correlation-id", None)]) == RequestHeaders()


@pytest.mark.parametrize("value", [b"0", b"00012", b"9" * 19])
def test_a_deadline_is_1_to_19_decimal_digits(value: bytes) -> None:
    assert read_request_headers([("deadline", value)]).deadline_ms == int(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"1\n",
        b"1.0",
        b"1e3",
        b"1_0",
        b"0x1",
        b"9" * 20,
        "\u0661".encode(),
        b"\xff",
    ],
)
def test_a_malformed_deadline_is_a_problem(value: bytes) -> None:
    found = read_request_headers([("deadline", value), ("request-id", b"r"), ("reply-topic", b"t")])
    assert found.problem == "the header deadline must be Unix milliseconds in 1 to 19 decimal digits"
    assert (found.deadline_ms, found.request_id, found.reply_topic) == (None, "r", "t")


@pytest.mark.parametrize("value", [b"", b"\xff", b"x" * 257, "é".encode() * 129])
def test_a_malformed_request_id_is_a_problem(value: bytes) -> None:
    found = read_request_headers([("request-id", value), ("deadline", b"bad"), ("correlation-id", b"c")])
    assert found.problem == "the header request-id must be 1 to 256 bytes of UTF-8"
    assert (found.request_id, found.correlation_id) == (None, b"c")


@pytest.mark.parametrize("value", [b"", b"\xff"])
def test_a_malformed_reply_topic_is_a_problem(value: bytes) -> None:
    found = read_request_headers([("reply-topic", value)])
    assert found.problem == "the header reply-topic must be the name of a topic"
    assert found.reply_topic is None


@pytest.mark.parametrize(
    "value", [TRACE, TRACE[:-2] + b"ff", b"cc" + TRACE[2:] + b"-later", b"01" + TRACE[2:]]
)
def test_a_traceparent_is_continued(value: bytes) -> None:
    found = read_request_headers([("traceparent", value), ("tracestate", b"a=1")])
    assert (found.traceparent, found.tracestate, found.problem) == (value, b"a=1", None)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ff" + TRACE[2:],
        TRACE.upper(),
        TRACE + b"-more",
        TRACE + b"\n",
        TRACE[:-1],
        b"cc" + TRACE[2:] + b"more",
        b"00-" + b"0" * 32 + TRACE[35:],
        TRACE[:36] + b"0" * 16 + b"-01",
        TRACE.replace(b"-", b"_"),
    ],
)
def test_a_malformed_traceparent_is_ignored_with_its_tracestate(value: bytes) -> None:
    assert read_request_headers([("traceparent", value), ("tracestate", b"a=1")]) == RequestHeaders()


@pytest.mark.parametrize("value", [b"a", b"A=1", b"a=b=c", b"a=\xff", b",".join([b"a=1"] * 33)])
def test_a_malformed_tracestate_is_ignored_alone(value: bytes) -> None:
    found = read_request_headers([("traceparent", TRACE), ("tracestate", value)])
    assert (found.traceparent, found.tracestate, found.problem) == (TRACE, None, None)


def test_reply_headers_echo_what_was_given() -> None:
    assert reply_headers(request_id="é", reply_id="i", status="ok") == [
        ("request-id", "é".encode()),
        ("reply-id", b"i"),
        ("status", b"ok"),
    ]
    full = reply_headers(
        request_id="r",
        reply_id="i",
        status="error",
        correlation_id=b"\xff",
        traceparent=TRACE,
        tracestate=b"a=1",
    )
    assert full[2:] == [
        ("status", b"error"),
        ("correlation-id", b"\xff"),
        ("traceparent", TRACE),
        ("tracestate", b"a=1"),
    ]
    assert len(reply_headers(request_id="r", reply_id="i", status="ok", tracestate=b"a=1")) == 3


def test_the_reply_id_is_its_documented_formula() -> None:
    expected = blake2b(b"3:42:1760000000000:inference-requests", digest_size=16).hexdigest()
    assert (
        reply_id("inference-requests", 3, 42, 1760000000000) == expected == "710b49c55c43c5c3f47a88b3933dbd08"
    )
    assert len(expected) == 32


records = st.tuples(st.text(), st.integers(0, 2**31), st.integers(0, 2**63), st.integers(-1, 2**63))


@given(records, records)
def test_different_records_have_different_reply_ids(
    one: tuple[str, int, int, int], other: tuple[str, int, int, int]
) -> None:
    assert (reply_id(*one) == reply_id(*other)) == (one == other)


def test_numbers_and_topics_that_look_alike_are_told_apart() -> None:
    ids = {
        reply_id("t", 1, 23, 4),
        reply_id("t", 12, 3, 4),
        reply_id("4:t", 1, 2, 3),
        reply_id("t", 1, 2, 34),
    }
    assert len(ids) == 4
