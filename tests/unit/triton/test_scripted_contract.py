"""The Triton contract on the scripted server, and the faults that a real Triton cannot be made to show."""

import asyncio
import gc
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import get_args

import pytest

from promptbus_worker.model import CALL_TRACEPARENT, ModelSpec, Row
from promptbus_worker.outcomes import DETAIL_CHARS, CallError, CallFailure
from promptbus_worker.triton import PROBE_S, Transport, TritonClient
from tests.unit.triton import faults
from tests.unit.triton.contract import GENEROUS_S, TritonContract, answered, failed, inputs
from tests.unit.triton.scripted_triton import (
    METADATA,
    Received,
    Script,
    ScriptedTriton,
    answer_of,
    http,
    outputs_for,
    pack_bytes,
    pack_int32,
)


@pytest.fixture
async def triton() -> AsyncIterator[ScriptedTriton]:
    async with ScriptedTriton() as server:
        yield server


@pytest.fixture
def url(triton: ScriptedTriton) -> str:
    return triton.url


class TestScriptedTriton(TritonContract):
    """Every test of the contract."""


@pytest.fixture(params=get_args(Transport))
def transport(request: pytest.FixtureRequest) -> Transport:
    transport: Transport = request.param
    return transport


@pytest.fixture
async def client(url: str, transport: Transport) -> AsyncIterator[TritonClient]:
    client = TritonClient(url, transport=transport)
    yield client
    await client.close()
    gc.collect()


@pytest.fixture
async def spec(client: TritonClient) -> ModelSpec:
    return await client.read_spec("gpt4_nano")


@pytest.mark.parametrize("fault", [faults.disconnect, faults.reset, faults.truncate, faults.not_http])
async def test_a_broken_connection_is_one_post_and_the_client_works_on(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec, fault: Script
) -> None:
    await answered(client, spec, "a connection to be kept alive")
    triton.scripts.append(fault)
    error = await failed(client, spec, inputs("hello"))
    assert (error.failure, error.status) == (CallFailure.CONNECTION, None)
    assert len(triton.calls) == 2, "it must not be sent again by itself"
    await answered(client, spec, "the client works on")


@pytest.mark.parametrize("fault", [faults.silent, faults.drip])
async def test_a_silent_or_dripping_server_times_out_on_time(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec, fault: Script
) -> None:
    triton.scripts.append(fault)
    before = time.monotonic()
    error = await failed(client, spec, inputs("hello"), timeout_s=0.3)
    assert error.failure is CallFailure.TIMEOUT
    assert 0.29 <= time.monotonic() - before < 0.9  # uvloop counts whole milliseconds
    await answered(client, spec, "the client works on")


@pytest.mark.parametrize(
    ("code", "body", "failure"),
    [
        (400, b'{"error": "unexpected shape"}', CallFailure.BAD_REQUEST),
        (401, b"", CallFailure.FORBIDDEN),
        (403, b'{"error": "This protocol is restricted"}', CallFailure.FORBIDDEN),
        (404, faults.HTML, CallFailure.NOT_FOUND),
        (413, faults.HTML, CallFailure.BAD_REQUEST),
        (429, b"slow down", CallFailure.OVERLOADED),
        (500, b'{"error": "model raised"}', CallFailure.MODEL_ERROR),
        (500, b'{"error": "Stub process \'gpt4_nano_0_0\' is not healthy."}', CallFailure.MODEL_UNHEALTHY),
        (500, faults.HTML, CallFailure.MODEL_ERROR),
        (500, b"", CallFailure.MODEL_ERROR),
        (500, b"\xff\xfe", CallFailure.MODEL_ERROR),
        (502, faults.HTML, CallFailure.CONNECTION),
        (503, b'{"error": "[request id: <id_unknown>] Exceeds maximum queue size"}', CallFailure.OVERLOADED),
        (503, b'{"error": "Request timeout expired"}', CallFailure.OVERLOADED),
        (503, faults.HTML, CallFailure.OVERLOADED),
        (504, faults.HTML, CallFailure.TIMEOUT),
    ],
)
async def test_a_status_is_a_failure(
    triton: ScriptedTriton,
    client: TritonClient,
    spec: ModelSpec,
    code: int,
    body: bytes,
    failure: CallFailure,
) -> None:
    triton.scripts.append(faults.status(code, body))
    error = await failed(client, spec, inputs("hello"))
    assert (error.failure, error.status) == (failure, code)
    await answered(client, spec, "the client works on")


async def test_a_long_error_text_is_cut(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    triton.scripts.append(faults.status(500, json.dumps({"error": "x" * 100_000}).encode()))
    assert len((await failed(client, spec, inputs("hello"))).detail) == DETAIL_CHARS


@pytest.mark.parametrize("answer", faults.BAD_ANSWERS)
async def test_an_answer_that_does_not_fit_the_batch_is_a_bad_output(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec, answer: str
) -> None:
    triton.scripts.append(faults.raw(faults.BAD_ANSWERS[answer]))
    error = await failed(client, spec, inputs("hello"))
    assert (error.failure, error.status) == (CallFailure.BAD_OUTPUT, 200)
    assert len(error.detail) <= DETAIL_CHARS
    await answered(client, spec, "the client works on")


async def test_a_page_with_status_200_is_not_the_models_fault(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    triton.scripts.append(faults.status(200, faults.HTML))
    assert (await failed(client, spec, inputs("hello"))).failure is CallFailure.CONNECTION


async def test_counts_that_are_absent_or_negative_are_unknown(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    some = {
        "response": ("BYTES", [1, 1], pack_bytes([b"yes"])),
        "tokens_used": ("INT32", [1, 1], pack_int32([-1])),
    }
    triton.scripts.append(faults.raw(answer_of(some)))
    _, rows = await client.infer(spec, inputs("hello"), GENEROUS_S)
    assert rows == [Row("yes", None, None, None, None)]


async def test_an_unreadable_finish_reason_costs_no_answer(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    outputs = outputs_for([b"hello"]) | {"finish_reason": ("BYTES", [1, 1], pack_bytes([b"\xff"]))}
    triton.scripts.append(faults.raw(answer_of(outputs)))
    _, rows = await client.infer(spec, inputs("hello"), GENEROUS_S)
    assert isinstance(rows[0], Row)


async def test_tensors_may_come_in_any_order_and_with_strangers_among_them(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    outputs = dict(reversed(outputs_for([b"one", b"two"]).items()))
    stranger = {"logits": ("FP32", [2, 3], bytes(24))}
    triton.scripts.append(faults.raw(answer_of(stranger | outputs, model_version="42")))
    version, rows = await client.infer(spec, inputs("one", "two"), GENEROUS_S)
    assert version == "42"
    assert all(isinstance(row, Row) and row.finish_reason == "stop" for row in rows)


async def test_a_server_that_answers_in_json_is_understood(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    body = {
        "model_version": "7",
        "outputs": [
            {"name": "response", "datatype": "BYTES", "shape": [1, 1], "data": ["Grüße"]},
            {"name": "tokens_used", "datatype": "INT32", "shape": [1, 1], "data": [7]},
        ],
    }
    triton.scripts.append(faults.raw(http(200, json.dumps(body).encode())))
    assert await client.infer(spec, inputs("hello"), GENEROUS_S) == ("7", [Row("Grüße", 7, None, None, None)])


async def test_inputs_travel_as_binary_tensors_of_one_value_per_request(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    await answered(client, spec, "a\0", "🦜")
    (call,) = triton.calls
    assert call.path == "/v2/models/gpt4_nano/infer"
    assert call.prompts == [b"a\0", "🦜".encode()]
    assert call.inputs["max_tokens"] == ("INT32", [2, 1], pack_int32([150, 150]))
    assert call.inputs["temperature"][:2] == ("FP32", [2, 1])


async def test_headers_go_with_every_call_and_only_as_given(
    triton: ScriptedTriton, transport: Transport
) -> None:
    headers = {"Authorization": "Bearer s3cret", "X-Tenant": "a"}
    client = TritonClient(triton.url, headers=headers, transport=transport)
    await answered(client, await client.read_spec("gpt4_nano"), "one")
    await client.close()
    assert len(triton.received) == 3
    for request in triton.received:
        assert request.headers["authorization"] == "Bearer s3cret"
        assert request.headers["x-tenant"] == "a"
        assert request.headers["accept-encoding"] == "identity"
    assert headers == {"Authorization": "Bearer s3cret", "X-Tenant": "a"}
    assert "inference-header-content-length" not in triton.received[1].headers


async def test_a_traced_call_tells_triton_its_context_and_others_do_not(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    context = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    token = CALL_TRACEPARENT.set(context)
    await answered(client, spec, "traced")
    CALL_TRACEPARENT.reset(token)
    await answered(client, spec, "not traced")
    assert [call.headers.get("traceparent") for call in triton.calls] == [context.decode(), None]


async def test_calls_beyond_the_connection_limit_wait_within_their_own_timeout(
    triton: ScriptedTriton, transport: Transport
) -> None:
    client = TritonClient(triton.url, max_connections=1, transport=transport)
    spec = await client.read_spec("gpt4_nano")
    arrived = asyncio.Event()

    async def silent(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await faults.silent(server, request, writer)

    triton.scripts.append(silent)
    first = asyncio.create_task(failed(client, spec, inputs("first"), timeout_s=60))
    await arrived.wait()
    error = await failed(client, spec, inputs("second"), timeout_s=0.3)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await client.close()
    assert error.failure is CallFailure.TIMEOUT
    assert len(triton.calls) == 1


async def test_a_server_that_comes_back_is_found_again(
    triton: ScriptedTriton, client: TritonClient, spec: ModelSpec
) -> None:
    await answered(client, spec, "before")
    await triton.stop()
    assert (await failed(client, spec, inputs("meanwhile"))).failure in (
        CallFailure.REFUSED,
        CallFailure.CONNECTION,
    )
    assert (await failed(client, spec, inputs("meanwhile"))).failure is CallFailure.REFUSED
    await triton.start()
    await answered(client, spec, "after")


async def test_a_host_that_is_gone_is_refused_although_it_only_timed_out(
    spec: ModelSpec, transport: Transport
) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # the queue of connections is full: further ones get no answer at all
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        client = TritonClient(f"127.0.0.1:{full.getsockname()[1]}", transport=transport)
        before = time.monotonic()
        error = await failed(client, spec, inputs("hello"), timeout_s=0.1)
        elapsed = time.monotonic() - before
        await client.close()
        for one in waiting:
            one.close()
    assert error.failure is CallFailure.REFUSED
    assert elapsed < 0.1 + PROBE_S + 0.3


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (faults.disconnect, CallFailure.CONNECTION),
        (faults.not_http, CallFailure.CONNECTION),
        (faults.status(200, faults.HTML), CallFailure.CONNECTION),
        (faults.status(401, b""), CallFailure.FORBIDDEN),
        (faults.status(503, b'{"error": "Server not ready"}'), CallFailure.OVERLOADED),
        (faults.silent, CallFailure.TIMEOUT),
        (faults.status(200, b"[]"), CallFailure.NOT_FOUND),
    ],
)
async def test_reading_the_description_fails_by_the_same_names(
    triton: ScriptedTriton, client: TritonClient, fault: Script, failure: CallFailure
) -> None:
    triton.describe_with = fault
    with pytest.raises(CallError) as caught:
        await client.read_spec("gpt4_nano", timeout_s=0.3)
    assert caught.value.failure is failure
    triton.describe_with = None
    assert (await client.read_spec("gpt4_nano")).name == METADATA["name"]


async def test_a_prefix_of_the_url_is_kept(
    triton: ScriptedTriton, spec: ModelSpec, transport: Transport
) -> None:
    client = TritonClient(f"http://{triton.url}/triton/", transport=transport)
    with pytest.raises(CallError):
        await client.read_spec("gpt4_nano")
    await failed(client, spec, inputs("hello"))
    await client.close()
    assert [request.path for request in triton.received[-2:]] == [
        "/triton/v2/models/gpt4_nano",
        "/triton/v2/models/gpt4_nano/infer",
    ]


async def test_https_speaks_tls_and_nothing_else(spec: ModelSpec) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read(3))
        writer.write(http(400, b"this port speaks plain HTTP"))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = TritonClient(f"https://127.0.0.1:{port}")
        error = await failed(client, spec, inputs("hello"))
        await client.close()
    assert error.failure is CallFailure.FORBIDDEN
    assert "write http:// in TRITON_URL" in error.detail
    assert (await heard)[:2] == b"\x16\x03", "the first bytes of a TLS handshake"
