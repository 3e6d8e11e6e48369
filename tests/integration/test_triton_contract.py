"""The Triton contract on a real Triton with the real model (engine `canned`), and what only a real one can show."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.triton import TritonClient
from stack.triton import MODELS, Triton
from tests.unit.triton.contract import GENEROUS_S, TritonContract, answered, failed, inputs


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    with Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as server:
        yield server


class TestRealTriton(TritonContract):
    """Every test of the contract."""

    @pytest.fixture
    def url(self, triton: Triton) -> str:
        return triton.url


async def test_dead_model_processes_are_tritons_state_until_it_is_restarted(triton: Triton) -> None:
    client = TritonClient(triton.url)
    spec = await client.read_spec("gpt4_nano")
    await answered(client, spec, "alive")
    assert triton.kill_stubs() == spec.instances
    errors = await asyncio.gather(*(failed(client, spec, inputs(str(call))) for call in range(4)))
    assert {error.failure for error in errors} == {CallFailure.MODEL_UNHEALTHY}
    assert triton.ready, "readiness says nothing about it"
    await asyncio.to_thread(triton.stop)
    assert (await failed(client, spec, inputs("nobody there"))).failure in (
        CallFailure.REFUSED,
        CallFailure.CONNECTION,
    )
    await asyncio.to_thread(triton.start)
    await answered(client, spec, "alive again")
    await client.close()


async def test_a_prompt_that_kills_its_model_process_looks_like_a_dead_one(triton: Triton) -> None:
    client = TritonClient(triton.url)
    spec = await client.read_spec("gpt4_nano")
    assert (await failed(client, spec, inputs("[[crash]]"))).failure is CallFailure.MODEL_UNHEALTHY
    await client.close()
    await asyncio.to_thread(triton.kill)
    await asyncio.to_thread(triton.start)


QUEUE_POLICY = """default_queue_policy {
    max_queue_size: 2
    timeout_action: REJECT
    default_timeout_microseconds: 300000
  }"""


@pytest.fixture
def short_queue(tmp_path: Path) -> Path:
    """The models, gpt4_nano with a queue of two requests that may wait 0.3 s."""
    repository = tmp_path / "models"
    shutil.copytree(MODELS / "gpt4_nano", repository / "gpt4_nano")
    config = repository / "gpt4_nano" / "config.pbtxt"
    text = config.read_text()
    delay = "max_queue_delay_microseconds: 0"
    assert text.count(delay) == 1
    config.write_text(text.replace(delay, f"{delay}\n  {QUEUE_POLICY}"))
    return repository


async def test_a_full_queue_and_too_long_a_wait_in_it_are_overload(short_queue: Path) -> None:
    with Triton(repository=short_queue, engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as server:
        client = TritonClient(server.url)
        spec = await client.read_spec("gpt4_nano")
        batch = inputs(*["[[slow:1000]]"] * spec.max_batch_size)
        outcomes = await asyncio.gather(
            *(client.infer(spec, batch, GENEROUS_S) for _ in range(12)), return_exceptions=True
        )
        await client.close()
    errors = [outcome for outcome in outcomes if isinstance(outcome, CallError)]
    assert len(outcomes) - len(errors) >= spec.instances
    assert {(error.failure, error.status) for error in errors} == {(CallFailure.OVERLOADED, 503)}
    for text in ("Exceeds maximum queue size", "Request timeout expired"):
        assert any(text in error.detail for error in errors), text
