"""What the limiter is told of Triton's queue, and when Triton is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from promptbus_worker.limiter import Limiter, Load
from promptbus_worker.model import ModelStatistics
from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.triton_load import ASK_EVERY_S, FAILURES, Reading, TritonLoad, Window
from tests.unit.worker.path import SPEC, FakeModel
from tests.unit.worker.virtual_time import in_virtual_time, loop, run

S = 1_000_000_000
Counted = tuple[int, int, int]


def reading(at: float, *servers: Counted, calls_s: float = 0.0) -> Reading:
    return Reading(
        at, calls_s, {f"server-{n}": ModelStatistics(*counted) for n, counted in enumerate(servers)}
    )


def read(readings: Iterable[Reading]) -> list[tuple[Load, float] | None]:
    window = Window()
    return [window.read(one) for one in readings]


def test_seconds_by_seconds_are_calls_at_once() -> None:
    first, second = (
        reading(10.0, (5, 1 * S, 2 * S), calls_s=4.0),
        reading(12.0, (25, 4 * S, 8 * S), calls_s=7.0),
    )
    assert read([first, second]) == [None, (Load(running=3.0, waiting=1.5, own=1.5, calls_per_s=10.0), 10.0)]


def test_several_servers_are_added_up() -> None:
    first = reading(10.0, (0, 0, 0), (7, 7 * S, 7 * S))
    second = reading(11.0, (10, 1 * S, 2 * S), (17, 7 * S, 9 * S))
    assert read([first, second])[1] == (Load(running=4.0, waiting=1.0, own=0.0, calls_per_s=20.0), 10.0)


def test_a_server_that_was_not_heard_of_before_counts_from_then_on() -> None:
    first, second = reading(10.0, (0, 0, 0)), reading(11.0, (10, 0, 2 * S), (900, 0, 900 * S))
    assert read([first, second])[1] == (Load(running=2.0, waiting=0.0, own=0.0, calls_per_s=10.0), 10.0)


@pytest.mark.parametrize("too_early", [(3, 0, 1 * S), (4, 2 * S, 0.4 * S)], ids=["few", "long"])
def test_a_window_lasts_two_rounds_of_calls_and_has_four_of_them(too_early: Counted) -> None:
    readings = [reading(10.0, (0, 0, 0)), reading(11.0, too_early), reading(14.0, (40, 4 * S, 8 * S))]
    assert read(readings) == [None, None, (Load(running=2.0, waiting=1.0, own=0.0, calls_per_s=10.0), 10.0)]


def test_a_server_that_was_started_again_begins_a_new_window() -> None:
    readings = [
        reading(10.0, (100, 9 * S, 9 * S)),
        reading(11.0, (1, 0, 1 * S)),
        reading(12.0, (11, 1 * S, 3 * S)),
    ]
    assert read(readings) == [None, None, (Load(running=2.0, waiting=1.0, own=0.0, calls_per_s=10.0), 11.0)]


class Asked(FakeModel):
    """Notes when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self.error: CallError | None = None

    async def statistics(self, model: str, version: str | None = None) -> dict[str, ModelStatistics]:
        self.at.append(loop().time())
        if self.error is not None:
            raise self.error
        return await super().statistics(model, version)


def asking(model: FakeModel, limiter: Limiter, in_flight: int = 0) -> TritonLoad:
    limiters, specs = {SPEC.name: limiter}, {SPEC.name: SPEC}
    return TritonLoad(model, None, limiters, specs, lambda name: in_flight, loop().time)


@in_virtual_time
async def test_triton_is_asked_only_while_the_limit_is_in_use() -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = asking(model, limiter)
    load.start()
    for number in range(40):
        limiter.note(loop().time(), 4 if number < 20 else 3)
        await asyncio.sleep(ASK_EVERY_S / 4)
    await load.stop()
    assert [(at - 1000) / ASK_EVERY_S for at in model.at] == [1, 2, 3, 4, 5]


@in_virtual_time
async def test_a_fixed_limit_needs_no_news() -> None:
    model, limiter = Asked(), Limiter(4, 4, 4)
    load = asking(model, limiter)
    load.start()
    limiter.note(loop().time(), 4)
    await asyncio.sleep(3)
    await load.stop()
    assert model.at == []


@in_virtual_time
async def test_calls_that_take_longer_than_a_window_use_the_limit_all_the_time() -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = asking(model, limiter, in_flight=4)
    load.start()
    await asyncio.sleep(3.5 * ASK_EVERY_S)
    await load.stop()
    assert [(at - 1000) / ASK_EVERY_S for at in model.at] == [1, 2, 3]


@pytest.mark.parametrize(("calls_at_once", "limit"), [(16, 8), (17, 4)])
def test_more_calls_than_can_run_at_once_are_another_servers(calls_at_once: int, limit: int) -> None:
    """A balancer changed the server. 2 instances run at most 16 calls, of one request each."""

    async def body() -> None:
        model, limiter = Asked(), Limiter(4, 1, 32)
        load = asking(model, limiter, in_flight=4)
        load.start()
        await asyncio.sleep(1.5 * ASK_EVERY_S)
        model.counted = ModelStatistics(100, 0, round(calls_at_once * ASK_EVERY_S * S))
        await asyncio.sleep(ASK_EVERY_S)
        await load.stop()
        assert limiter.limit == limit

    run(body())


@in_virtual_time
async def test_a_triton_that_does_not_tell_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = asking(model, limiter, in_flight=4)
    load.start()
    model.error = CallError(CallFailure.FORBIDDEN, "not for you", status=403)
    with caplog.at_level(logging.WARNING):
        await asyncio.sleep((FAILURES - 0.5) * ASK_EVERY_S)
        assert caplog.records == [], "it may be passing"
        await asyncio.sleep(5 * ASK_EVERY_S)
    await load.stop()
    assert len(model.at) == FAILURES + 4, "it may tell later"
    (line,) = caplog.records
    assert "does not tell" in line.message
    assert "not for you" in str(line.__dict__["error"])
    assert limiter.limit == 4


@in_virtual_time
async def test_a_defect_is_logged_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = asking(model, limiter, in_flight=4)
    load.start()
    del model.counted
    await asyncio.sleep(1.5 * ASK_EVERY_S)
    model.counted = ModelStatistics(0, 0, 0)
    await asyncio.sleep(ASK_EVERY_S)
    model.counted = ModelStatistics(100, 0, round(4 * ASK_EVERY_S * S))
    await asyncio.sleep(ASK_EVERY_S)
    await load.stop()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert limiter.limit == 7
