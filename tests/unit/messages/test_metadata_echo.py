"""Metadata comes back exactly as it was sent, whatever JSON it is."""

import json
import sys
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus.messages import (
    ErrorCode,
    InvalidRequest,
    Json,
    JsonObject,
    NotARequest,
    Request,
    Timings,
    Usage,
    decode_reply,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
)

TIMINGS = Timings(1.0, 2.0, 3.0)


def answer_to(value: bytes) -> bytes:
    request = decode_request(value)
    return encode_answer(
        request_id="r",
        reply_id="i",
        response="yes",
        finish_reason=None,
        usage=Usage(None, None, 3),
        model="m",
        model_version="1",
        metadata=request.metadata,
        timings=TIMINGS,
        attempts=1,
    )


def request_with(metadata: str) -> bytes:
    return f'{{"request_id":"metadata","metadata":{metadata},"prompt":"{{\\"metadata\\":"}}'.encode()


def exactly(text: str | bytes) -> object:
    """Parsed without loss: numbers by their decimal value, whatever their size."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
values: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
objects: st.SearchStrategy[JsonObject] = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), values, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(objects, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_json_comes_back_equal(metadata: JsonObject, ascii_only: bool, indent: int | str | None) -> None:
    value = request_with(json.dumps(metadata, ensure_ascii=ascii_only, indent=indent))
    reply = answer_to(value)
    assert json.loads(reply)["metadata"] == json.loads(value)["metadata"] == metadata
    assert decode_reply(reply).metadata == metadata


@settings(max_examples=100, deadline=None)
@given(objects)
def test_a_program_sends_and_receives_the_same_metadata(metadata: JsonObject) -> None:
    value = encode_request(Request(prompt="a", metadata=metadata))
    assert decode_reply(answer_to(value)).metadata == metadata


@pytest.mark.parametrize(
    "metadata",
    [
        '{"n": 18446744073709551615}',
        '{"n": 18446744073709551616}',
        '{"n": -9223372036854775808}',
        '{"n": -9223372036854775809}',
        '{"n": [{"deep": 123456789012345678901234567890}]}',
        '{"n": %s}' % ("7" * 400),
        '{"n": -%s, "m": "}"}' % ("7" * 4000),
        '{"n": 1e400}',
        '{"n": [-1E+400, 2.5e309, "1e400", "\\"1e400"]}',
        '{"n": %s.5}' % ("9" * 310),
        '{"n": 1e-400}',
        '{"n": 0.1e309}',
        '{"n": -0.0, "m": 1.0, "k": 100.0}',
        '{ "n" :\n 1e400 , "\\u006d" : "\\\\" }',
    ],
)
def test_numbers_of_any_size_come_back(metadata: str) -> None:
    reply = answer_to(request_with(metadata))
    if "1e-400" not in metadata:  # a double that underflows is zero, for every reader
        assert exactly(reply)["metadata"] == exactly(metadata)  # type: ignore[index]  # an object, or the test fails
    assert json.loads(reply)["metadata"] == json.loads(metadata)
    assert decode_reply(reply).metadata == json.loads(metadata)


@pytest.mark.parametrize("depth", [200, 252, 253, 254, 255, 300, 511])
def test_deep_metadata_comes_back(depth: int) -> None:
    metadata = '{"a":' * depth + "5" + "}" * depth
    value = f'{{"prompt":"p","metadata":{metadata}}}'.encode()
    reply = answer_to(value)
    assert metadata.encode() in reply
    received = decode_reply(reply).metadata
    assert encode_request(Request(prompt="p", metadata=received)) == value.replace(b" ", b"")


def test_deep_metadata_with_large_integers_comes_back() -> None:
    metadata = '{"a":' * 400 + "9" * 30 + "}" * 400
    assert json.loads(answer_to(request_with(metadata)))["metadata"] == json.loads(metadata)


@pytest.mark.parametrize("key", ["metadata", "met\\u0061data"])
def test_the_last_of_duplicate_metadata_is_echoed(key: str) -> None:
    value = f'{{"metadata":{{"n":1}},"prompt":"p","{key}":{{"n":{10**30}}}}}'.encode()
    assert json.loads(answer_to(value))["metadata"] == {"n": 10**30}


def test_metadata_inside_other_objects_is_not_mistaken_for_it() -> None:
    value = f'{{"metadata":{{"metadata":{{"n":{10**30}}}}},"prompt":"p","parameters":{{"metadata":{{}}}}}}'
    assert json.loads(answer_to(value.encode()))["metadata"] == {"metadata": {"n": 10**30}}


def test_a_refused_request_echoes_exactly_too() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens must be at least 1") as caught:
        decode_request(
            b'{"prompt":"p","max_tokens":0,"metadata":{"n":1e400,"m":123456789012345678901234567890}}'
        )
    reply = encode_error(
        request_id="r",
        reply_id="i",
        code=ErrorCode.INVALID_REQUEST,
        message=caught.value.message,
        metadata=caught.value.metadata,
        timings=TIMINGS,
        attempts=0,
    )
    assert b'"metadata":{"n":1e400,"m":123456789012345678901234567890}' in reply


@pytest.mark.parametrize(
    "broken",
    [
        "--1e400",
        "01e400",
        "1e400.5",
        "1e400e5",
        "1.e400",
        "1e400x",
        "+1e400",
        "1e400 1",
        "1e",
        "-",
        "1e400]",
        ".1e400",
    ],
)
def test_a_huge_number_excuses_no_malformed_json(broken: str) -> None:
    with pytest.raises(NotARequest):
        decode_request(request_with('{"n":' + broken + "}"))
    with pytest.raises(NotARequest):
        decode_request(request_with('{"huge":1e400,"n":' + broken + "}"))


def test_a_huge_number_elsewhere_is_not_a_request() -> None:
    with pytest.raises(NotARequest):
        decode_request(b'{"prompt":"p","temperature":1e400}')


def test_an_integer_too_long_for_python_is_echoed_and_its_reader_is_told() -> None:
    metadata = '{"n":%s}' % ("7" * (sys.get_int_max_str_digits() + 1))
    reply = answer_to(request_with(metadata))
    assert metadata.encode() in reply
    with pytest.raises(ValueError, match="integer that is too long"):
        decode_reply(reply)
