"""Runs of settled offsets survive the way through a commit's metadata; whatever else stands there means nothing."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker.commit_metadata import MAX_CHARS, Runs, decode, encode

OFFSETS = st.integers(0, 2**62)
STEPS = st.lists(st.integers(1, 2**20), max_size=80)


def runs_of(watermark: int, steps: list[int]) -> Runs:
    """Gap, length, gap, length, … from the watermark on."""
    ends = list(accumulate(steps, initial=watermark))
    return list(zip(ends[1::2], ends[2::2], strict=False))


@given(OFFSETS, STEPS)
def test_what_was_written_is_read(watermark: int, steps: list[int]) -> None:
    runs = runs_of(watermark, steps)
    assert decode(watermark, encode(watermark, runs)) == runs


def test_a_run_may_begin_at_the_committed_offset_itself() -> None:
    assert decode(7, encode(7, [(7, 9)])) == [(7, 9)]


def test_nothing_settled_is_no_metadata() -> None:
    assert encode(7, []) == ""
    assert decode(7, "") == decode(7, None) == []


def test_a_hundred_thousand_behind_one_are_a_dozen_characters() -> None:
    assert len(encode(5_000_000, [(5_000_001, 5_100_001)])) <= 12


@given(OFFSETS, st.integers(1, 2**20), st.integers(1, 2**20))
def test_the_farthest_runs_are_dropped_when_it_gets_too_long(watermark: int, gap: int, length: int) -> None:
    runs = runs_of(watermark, [gap, length] * 2_000)
    text = encode(watermark, runs)
    assert text.isascii()
    assert len(text) <= MAX_CHARS, "a broker refuses 4,096, and with it the commit"
    kept = decode(watermark, text)
    assert kept == runs[: len(kept)]
    assert len(kept) >= 400


@given(st.text() | st.from_regex(r"pb1:[A-Za-z0-9_=-]*", fullmatch=True))
def test_any_text_is_runs_in_order_or_nothing(text: str) -> None:
    previous = 100
    for number, (first, end) in enumerate(decode(100, text)):
        assert first > previous or (number == 0 and first == previous)
        assert end > first
        previous = end


def body(*data: int) -> str:
    return "pb1:" + urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "offset 12 by hand",
        "pb2:AQE",
        "PB1:AQE",
        "pb1:",
        "pb1:A",
        "pb1:\u00e4",
        body(1),
        body(1, 1, 1),
        body(1, 0),
        body(1, 1, 0, 1),
        body(1, 0x80),
        body(1, *[0xFF] * 10, 1),
    ],
    ids=[
        "foreign",
        "another version",
        "another case",
        "empty",
        "no base64",
        "not ASCII",
        "a gap without a length",
        "a second gap without a length",
        "an empty run",
        "runs that touch",
        "a number cut off",
        "a number that is no offset",
    ],
)
def test_other_text_says_nothing(text: str) -> None:
    assert decode(100, text) == []


def test_the_text_is_what_it_is_said_to_be() -> None:
    """The format is read by the next version too: gap 3, length 300 in unsigned LEB128, base64url without padding."""
    assert encode(10, [(13, 313)]) == "pb1:A6wC"
