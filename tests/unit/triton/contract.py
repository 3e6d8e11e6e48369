"""What the rest of the worker may rely on in TritonClient, whoever answers: the same tests run on the scripted
server (tests/unit/triton) and on a real Triton (tests/integration), so that the script cannot lie.

A backend provides the fixture `url`: a server with the model gpt4_nano that knows the test prompts and begins every
answer with its prompt's fingerprint.
"""

import asyncio
import dataclasses
import gc
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import get_args

import pytest

from promptbus_worker.model import BadRow, Inputs, ModelSpec, ModelStatistics, Row, TensorSpec
from promptbus_worker.outcomes import DETAIL_CHARS, CallError, CallFailure
from promptbus_worker.triton import Transport, TritonClient
from tests.fingerprint import fingerprint

GENEROUS_S = 20.0

AWKWARD_PROMPTS = {
    "ascii": "What is Kafka?",
    "one character": "x",
    "spaces": "  \t\n ",
    "umlauts": "Grüße aus Köln",
    "emoji": "👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "right to left": "שלום مرحبا",
    "combining": "e\u0301 is not é",
    "astral": "\U00010348 \U0010ffff",
    "NUL inside": "before\0after",
    "NUL at the end": "trailing\0\0\0",
    "only NUL": "\0",
    "quotes": '{"prompt": "\\"\\\\"}',
    "100 KB": "Every word counts. " * 5400,
}


def inputs(*prompts: str) -> list[Inputs]:
    """A batch as the dispatcher makes it."""
    return [{"prompt": prompt.encode(), "max_tokens": 150, "temperature": 0.7} for prompt in prompts]


async def failed(
    client: TritonClient, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float = GENEROUS_S
) -> CallError:
    """The error of a call that has to fail."""
    with pytest.raises(CallError) as caught:
        await client.infer(spec, batch, timeout_s)
    return caught.value


async def answered(client: TritonClient, spec: ModelSpec, *prompts: str) -> list[Row]:
    """The rows of a call that has to succeed, each checked to belong to its prompt."""
    version, rows = await client.infer(spec, inputs(*prompts), GENEROUS_S)
    assert version == "1"
    assert len(rows) == len(prompts)
    good = []
    for row, prompt in zip(rows, prompts, strict=True):
        assert isinstance(row, Row)
        assert row.response.startswith(f"[{fingerprint(prompt.encode())}]"), prompt[:50]
        good.append(row)
    return good


class TritonContract:
    @pytest.fixture(params=get_args(Transport))
    def transport(self, request: pytest.FixtureRequest) -> Transport:
        transport: Transport = request.param
        return transport

    @pytest.fixture
    async def client(self, url: str, transport: Transport) -> AsyncIterator[TritonClient]:
        client = TritonClient(url, transport=transport)
        yield client
        await client.close()
        gc.collect()  # an unclosed session or connection would warn here, and warnings are errors

    @pytest.fixture
    async def spec(self, client: TritonClient) -> ModelSpec:
        return await client.read_spec("gpt4_nano")

    async def test_the_statistics_tell_of_the_calls_that_ran(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        (before,) = (await client.statistics("gpt4_nano")).values()
        for _ in range(3):
            await answered(client, spec, "[[slow:50]] one", "two")
        await failed(client, spec, inputs("a", "[[fail]]"))
        now: ModelStatistics | None = None
        async with asyncio.timeout(GENEROUS_S):
            while now is None or now.calls < before.calls + 4:
                await asyncio.sleep(0.01)
                (now,) = (await client.statistics("gpt4_nano", "1")).values()
        assert now.calls == before.calls + 4, "the one that failed in the model ran too"
        assert now.compute_ns - before.compute_ns >= 3 * 0.05e9
        assert now.queue_ns >= before.queue_ns

    async def test_of_a_model_that_is_not_there_there_are_no_statistics(self, client: TritonClient) -> None:
        with pytest.raises(CallError) as caught:
            await client.statistics("nobody")
        assert caught.value.status in (400, 404)

    async def test_the_model_is_described(self, spec: ModelSpec) -> None:
        assert (spec.name, spec.version, spec.max_batch_size, spec.instances) == ("gpt4_nano", "", 8, 2)
        assert spec.inputs == {
            "prompt": TensorSpec("prompt", "BYTES", optional=False),
            "max_tokens": TensorSpec("max_tokens", "INT32", optional=True),
            "temperature": TensorSpec("temperature", "FP32", optional=True),
            "top_p": TensorSpec("top_p", "FP32", optional=True),
        }
        assert list(spec.outputs) == [
            "response",
            "tokens_used",
            "prompt_tokens",
            "completion_tokens",
            "finish_reason",
        ]

    @pytest.mark.parametrize("size", range(1, 9))
    async def test_every_row_answers_the_prompt_in_its_place(
        self, client: TritonClient, spec: ModelSpec, size: int
    ) -> None:
        rows = await answered(client, spec, *(f"prompt {number} of {size}" for number in range(size)))
        for row in rows:
            assert row.finish_reason == "stop"
            assert row.prompt_tokens
            assert row.completion_tokens
            assert row.total_tokens == row.prompt_tokens + row.completion_tokens

    @pytest.mark.parametrize("name", AWKWARD_PROMPTS)
    async def test_prompts_arrive_byte_for_byte(
        self, client: TritonClient, spec: ModelSpec, name: str
    ) -> None:
        await answered(client, spec, AWKWARD_PROMPTS[name])

    async def test_prompts_of_all_kinds_share_a_batch(self, client: TritonClient, spec: ModelSpec) -> None:
        await answered(client, spec, *list(AWKWARD_PROMPTS.values())[-8:])

    async def test_only_the_prompt_has_to_be_given(self, client: TritonClient, spec: ModelSpec) -> None:
        _, rows = await client.infer(spec, [{"prompt": b"alone"}], GENEROUS_S)
        assert isinstance(rows[0], Row)

    async def test_a_version_can_be_named(self, client: TritonClient) -> None:
        spec = await client.read_spec("gpt4_nano", "1")
        assert spec.version == "1"
        await answered(client, spec, "by version")

    async def test_many_calls_at_once_keep_their_answers_apart(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        await asyncio.gather(*(answered(client, spec, f"a{call}", f"b{call}") for call in range(40)))

    async def test_a_model_error_keeps_its_traceback_to_the_detail(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        error = await failed(client, spec, inputs("good", "[[fail]] " + "long " * 1000, "good"))
        assert (error.failure, error.status) == (CallFailure.MODEL_ERROR, 500)
        assert 0 < len(error.detail) <= DETAIL_CHARS
        await answered(client, spec, "the client works on")

    async def test_a_timeout_comes_on_time_and_the_client_works_on(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        before = time.monotonic()
        error = await failed(client, spec, inputs("[[slow:1500]]"), timeout_s=0.3)
        elapsed = time.monotonic() - before
        assert (error.failure, error.status) == (CallFailure.TIMEOUT, None)
        assert 0.29 <= elapsed < 0.9  # uvloop counts whole milliseconds
        await answered(client, spec, "the client works on")

    async def test_cancellation_is_not_a_failure(self, client: TritonClient, spec: ModelSpec) -> None:
        call = asyncio.create_task(client.infer(spec, inputs("[[slow:1000]]"), GENEROUS_S))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.1)
        assert call.cancelled()
        await answered(client, spec, "the client works on")

    @pytest.mark.parametrize(("model", "version"), [("gpt5_mega", None), ("gpt4_nano", "9")])
    async def test_a_model_that_is_not_there_is_not_found(
        self, client: TritonClient, spec: ModelSpec, model: str, version: str | None
    ) -> None:
        with pytest.raises(CallError) as caught:
            await client.read_spec(model, version)
        assert (caught.value.failure, caught.value.status) == (CallFailure.NOT_FOUND, 404)
        gone = dataclasses.replace(spec, name=model, version=version or "")
        error = await failed(client, gone, inputs("hello"))
        assert (error.failure, error.status) == (CallFailure.NOT_FOUND, 404)

    async def test_a_batch_that_is_too_large_is_a_bad_request(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        error = await failed(client, spec, inputs(*["x"] * 9))
        assert (error.failure, error.status) == (CallFailure.BAD_REQUEST, 400)
        await answered(client, spec, "the client works on")

    async def test_an_input_that_triton_does_not_know_is_a_bad_request(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        stale = dataclasses.replace(spec, inputs={**spec.inputs, "seed": TensorSpec("seed", "INT64", True)})
        error = await failed(client, stale, [{"prompt": b"x", "seed": 1}])
        assert (error.failure, error.status) == (CallFailure.BAD_REQUEST, 400)

    async def test_values_that_no_tensor_takes_are_a_bad_request_without_a_call(
        self, client: TritonClient, spec: ModelSpec
    ) -> None:
        for values in ({"max_tokens": 2**31}, {"temperature": b"warm"}, {"nonsense": 1}):
            error = await failed(client, spec, [{"prompt": b"x", **values}])
            assert (error.failure, error.status) == (CallFailure.BAD_REQUEST, None)

    async def test_a_missing_output_is_a_bad_output(self, client: TritonClient, spec: ModelSpec) -> None:
        error = await failed(client, spec, inputs("good", "[[no-output]]"))
        assert error.failure is CallFailure.BAD_OUTPUT
        assert "response" in error.detail

    @pytest.mark.parametrize("prompts", [("[[wrong-rows]]",), ("good", "[[wrong-rows]]", "good")])
    async def test_other_rows_than_asked_for_are_a_bad_output(
        self, client: TritonClient, spec: ModelSpec, prompts: tuple[str, ...]
    ) -> None:
        error = await failed(client, spec, inputs(*prompts))
        assert error.failure is CallFailure.BAD_OUTPUT

    async def test_a_row_that_is_not_utf8_is_bad_alone(self, client: TritonClient, spec: ModelSpec) -> None:
        _, rows = await client.infer(spec, inputs("left", "[[bad-utf8]]", "right"), GENEROUS_S)
        assert [type(row) for row in rows] == [Row, BadRow, Row]
        for row, prompt in ((rows[0], b"left"), (rows[2], b"right")):
            assert isinstance(row, Row)
            assert row.response.startswith(f"[{fingerprint(prompt)}]")

    async def test_nobody_listening_is_refused(self, spec: ModelSpec, transport: Transport) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port either
            client = TritonClient(f"http://127.0.0.1:{taken.getsockname()[1]}", transport=transport)
            error = await failed(client, spec, inputs("hello"))
            with pytest.raises(CallError) as caught:
                await client.read_spec("gpt4_nano")
            await client.close()
        assert error.failure is CallFailure.REFUSED
        assert caught.value.failure is CallFailure.REFUSED

    async def test_proxies_of_the_environment_never_apply(
        self, url: str, transport: Transport, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        client = TritonClient(url, transport=transport)
        await answered(client, spec, "straight")
        await client.close()

    async def test_a_closed_client_says_so(self, url: str, transport: Transport, spec: ModelSpec) -> None:
        client = TritonClient(url, transport=transport)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.infer(spec, inputs("hello"), GENEROUS_S)
