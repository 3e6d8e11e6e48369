"""What is a request, what is refused, and in which words."""

import json

import pytest

from promptbus.messages import InvalidRequest, NotARequest, Request, decode_request

FULL = {
    "request_id": "r-1",
    "prompt": "What is Kafka?",
    "max_tokens": 150,
    "temperature": 0.7,
    "model": "gpt4_nano",
    "parameters": {"top_p": 0.9},
    "metadata": {"any": "object, echoed back"},
}


def decode(**fields: object) -> Request:
    return decode_request(json.dumps({"prompt": "hello", **fields}).encode())


def refused(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert type(caught.value) is InvalidRequest
    return caught.value


def test_every_field_is_read() -> None:
    assert decode_request(json.dumps(FULL).encode()) == Request(**FULL)  # type: ignore[arg-type]  # one dict of all types


def test_only_the_prompt_is_required_and_null_is_absent() -> None:
    bare = decode_request(b'{"prompt":"hello"}')
    nulls = decode_request(json.dumps({**dict.fromkeys(FULL), "prompt": "hello"}).encode())
    assert bare == nulls == Request(prompt="hello")
    assert type(bare.metadata) is dict
    assert type(bare.parameters) is dict


def test_each_request_has_dictionaries_of_its_own() -> None:
    first, second = decode_request(b'{"prompt":"a"}'), decode_request(b'{"prompt":"b"}')
    first.metadata["x"] = 1
    assert second.metadata == {}
    with pytest.raises(TypeError):
        Request(prompt="c").metadata["x"] = 1


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1},
        {"max_tokens": 2**31 - 1},
        {"temperature": 0},
        {"temperature": 2},
        {"temperature": 2.0},
        {"temperature": -0.0},
        {"request_id": "x"},
        {"request_id": "x" * 256},
        {"request_id": "é" * 128},
        {"request_id": "\U0001f600" * 64},
        {"request_id": "with\0nul"},
        {"prompt": "\0"},
        {"prompt": "x" * 100_000},
    ],
)
def test_values_at_their_limits_are_accepted(fields: dict[str, object]) -> None:
    (name,) = fields
    assert getattr(decode(**fields), name) == fields[name]


def test_a_whole_temperature_becomes_a_float() -> None:
    assert type(decode(temperature=1).temperature) is float


PROMPT = "prompt must be a string that is not empty"
ID = "request_id must be a string of 1 to 256 bytes"
TOKENS = "max_tokens must be an integer from 1 to 2147483647"
TEMPERATURE = "temperature must be a number from 0 to 2"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"prompt": ""}, PROMPT),
        ({"prompt": 5}, PROMPT),
        ({"prompt": ["hello"]}, PROMPT),
        ({"prompt": False}, PROMPT),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": -5}, "max_tokens must be at least 1"),
        ({"max_tokens": 2**31}, "max_tokens must be at most 2147483647"),
        ({"max_tokens": 2**80}, TOKENS),
        ({"max_tokens": True}, TOKENS),
        ({"max_tokens": 1.0}, TOKENS),
        ({"max_tokens": "10"}, TOKENS),
        ({"temperature": -0.1}, TEMPERATURE),
        ({"temperature": 2.0001}, TEMPERATURE),
        ({"temperature": 10**200}, TEMPERATURE),
        ({"temperature": True}, TEMPERATURE),
        ({"temperature": "1"}, TEMPERATURE),
        ({"request_id": ""}, ID),
        ({"request_id": 7}, ID),
        ({"request_id": "x" * 257}, ID),
        ({"request_id": "é" * 129}, ID),
        ({"request_id": "\U0001f600" * 65}, ID),
        ({"model": ""}, "model must be a string that is not empty"),
        ({"model": 4}, "model must be a string that is not empty"),
        ({"parameters": []}, "parameters must be an object"),
        ({"parameters": ""}, "parameters must be an object"),
        ({"parameters": 0}, "parameters must be an object"),
        ({"metadata": []}, "metadata must be an object"),
        ({"metadata": False}, "metadata must be an object"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence_about_its_field(
    fields: dict[str, object], sentence: str
) -> None:
    assert refused(**fields).message == sentence


def test_an_unknown_field_is_named() -> None:
    message = refused(max_token=5).message
    assert message.startswith('unknown field "max_token"; known are prompt, request_id, ')
    assert refused(a=1, b=2, c=3).message.startswith('unknown field "a" and 2 more; ')
    assert refused(extra=None).message.startswith('unknown field "extra"')
    assert refused(größe=1).message.startswith('unknown field "größe";')


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\x7f", "\x9b31m", "\u202eevil", "\ufeffprompt"])
def test_an_unknown_field_is_named_in_characters_that_can_be_shown(name: str) -> None:
    """DEL and C1 controls are fine in JSON, and a terminal obeys them."""
    message = refused(**{name: 1}).message
    assert message.isprintable()
    assert "\\u" in message or "\\n" in message


def test_a_long_or_odd_field_name_is_cut_and_quoted() -> None:
    message = refused(**{"n\n\x1b" + "x" * 1000: 1}).message
    assert "\n" not in message
    assert "\x1b" not in message
    assert "…" in message
    assert len(message) < 200


def test_unknown_fields_can_be_let_pass() -> None:
    assert decode_request(b'{"prompt":"a","new":{"x":1}}', ignore_unknown=True) == Request(prompt="a")


def test_the_last_of_a_duplicate_field_wins() -> None:
    assert decode_request(b'{"prompt":"a","prompt":"b"}').prompt == "b"


def test_no_sentence_echoes_the_prompt() -> None:
    secret = "my password is hunter2"
    assert "hunter2" not in refused(prompt=[secret]).message
    assert "hunter2" not in refused(prompt=secret, max_tokens=0).message
    assert "hunter2" not in refused(prompt=secret, model=secret + "x", other=secret).message
    with pytest.raises(NotARequest) as caught:
        decode_request(b'{"prompt": "my password is hunter2')
    assert "hunter2" not in str(caught.value)


def test_a_refused_request_keeps_what_its_reply_echoes() -> None:
    error = refused(request_id="r-9", metadata={"a": [1]}, max_tokens=0)
    assert (error.request_id, error.metadata) == ("r-9", {"a": [1]})
    error = refused(request_id="", metadata={"a": 1})
    assert (error.request_id, error.metadata) == (None, {"a": 1})
    error = refused(request_id="r-9", metadata=5)
    assert (error.request_id, error.metadata) == ("r-9", {})


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "no value"),
        (b"", "empty"),
        (b" ", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"prompt":"\xc3\x28"}', "UTF-8"),
        (b'{"prompt":"\xed\xa0\x80"}', "UTF-8"),
        (b'\xef\xbb\xbf{"prompt":"a"}', "byte order mark"),
        ('{"prompt":"a"}'.encode("utf-16"), "UTF-8"),
        (b'{"prompt":"a","temperature":NaN}', "not valid JSON"),
        (b'{"prompt":"a","metadata":{"x":Infinity}}', "not valid JSON"),
        (b'{"prompt":"a","metadata":{"x":-Infinity}}', "not valid JSON"),
        (b'{"prompt":"\\ud800"}', "not valid JSON"),
        (b'{"prompt":"a"} x', "not valid JSON"),
        (b'{"prompt":"a",}', "not valid JSON"),
        (b"{'prompt':'a'}", "not valid JSON"),
        (b'{"prompt":"a', "not valid JSON"),
        (b'{"prompt":"a\nb"}', "not valid JSON"),
        (b"[]", "not an object"),
        (b'"prompt"', "not an object"),
        (b"null", "not an object"),
        (b"42", "not an object"),
    ],
)
def test_what_is_no_json_object_is_not_a_request(value: bytes | None, word: str) -> None:
    with pytest.raises(NotARequest, match=word) as caught:
        decode_request(value)
    assert (caught.value.request_id, caught.value.metadata) == (None, {})


def nested(depth: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    """A request that has `depth` containers open at once, itself included."""
    inner = depth - 2
    return b'{"prompt":"a","metadata":{"m":' + opening * inner + b"1" + closing * inner + b"}}"


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_512_levels_are_a_request_and_513_are_not(opening: bytes, closing: bytes) -> None:
    assert decode_request(nested(512, opening, closing)).prompt == "a"
    for depth in (513, 1024, 1025, 100_000):
        with pytest.raises(NotARequest, match="512 levels"):
            decode_request(nested(depth, opening, closing))


def test_brackets_in_a_string_are_no_nesting() -> None:
    assert decode(prompt="[{" * 5000).prompt == "[{" * 5000
    assert decode(metadata={"wide": [[]] * 5000}).prompt == "hello"


def test_a_depth_bomb_in_the_metadata_is_not_a_request() -> None:
    with pytest.raises(NotARequest):
        decode_request(b'{"prompt":"a","metadata":' + b'{"a":[' * 300_000)
