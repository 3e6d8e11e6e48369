"""Every way in which a call to Triton fails (tests/unit/triton/faults.py), through the whole path, in mid-stream.

A fault hits a burst of calls, or every call for a while. Either way nothing of it is the requests' fault: they
are answered in the end, each with its own answer, none is dead-lettered (but see `lasting`), and an attempt is counted
only where the call may have run. A request that is to blame gets its code, once others were answered, and hurts no neighbour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from promptbus.messages import ErrorCode
from promptbus_worker.triton import TritonClient
from tests.faults.whole_path import PARTITIONS, Line, eventually, line
from tests.fingerprint import fingerprint
from tests.unit.triton import faults
from tests.unit.triton.scripted_triton import (
    MAX_BATCH_SIZE,
    Received,
    Script,
    ScriptedTriton,
    behave,
)

REQUESTS = 240
BEGUN, LEFT = 40, 100
"""Mid-stream: that many are answered, and so many are not."""
BURST = 3
"""Calls that fail one after the other: bisecting a full batch of 8 does not get down to one request with fewer than 4."""
LASTING_S = 1.2
TIMEOUT_S = 1.0
AT_ONCE = 10
SLOTS = 4
"""Calls in flight: two for each of the server's two instances."""
SLOW = "[[slow:40]]"
"""What keeps the stream going for long enough."""

TRACEBACK = b'{"error": "ValueError: /models/gpt4_nano/1/model.py(12): execute"}'


def said(code: int, text: str) -> Script:
    return faults.status(code, b'{"error": "%b"}' % text.encode())


@dataclass(frozen=True)
class Fault:
    """`attempts`: the most that any request may have used up after a burst, its answer included.

    `bisected`: it can be one request's fault, so the worker looks for that one.
    """

    script: Script
    attempts: int
    bisected: bool = False


RAN = 2  # it may have run: an attempt is counted
DID_NOT_RUN = 1
FAULTS = {
    "silent": Fault(faults.silent, RAN),
    "dripping": Fault(faults.drip, RAN),
    "closed without a word": Fault(faults.disconnect, RAN),
    "reset": Fault(faults.reset, RAN),
    "a truncated body": Fault(faults.truncate, RAN),
    "bytes that are not HTTP": Fault(faults.not_http, RAN),
    "a proxy lost Triton": Fault(faults.status(502, faults.HTML), RAN),
    "a proxy did not wait": Fault(faults.status(504, faults.HTML), RAN),
    "a proxy knows no Triton": Fault(faults.status(503, faults.HTML), DID_NOT_RUN),
    "the queue is full": Fault(said(503, "Exceeds maximum queue size"), DID_NOT_RUN),
    "too long in the queue": Fault(said(503, "Request timeout expired"), DID_NOT_RUN),
    "too many requests": Fault(said(429, "slow down"), DID_NOT_RUN),
    "batch too large": Fault(
        said(400, "inference request batch-size must be <= 2"), DID_NOT_RUN, bisected=True
    ),
    "unknown model": Fault(said(404, "Request for unknown model"), DID_NOT_RUN),
    "credentials refused": Fault(said(401, "who are you"), DID_NOT_RUN),
    "the model raised": Fault(faults.status(500, TRACEBACK), DID_NOT_RUN, bisected=True),
    "500 in HTML": Fault(faults.status(500, faults.HTML), DID_NOT_RUN, bisected=True),
    "the model's process is dead": Fault(
        said(500, "Stub process 'gpt4_nano_0_0' is not healthy."), DID_NOT_RUN
    ),
    **{
        name: Fault(faults.raw(answer), DID_NOT_RUN, bisected=True)
        for name, answer in faults.BAD_ANSWERS.items()
    },
}


@asynccontextmanager
async def scripted(**settings: object) -> AsyncIterator[tuple[ScriptedTriton, Line]]:
    """The whole path before a server that fails as it is told."""
    async with (
        ScriptedTriton() as server,
        aclosing(_Closing(server.url)) as triton,
        line(triton, **settings) as made,
    ):
        yield server, made


class _Closing(TritonClient):
    aclose = TritonClient.close


async def answered(made: Line, name: str, attempts: int | None, charged: int = 0) -> None:
    """Wait for all, and hold the account against what was asked. `charged`: the most that may have got an error."""
    await eventually(f"{name}: all are answered", lambda: made.settled >= len(made.asked))
    assert await made.stop()
    assert made.stopped == []
    account = await made.account()
    assert set(account.codes) <= {"ok", ErrorCode.MODEL_ERROR, ErrorCode.BAD_MODEL_OUTPUT}
    assert account.dead_letters == len(made.asked) - account.codes["ok"] <= charged
    account.right(made, lambda prompt: f"[{fingerprint(prompt.encode())}]")
    assert account.repeated == []
    assert account.uncommitted == 0
    if attempts is not None:
        assert max(reply.attempts for reply in account.first.values()) <= attempts


async def mid_stream(made: Line, name: str) -> None:
    await made.ask(REQUESTS, SLOW)
    await made.start()
    await eventually(f"{name}: {BEGUN} are answered", lambda: made.settled >= BEGUN)
    while len(made.asked) - made.settled < LEFT:  # on a busy machine it went on while nobody looked
        await made.ask(REQUESTS, SLOW)


def on_others(script: Script) -> Script:
    """What a request may have used up is exact only if none is hit twice: which calls come next is the worker's affair."""
    hit: set[bytes] = set()

    async def on_fresh(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
        if hit.isdisjoint(request.prompts):
            hit.update(request.prompts)
            await script(server, request, writer)
        else:
            server.scripts.append(on_fresh)
            await behave(server, request, writer)

    return on_fresh


async def burst(name: str) -> None:
    fault = FAULTS[name]
    script = on_others(fault.script) if fault.attempts == RAN else fault.script
    async with scripted(triton_timeout_s=TIMEOUT_S) as (server, made):
        await mid_stream(made, name)
        server.scripts.extend([script] * BURST)
        await eventually(f"{name}: all of the burst fires", lambda: not server.scripts)
        await made.ask(20)
        await answered(made, name, fault.attempts)


async def lasting(name: str) -> None:
    fired = 0

    async def counted(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal fired
        fired += 1
        await FAULTS[name].script(server, request, writer)

    async with scripted(triton_timeout_s=TIMEOUT_S) as (server, made):
        await mid_stream(made, name)
        server.scripts.extend([counted] * 100_000)
        until = time.monotonic() + LASTING_S
        await eventually(f"{name}: it fires again and again", lambda: fired > BURST)
        await eventually(f"{name}: it lasts", lambda: time.monotonic() > until)
        server.scripts.clear()
        # Whoever failed alone just before, while the rest of its batch is answered just after, looks guilty (rule 9):
        # at most what was in flight when the model got well again.
        in_flight = SLOTS * MAX_BATCH_SIZE if FAULTS[name].bisected else 0
        await answered(made, name, None, charged=in_flight)


async def all_of(run: Callable[[str], Awaitable[None]]) -> None:
    """Every fault, some at once; fails with all that failed, by name."""
    some = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with some:
            await run(name)

    outcomes = await asyncio.gather(*(one(name) for name in FAULTS), return_exceptions=True)
    failed = {name: o for name, o in zip(FAULTS, outcomes, strict=True) if isinstance(o, BaseException)}
    assert failed == {}


async def test_a_burst_of_any_failure_costs_no_request_anything() -> None:
    await all_of(burst)


async def test_any_failure_that_lasts_for_a_while_costs_no_answer() -> None:
    await all_of(lasting)


async def test_a_triton_that_is_gone_for_a_while_costs_no_request_anything() -> None:
    async with scripted() as (server, made):
        await mid_stream(made, "gone")
        await server.stop()
        await eventually(
            "the breaker opens", lambda: made.metrics.retries_total["connection"]._value.get() > 0
        )
        await eventually(
            "the partitions are paused",
            lambda: made.metrics.paused_partitions._value.get() == PARTITIONS,
        )
        await made.ask(20)
        await server.start()
        # What was in flight when the connections broke may have run; what was refused did not.
        await answered(made, "gone", RAN)


GUILTY = {
    "[[fail]]": ErrorCode.MODEL_ERROR,
    "[[no-output]]": ErrorCode.BAD_MODEL_OUTPUT,
    "[[wrong-rows]]": ErrorCode.BAD_MODEL_OUTPUT,
    "[[bad-utf8]]": ErrorCode.BAD_MODEL_OUTPUT,
    "[[hang]]": ErrorCode.INFERENCE_TIMEOUT,
}


async def hang_on(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """As the canned model, but one prompt makes every call hang."""
    hangs = any(b"[[hang]]" in prompt for prompt in request.prompts)
    await (faults.silent if hangs else behave)(server, request, writer)


async def guilty(prompt: str, code: ErrorCode) -> None:
    async with scripted(triton_timeout_s=TIMEOUT_S) as (server, made):
        server.scripts.extend([hang_on] * 100_000)
        await mid_stream(made, prompt)
        (to_blame,) = await made.ask(1, prompt)
        await made.ask(60, SLOW)
        await eventually(f"{prompt}: all are answered", lambda: made.settled >= len(made.asked))
        assert await made.stop()
        account = await made.account()
        assert account.codes == {"ok": len(made.asked) - 1, code.value: 1}
        error = account.first[to_blame].error
        assert error is not None
        assert error.code == code
        assert "/models" not in error.message
        account.right(made, lambda prompt: f"[{fingerprint(prompt.encode())}]")
        assert account.repeated == []
        assert account.dead_letters == 1
        assert account.uncommitted == 0


async def test_a_prompt_that_is_to_blame_gets_its_code_and_hurts_no_neighbour() -> None:
    outcomes = await asyncio.gather(*(guilty(*case) for case in GUILTY.items()), return_exceptions=True)
    failed = {name: o for name, o in zip(GUILTY, outcomes, strict=True) if isinstance(o, BaseException)}
    assert failed == {}


GIVEN_UP = (ErrorCode.EXPIRED, ErrorCode.UNAVAILABLE)


async def test_deadlines_hold_while_triton_says_nothing() -> None:
    """Each member of a batch is answered at its own deadline while the call goes on."""
    async with scripted(triton_timeout_s=30.0) as (server, made):
        await mid_stream(made, "deadlines")
        server.scripts.extend([faults.silent] * 100)
        due = [("deadline", str(int(time.time() * 1000) + 1_500).encode())]
        late = await made.ask(20, headers=due)
        await eventually("the silence is heard", lambda: len(server.scripts) < 100)
        await eventually(
            "the late ones are answered",
            lambda: (
                sum(made.metrics.requests_total["gpt4_nano", code]._value.get() for code in GIVEN_UP) >= 20
            ),
            10,
        )
        server.scripts.clear()
        # The calls that hang are given up by the end of the test, and answered by the next worker.
        await made.stop(0.5)
        await made.start()
        await eventually("all are answered", lambda: made.settled >= len(made.asked))
        assert await made.stop()
        account = await made.account()
        assert {i for i, reply in account.first.items() if not reply.ok} == set(late)
