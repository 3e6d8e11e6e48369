"""Dead letters: what they carry, and that they always fit. Sizes are checked against a record batch of our own making."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus.messages import ErrorCode, dead_letter_headers, fit_dead_letter, message_bytes

Header = tuple[str, bytes | None]


def headers_of(original: list[Header] | None) -> list[Header]:
    return dead_letter_headers(
        original,
        code=ErrorCode.MODEL_ERROR,
        topic="inference-requests",
        partition=3,
        offset=42,
        timestamp_ms=1760000000000,
        attempts=2,
        worker="host-1234",
    )


OURS: list[Header] = [
    ("dlq-reason", b"model_error"),
    ("dlq-topic", b"inference-requests"),
    ("dlq-partition", b"3"),
    ("dlq-offset", b"42"),
    ("dlq-timestamp", b"1760000000000"),
    ("dlq-attempts", b"2"),
    ("dlq-worker", b"host-1234"),
]


def varint(number: int) -> bytes:
    """Zigzag varint, as in https://kafka.apache.org/protocol."""
    number = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while number > 0x7F:
        encoded.append((number & 0x7F) | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def batch_size(key: bytes | None, value: bytes | None, headers: list[Header]) -> int:
    """Bytes of a record batch v2 that holds one record with no deltas."""

    def field(data: bytes | None) -> bytes:
        return varint(-1) if data is None else varint(len(data)) + data

    body = b"\0" + varint(0) + varint(0) + field(key) + field(value) + varint(len(headers))
    for name, data in headers:
        body += field(name.encode()) + field(data)
    return 8 + 4 + 4 + 1 + 4 + 2 + 4 + 8 + 8 + 8 + 2 + 4 + 4 + len(varint(len(body)) + body)


def test_ours_follow_the_original_headers_which_stay_as_they_were() -> None:
    original: list[Header] = [("a", b"1"), ("a", None), ("a", b"1"), ("request-id", b"r")]
    assert headers_of(original) == original + OURS
    assert headers_of(None) == headers_of([]) == OURS


def test_headers_of_an_earlier_death_are_replaced() -> None:
    earlier: list[Header] = [
        ("dlq-reason", b"internal"),
        ("dlq-truncated", b"9"),
        ("x", b"1"),
        ("dlq-offset", None),
    ]
    assert headers_of(earlier) == [("x", b"1"), *OURS]


blobs = st.none() | st.binary(max_size=200) | st.integers(0, 20_000).map(bytes)
header_lists = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), blobs), max_size=80
)


@given(blobs, blobs, header_lists)
def test_message_bytes_is_a_close_upper_bound(
    key: bytes | None, value: bytes | None, headers: list[Header]
) -> None:
    assert 0 <= message_bytes(key, value, headers) - batch_size(key, value, headers) <= 15


@pytest.mark.parametrize("size", [0, 1, 63, 64, 8191, 8192, 2**20 - 1, 2**20, 2**21])
def test_message_bytes_at_the_steps_of_a_varint(size: int) -> None:
    value = bytes(size)
    assert 0 <= message_bytes(None, value, None) - batch_size(None, value, []) <= 15


def test_what_fits_is_left_alone() -> None:
    headers = headers_of([("a", b"1")])
    size = message_bytes(b"k", b"value", headers)
    assert fit_dead_letter(b"value", headers, key=b"k", max_bytes=size) == (b"value", headers)


def test_the_end_of_a_value_that_does_not_fit_is_cut() -> None:
    value = bytes(range(256)) * 5000
    headers = headers_of([("a", b"1")])
    cut, fitted = fit_dead_letter(value, headers, key=b"k", max_bytes=1_000_000)
    assert cut is not None
    assert value.startswith(cut)
    assert fitted == [*headers, ("dlq-truncated", b"1280000")]
    assert 1_000_000 - 16 <= message_bytes(b"k", cut, fitted) <= 1_000_000


def test_original_headers_that_do_not_fit_go_the_largest_first() -> None:
    headers = headers_of([("small", b"s"), ("huge", bytes(5000)), ("large", bytes(900))])
    cut, fitted = fit_dead_letter(b"x" * 3000, headers, key=None, max_bytes=1500)
    names = [name for name, _ in fitted]
    assert names[:2] == ["small", "large"]
    assert fitted[-2:] == [("dlq-truncated", b"3000"), ("dlq-headers-dropped", b"1")]
    assert cut
    assert message_bytes(None, cut, fitted) <= 1500


def test_a_tombstone_stays_one() -> None:
    headers = headers_of([("huge", bytes(5000))])
    value, fitted = fit_dead_letter(None, headers, key=None, max_bytes=1000)
    assert value is None
    assert fitted == [*OURS, ("dlq-headers-dropped", b"1")]


@settings(max_examples=300)
@given(blobs, header_lists, blobs, st.integers(0, 30_000))
def test_every_dead_letter_fits_or_is_reduced_to_the_least(
    value: bytes | None, original: list[Header], key: bytes | None, max_bytes: int
) -> None:
    headers = headers_of(original)
    cut, fitted = fit_dead_letter(value, headers, key=key, max_bytes=max_bytes)
    least = [header for header in fitted if header[0].startswith("dlq-")]
    assert message_bytes(key, cut, fitted) <= max_bytes or (not cut and fitted == least)
    assert [header for header in fitted if header in OURS] == [*OURS]
    assert (cut == value) or ("dlq-truncated", str(len(value or b"")).encode()) in fitted
