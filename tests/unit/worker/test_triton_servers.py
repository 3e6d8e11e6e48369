"""Several servers behave as one that is as good as the best of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from promptbus_worker.model import BadRow, Inputs, ModelSpec, ModelStatistics, Row
from promptbus_worker.outcomes import CallError, CallFailure, ModelUnusable
from promptbus_worker.triton_servers import CHECK_S, FIRST_ASIDE_S, LONGEST_ASIDE_S, OTHERS_S, TritonServers
from tests.unit.worker.path import SPEC
from tests.unit.worker.virtual_time import in_virtual_time, loop

PROMPT: Inputs = {"prompt": b"hello"}
CANARY = b"ping"


@dataclass
class Server:
    """Fails as it is told; otherwise answers after `takes_s`."""

    spec: ModelSpec = SPEC
    takes_s: float = 0.0
    describes_after_s: float = 0.0
    failure: CallFailure | None = None
    refuses: bytes | None = None  # a model error for batches with this prompt
    gone: bool = False
    calls: list[list[Inputs]] = field(default_factory=list)
    running: int = 0
    counted: ModelStatistics = field(default_factory=lambda: ModelStatistics(1, 2, 3))
    closed: bool = False

    async def read_spec(self, model: str, version: str | None = None) -> ModelSpec:
        assert model == SPEC.name
        await asyncio.sleep(self.describes_after_s)
        if self.gone:
            raise CallError(CallFailure.REFUSED, "nobody is there")
        return self.spec

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        self.calls.append(list(batch))
        if self.gone:
            raise CallError(CallFailure.REFUSED, "nobody is there")
        self.running += 1
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.takes_s)
        except TimeoutError:
            raise CallError(CallFailure.TIMEOUT, "no answer") from None
        finally:
            self.running -= 1
        if self.failure is not None:
            raise CallError(self.failure, "as told", status=500 if self.failure is not CONNECTION else None)
        if self.refuses is not None and any(inputs["prompt"] == self.refuses for inputs in batch):
            raise CallError(CallFailure.MODEL_ERROR, "as told", status=500)
        return "1", [Row("text", 1, 1, 0, "stop") for _ in batch]

    async def statistics(self, model: str, version: str | None = None) -> dict[str, ModelStatistics]:
        assert model == SPEC.name
        if self.gone:
            raise CallError(CallFailure.REFUSED, "nobody is there")
        return {f"server {id(self)}": self.counted}

    async def close(self) -> None:
        self.closed = True

    @property
    def prompts(self) -> int:
        """Calls that were not the check's."""
        return sum(batch[0]["prompt"] != CANARY for batch in self.calls)


CONNECTION = CallFailure.CONNECTION


def together(*servers: Server) -> TritonServers:
    return TritonServers({f"server-{n}:8000": one for n, one in enumerate(servers)}, loop().time)


@in_virtual_time
async def test_the_statistics_are_those_of_the_servers_that_tell() -> None:
    first, second = Server(), Server(counted=ModelStatistics(4, 5, 6))
    servers = together(first, second)
    assert sorted((await servers.statistics(SPEC.name)).values()) == [first.counted, second.counted]
    first.gone = True
    assert list((await servers.statistics(SPEC.name)).values()) == [second.counted]
    second.gone = True
    with pytest.raises(CallError):
        await servers.statistics(SPEC.name)
    await servers.close()


async def ready(*servers: Server) -> TritonServers:
    whole = together(*servers)
    await whole.read_spec(SPEC.name)
    return whole


async def call(whole: TritonServers, size: int = 1, timeout_s: float = 30.0) -> CallFailure | None:
    """How it ended."""
    try:
        _, rows = await whole.infer(SPEC, [PROMPT] * size, timeout_s)
    except CallError as error:
        return error.failure
    assert len(rows) == size
    return None


@in_virtual_time
async def test_each_call_goes_where_the_fewest_are() -> None:
    slow, quick = Server(takes_s=1.0), Server(takes_s=0.1)
    whole = await ready(slow, quick)
    calls = [asyncio.create_task(call(whole)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert (slow.running, quick.running) == (2, 2)
    await asyncio.sleep(0.2)
    calls += [asyncio.create_task(call(whole)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert (slow.running, quick.running) == (2, 2)
    assert await asyncio.gather(*calls) == [None] * 6


@pytest.mark.parametrize(
    "failure",
    [
        CallFailure.REFUSED,
        CallFailure.OVERLOADED,
        CallFailure.FORBIDDEN,
        CallFailure.NOT_FOUND,
        CallFailure.MODEL_UNHEALTHY,
    ],
)
@in_virtual_time
async def test_what_did_not_run_is_run_by_the_next_in_the_same_call(failure: CallFailure) -> None:
    bad, good = Server(failure=failure), Server()
    whole = await ready(bad, good)
    assert await call(whole, size=8) is None
    assert (len(bad.calls), len(good.calls)) == (1, 1)


@pytest.mark.parametrize("failure", [CONNECTION, CallFailure.BAD_REQUEST])
@pytest.mark.parametrize("size", [1, 8])
@in_virtual_time
async def test_what_may_have_run_or_is_our_fault_is_not_repeated(failure: CallFailure, size: int) -> None:
    bad, good = Server(failure=failure), Server()
    whole = await ready(bad, good)
    assert await call(whole, size) is failure
    assert good.calls == []


@in_virtual_time
async def test_a_time_out_is_not_repeated() -> None:
    bad, good = Server(takes_s=60), Server()
    whole = await ready(bad, good)
    assert await call(whole, timeout_s=5) is CallFailure.TIMEOUT
    assert good.calls == []


@in_virtual_time
async def test_all_tries_share_one_time_out() -> None:
    servers = [Server(failure=CallFailure.OVERLOADED, takes_s=2.0) for _ in range(3)]
    whole = await ready(*servers)
    began = loop().time()
    # the third try could have no time left to be answered in
    assert await call(whole, timeout_s=3.0) is CallFailure.TIMEOUT
    assert loop().time() - began == pytest.approx(3.0)
    assert [len(server.calls) for server in servers] == [1, 1, 0]


@in_virtual_time
async def test_a_lone_request_that_one_server_fails_on_is_answered_by_another() -> None:
    broken, good = Server(failure=CallFailure.MODEL_ERROR), Server()
    whole = await ready(broken, good)
    assert await call(whole) is None
    # and the one that could not do it is out of the way, though it fails faster than the other answers
    assert [await call(whole) for _ in range(5)] == [None] * 5
    assert broken.prompts == 1


@in_virtual_time
async def test_a_batch_that_fails_comes_back_to_be_narrowed() -> None:
    broken, good = Server(failure=CallFailure.MODEL_ERROR), Server()
    whole = await ready(broken, good)
    assert await call(whole, size=2) is CallFailure.MODEL_ERROR
    assert good.calls == []


@in_virtual_time
async def test_a_request_that_every_server_fails_on_has_failed() -> None:
    one, other = Server(refuses=b"hello"), Server(refuses=b"hello")
    whole = await ready(one, other)
    assert await call(whole) is CallFailure.MODEL_ERROR
    assert (one.prompts, other.prompts) == (1, 1)
    # nobody is set aside for it
    calls = [asyncio.create_task(whole.infer(SPEC, [{"prompt": b"good"}], 1.0)) for _ in range(2)]
    await asyncio.gather(*calls)
    assert (one.prompts, other.prompts) == (2, 2)


@pytest.mark.parametrize("failure", [CallFailure.REFUSED, CONNECTION])
@in_virtual_time
async def test_a_server_that_cannot_be_talked_to_is_left_alone_for_longer_and_longer(
    failure: CallFailure,
) -> None:
    bad, good = Server(failure=failure), Server()
    whole = await ready(bad, good)
    await call(whole)
    for wait_s in (FIRST_ASIDE_S, 2 * FIRST_ASIDE_S, 4 * FIRST_ASIDE_S):
        tried = len(bad.calls)
        await asyncio.sleep(wait_s * 0.9)
        assert await call(whole) is None
        assert len(bad.calls) == tried
        await asyncio.sleep(wait_s * 0.2)
        assert await call(whole) is None
        await asyncio.sleep(0.01)
        assert len(bad.calls) == tried + 1, "the check's own prompt"
    assert bad.prompts == 1
    for _ in range(20):
        await asyncio.sleep(LONGEST_ASIDE_S)
        assert await call(whole) is None
    assert len(bad.calls) > 20


@in_virtual_time
async def test_a_server_that_is_back_is_used_again() -> None:
    back, good = Server(gone=True), Server()
    whole = together(back, good)
    await whole.read_spec(SPEC.name)
    assert await call(whole) is None
    assert back.calls == [], "it was known to be gone"
    back.gone = False
    await asyncio.sleep(LONGEST_ASIDE_S)
    assert await call(whole) is None  # which starts the check
    await asyncio.sleep(0.01)
    assert [batch[0]["prompt"] for batch in back.calls] == [CANARY]
    for _ in range(2):
        await asyncio.gather(call(whole), call(whole))
    assert back.prompts == 2


@in_virtual_time
async def test_a_silent_server_is_set_aside_and_one_that_answers_others_is_not() -> None:
    silent, good = Server(takes_s=60), Server()
    whole = await ready(silent, good)
    assert await call(whole, timeout_s=2) is CallFailure.TIMEOUT
    assert await call(whole) is None
    assert silent.prompts == 1

    slow = Server(takes_s=1.0)
    whole = await ready(slow)
    first = asyncio.create_task(call(whole))
    await asyncio.sleep(0.5)
    assert await call(whole, timeout_s=0.7) is CallFailure.TIMEOUT
    assert await first is None, "it answered this one meanwhile"
    assert whole._servers[0].aside_until is None


@in_virtual_time
async def test_when_all_are_set_aside_they_are_tried_all_the_same() -> None:
    one, other = Server(gone=True), Server(gone=True)
    whole = together(one, other)
    with pytest.raises(CallError, match="nobody"):
        await whole.read_spec(SPEC.name)
    assert await call(whole) is CallFailure.REFUSED
    assert (len(one.calls), len(other.calls)) == (1, 1)
    other.gone = False
    assert await call(whole) is None


@in_virtual_time
async def test_the_description_is_what_every_server_can_do() -> None:
    small = replace(SPEC, max_batch_size=4, instances=1)
    spec = await together(Server(), Server(spec=small)).read_spec(SPEC.name)
    assert (spec.max_batch_size, spec.instances) == (4, SPEC.instances + 1)


@in_virtual_time
async def test_a_server_that_is_slow_to_describe_its_model_holds_nobody_up() -> None:
    began = loop().time()
    spec = await together(Server(describes_after_s=60), Server()).read_spec(SPEC.name)
    assert spec.instances == SPEC.instances
    assert loop().time() - began == pytest.approx(OTHERS_S)


@in_virtual_time
async def test_servers_with_different_models_are_refused() -> None:
    inputs = {name: tensor for name, tensor in SPEC.inputs.items() if name != "top_p"}
    whole = together(Server(), Server(spec=replace(SPEC, inputs=inputs)))
    with pytest.raises(ModelUnusable, match=r"at server-1:8000 .* than at server-0:8000"):
        await whole.read_spec(SPEC.name)


@pytest.mark.parametrize("change", [{"inputs": {}}, {"max_batch_size": 4}])
@in_virtual_time
async def test_a_server_that_comes_back_with_another_model_stays_out(change: dict[str, object]) -> None:
    changed, good = Server(gone=True, spec=replace(SPEC, **change)), Server()  # type: ignore[arg-type]  # by name
    whole = together(changed, good)
    await whole.read_spec(SPEC.name)
    changed.gone = False
    for _ in range(5):
        await asyncio.sleep(LONGEST_ASIDE_S)
        await asyncio.gather(call(whole), call(whole))
    assert changed.calls == []


@in_virtual_time
async def test_a_model_that_refuses_the_checks_prompt_may_try_a_users() -> None:
    picky, good = Server(gone=True, refuses=CANARY), Server()
    whole = together(picky, good)
    await whole.read_spec(SPEC.name)
    picky.gone = False
    await asyncio.sleep(LONGEST_ASIDE_S)
    await call(whole)
    await asyncio.sleep(0.01)
    await asyncio.gather(call(whole), call(whole))
    assert picky.prompts == 1


@in_virtual_time
async def test_closing_closes_every_client_and_the_checks() -> None:
    back, good = Server(gone=True, takes_s=60), Server()
    whole = together(back, good)
    await whole.read_spec(SPEC.name)
    back.gone = False
    await asyncio.sleep(LONGEST_ASIDE_S)
    await call(whole)
    await asyncio.sleep(0.01)
    assert back.running == 1
    assert back.takes_s > CHECK_S
    await whole.close()
    assert back.running == 0
    assert back.closed
    assert good.closed
