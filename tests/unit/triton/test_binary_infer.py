"""Requests and answers in Triton's binary format: the same as tritonclient's, and safe with any bytes."""

import json
import random
import re

import pytest

from promptbus_worker.binary_infer import RESERVED_HEADERS, BinaryCalls, read_answer
from promptbus_worker.http_protocol import Answer, Pool, Reading
from promptbus_worker.model import BadRow, Inputs, ModelSpec, Row, TensorSpec, TensorValue
from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.tensors import encode
from promptbus_worker.triton import Transport, TritonClient
from tests.unit.triton import faults
from tests.unit.triton.contract import failed, inputs
from tests.unit.triton.scripted_triton import ScriptedTriton, answer_of, http, outputs_for

VALUES: dict[str, list[TensorValue]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP16": [0.1, -65504.0],
    "FP32": [0.7, 3],
    "FP64": [0.1, 1e300],
    "BYTES": [b"", "Gr\u00fc\u00dfe\0".encode()],
}
TOO_MUCH: dict[str, TensorValue] = {
    "INT8": 128,
    "INT32": 2**31,
    "UINT64": -1,
    "FP16": 1e6,
    "FP32": 1e39,
    "BYTES": 1,
}


def spec_of(*tensors: tuple[str, str], name: str = "m", version: str = "") -> ModelSpec:
    outputs = {n: TensorSpec(n, "BYTES", False) for n in ("response", "tokens_used", "stranger")}
    return ModelSpec(name, version, {n: TensorSpec(n, kind, True) for n, kind in tensors}, outputs, 8, 1)


def calls(headers: dict[str, str] | None = None, address: str = "host:8000") -> BinaryCalls:
    return BinaryCalls(Pool("host", 8000, size=1), address, headers or {})


def take_apart(request: bytes) -> tuple[str, dict[str, str], object, bytes]:
    """Request line, headers, JSON header, tensors."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(entry.split(": ", 1) for entry in lines)
    assert len(body) == int(headers["Content-Length"])
    size = int(headers["Inference-Header-Content-Length"])
    return line, headers, json.loads(body[:size]), body[size:]


@pytest.mark.parametrize("datatype", VALUES)
async def test_tensors_are_tritonclients(datatype: str) -> None:
    spec = spec_of(("prompt", "BYTES"), ("x", datatype))
    batch: list[Inputs] = [{"prompt": b"p" * 300, "x": value} for value in VALUES[datatype]]
    _, _, header, tensors = take_apart(calls().request(spec, batch))
    theirs = encode(spec, batch)
    assert tensors == b"".join(tensor._get_binary_data() for tensor in theirs)
    assert header == {
        "inputs": [tensor._get_tensor() for tensor in theirs],
        "outputs": [
            {"name": name, "parameters": {"binary_data": True}} for name in ("response", "tokens_used")
        ],
    }


@pytest.mark.parametrize("datatype", TOO_MUCH)
async def test_a_value_that_its_datatype_does_not_take_is_never_sent(datatype: str) -> None:
    with pytest.raises(CallError) as caught:
        await calls().infer(spec_of(("x", datatype)), [{"x": TOO_MUCH[datatype]}], None)
    assert (caught.value.failure, caught.value.status) == (CallFailure.BAD_REQUEST, None)


async def test_a_template_serves_every_batch_of_its_kind() -> None:
    inference, spec = calls(), spec_of(("prompt", "BYTES"), ("n", "INT32"))
    for prompt in (b"", b"x" * 9, b"x" * 100_000, b"%d %s"):
        for size in (1, 2, 8):
            batch: list[Inputs] = [{"prompt": prompt, "n": size}] * size
            _, _, header, tensors = take_apart(inference.request(spec, batch))
            assert isinstance(header, dict)
            sizes = [tensor["parameters"]["binary_data_size"] for tensor in header["inputs"]]
            assert sizes == [(4 + len(prompt)) * size, 4 * size]
            assert len(tensors) == sum(sizes)
    assert take_apart(inference.request(spec, [{"n": 1}]))[3] == b"\1\0\0\0"
    again = spec_of(("prompt", "BYTES"), ("n", "INT64"))  # the model was loaded anew
    assert take_apart(inference.request(again, [{"n": 1}]))[3] == b"\1\0\0\0\0\0\0\0"


async def test_many_combinations_of_inputs_do_not_pile_up() -> None:
    names = [f"i{number}" for number in range(300)]
    inference, spec = calls(), spec_of(*((name, "INT32") for name in names))
    for name in names * 2:
        assert take_apart(inference.request(spec, [{name: 1}]))[3] == b"\1\0\0\0"


async def test_awkward_names_arrive_as_they_are() -> None:
    spec = spec_of(('50% "x"\\', "BYTES"), name="a model/%s?", version="2")
    inference = calls({"x-percent": "100%d"}, "host:8000/a b%20c")
    line, headers, header, _ = take_apart(inference.request(spec, [{'50% "x"\\': b"1"}]))
    assert line == "POST /a%20b%20c/v2/models/a%20model%2F%25s%3F/versions/2/infer HTTP/1.1"
    assert headers["Host"] == "host:8000"
    assert headers["x-percent"] == "100%d"
    assert isinstance(header, dict)
    assert header["inputs"][0]["name"] == '50% "x"\\'


async def test_an_international_host_is_named_as_it_is_looked_up() -> None:
    line = calls(address="b\u00fccher.example:80").request(spec_of(("n", "INT8")), [{"n": 1}])
    assert b"\r\nHost: xn--bcher-kva.example:80\r\n" in line


def test_whatever_a_200_holds_it_is_rows_or_a_call_error() -> None:
    chance = random.Random(11)
    answer = Reading().feed(answer_of(outputs_for([b"one", b"two", b"three"])))
    assert answer is not None
    for _ in range(5000):
        body = bytearray(answer.body)
        for _ in range(chance.randrange(1, 5)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        outcome: list[Row | BadRow] | CallFailure
        try:
            outcome = read_answer(answer._replace(body=bytes(body)), 3)[1]
        except CallError as error:
            outcome = error.failure
        if isinstance(outcome, list):
            assert [isinstance(row, Row | BadRow) for row in outcome] == [True] * 3
        else:
            assert outcome in (CallFailure.BAD_OUTPUT, CallFailure.CONNECTION)


@pytest.mark.parametrize("length", [b"-5", b"999999", b"five", b"9" * 5000])
def test_a_header_length_that_cannot_be_is_a_bad_output(length: bytes) -> None:
    with pytest.raises(CallError) as caught:
        read_answer(Answer(200, {b"inference-header-content-length": length}, b"{}"), 1)
    assert caught.value.failure is CallFailure.BAD_OUTPUT


def test_a_compressed_answer_that_was_not_asked_for_is_not_the_models_fault() -> None:
    with pytest.raises(CallError) as caught:
        read_answer(Answer(200, {b"content-encoding": b"gzip"}, b"\x1f\x8b"), 1)
    assert caught.value.failure is CallFailure.CONNECTION


@pytest.mark.parametrize("transport", ["binary", "tritonclient"])
async def test_json_that_is_not_utf8_is_the_models_doing(transport: Transport) -> None:
    async with ScriptedTriton() as triton:
        client = TritonClient(triton.url, transport=transport)
        spec = await client.read_spec("gpt4_nano")
        triton.scripts.append(faults.raw(http(200, b'{"outputs": ["\xff"]}')))
        error = await failed(client, spec, inputs("hello"))
        await client.close()
    assert error.failure is CallFailure.BAD_OUTPUT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7),
        (b" 120 ", 120),
        (b"0", 0),
        (b"-1", 0),
        (b"1.5", 0),
        (b"\xb2", 0),
        (b"9" * 400, 0),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", 0),
    ],
)
async def test_the_seconds_of_retry_after_come_with_the_failure(value: bytes, seconds: float) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % value
    async with ScriptedTriton() as server:
        client = TritonClient(server.url)
        spec = await client.read_spec("gpt4_nano")
        server.scripts.append(faults.raw(busy))
        error = await failed(client, spec, inputs("hello"))
        assert (error.failure, error.retry_after_s) == (CallFailure.OVERLOADED, seconds)
        await client.close()


async def test_a_redirect_is_not_followed_and_says_where_it_points() -> None:
    moved = b"HTTP/1.1 308 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n"
    async with ScriptedTriton() as triton:
        client = TritonClient(triton.url)
        spec = await client.read_spec("gpt4_nano")
        triton.scripts.append(faults.raw(moved))
        error = await failed(client, spec, inputs("hello"))
        await client.close()
    assert (error.failure, error.status) == (CallFailure.CONNECTION, 308)
    assert re.search("https://elsewhere/.*TRITON_URL", error.detail)


@pytest.mark.parametrize(
    ("headers", "transport", "ours"),
    [
        ({}, "binary", True),
        ({"Authorization": "Bearer x"}, "binary", True),
        ({"Accept-Encoding": "identity"}, "binary", False),
        ({"Host": "models.example"}, "binary", False),
        ({}, "tritonclient", False),
    ],
)
async def test_which_calls_go_which_way(headers: dict[str, str], transport: Transport, ours: bool) -> None:
    assert all(name == name.lower() for name in RESERVED_HEADERS)
    async with ScriptedTriton() as triton:
        client = TritonClient(triton.url, headers=headers, transport=transport)
        await client.infer(await client.read_spec("gpt4_nano"), inputs("hello"), 5.0)
        await client.close()
        (call,) = triton.calls
    assert ("user-agent" not in call.headers) is ours
