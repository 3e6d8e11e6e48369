"""Requests as a sender writes them."""

from typing import cast

import pytest

from promptbus.messages import InvalidRequest, Json, JsonObject, Request, decode_request, encode_request


def test_what_is_not_given_is_left_out() -> None:
    assert encode_request(Request(prompt="hé")) == '{"prompt":"hé"}'.encode()


def test_a_full_request_is_read_back_equal() -> None:
    request = Request("p", "r", 5, 0.0, "m", {"top_p": 0.9}, {"n": 2**70, "t": "null"})
    # The worker sees large integers as floats and echoes them as text: equal up to the metadata.
    assert decode_request(encode_request(request))[:-1] == request[:-1]
    assert b"1180591620717411303424" in encode_request(request)


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt=""),
        Request(prompt="a", max_tokens=0),
        Request(prompt="a", temperature=float("nan")),
        Request(prompt="a", temperature=3),
        Request(prompt="a", request_id="x" * 257),
        Request(prompt="lone \ud800 surrogate"),
        Request(prompt="a", metadata={"lone": "\udfff"}),
        Request(prompt="a", metadata={"big": 2**70, "lone": "\udfff"}),
    ],
)
def test_what_a_worker_would_refuse_is_refused_at_once(request_: Request) -> None:
    with pytest.raises(InvalidRequest):
        encode_request(request_)


def cyclic() -> Json:
    inner: list[Json] = []
    inner.extend([inner, inner])
    return inner


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (float("nan"), "NaN"),
        ([{"x": float("inf")}], "NaN"),
        (cast(Json, {1: "x"}), "keys"),
        (cast(Json, {"deep": [{None: 1}]}), "keys"),
        (cast(Json, b"bytes"), "bytes"),
        (cast(Json, object()), "object"),
        (cast(Json, {1, 2}), "set"),
        (cyclic(), "512 levels"),
    ],
)
@pytest.mark.parametrize("field", ["parameters", "metadata"])
def test_what_json_cannot_hold_is_not_changed_into_something_else(field: str, value: Json, word: str) -> None:
    held: JsonObject = {"v": value, "n": 2**70}
    request = Request(prompt="a")
    request = request._replace(parameters=held) if field == "parameters" else request._replace(metadata=held)
    with pytest.raises(InvalidRequest, match=word):
        encode_request(request)
