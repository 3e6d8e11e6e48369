"""What the limiter is told of Triton's queue, and when Triton is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from promptbus_worker.limiter import Limiter, Load
from promptbus_worker.model import ModelStatistics
from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.triton_load import ASK_EVERY_S, Reading, TritonLoad, Window
from tests.unit.worker.path import FakeModel
from tests.unit.worker.virtual_time import in_virtual_time, loop

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
    assert read([first, second]) == [None, (Load(running=3.0, waiting=1.5, own=1.5), 10.0)]


def test_several_servers_are_added_up() -> None:
    first = reading(10.0, (0, 0, 0), (7, 7 * S, 7 * S))
    second = reading(11.0, (10, 1 * S, 2 * S), (17, 7 * S, 9 * S))
    assert read([first, second])[1] == (Load(running=4.0, waiting=1.0, own=0.0), 10.0)


def test_a_server_that_was_not_heard_of_before_counts_from_then_on() -> None:
    first, second = reading(10.0, (0, 0, 0)), reading(11.0, (10, 0, 2 * S), (900, 0, 900 * S))
    assert read([first, second])[1] == (Load(running=2.0, waiting=0.0, own=0.0), 10.0)


@pytest.mark.parametrize("too_early", [(3, 0, 1 * S), (4, 2 * S, 0.4 * S)], ids=["few", "long"])
def test_a_window_lasts_two_rounds_of_calls_and_has_four_of_them(too_early: Counted) -> None:
    readings = [reading(10.0, (0, 0, 0)), reading(11.0, too_early), reading(14.0, (40, 4 * S, 8 * S))]
    assert read(readings) == [None, None, (Load(running=2.0, waiting=1.0, own=0.0), 10.0)]


def test_a_server_that_was_started_again_begins_a_new_window() -> None:
    readings = [
        reading(10.0, (100, 9 * S, 9 * S)),
        reading(11.0, (1, 0, 1 * S)),
        reading(12.0, (11, 1 * S, 3 * S)),
    ]
    assert read(readings) == [None, None, (Load(running=2.0, waiting=1.0, own=0.0), 11.0)]


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


@in_virtual_time
async def test_triton_is_asked_only_while_the_limit_is_in_use() -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = TritonLoad(model, None, {"gpt4_nano": limiter}, loop().time)
    load.start()
    for number in range(40):
        limiter.began(loop().time(), 4 if number < 20 else 3)
        await asyncio.sleep(ASK_EVERY_S / 4)
    await load.stop()
    assert [at - 1000 for at in model.at] == [1, 2, 3, 4, 5]


@in_virtual_time
async def test_a_fixed_limit_needs_no_news() -> None:
    model, limiter = Asked(), Limiter(4, 4, 4)
    load = TritonLoad(model, None, {"gpt4_nano": limiter}, loop().time)
    load.start()
    limiter.began(loop().time(), 4)
    await asyncio.sleep(3)
    await load.stop()
    assert model.at == []


@in_virtual_time
async def test_a_triton_that_does_not_tell_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model, limiter = Asked(), Limiter(4, 1, 32)
    load = TritonLoad(model, None, {"gpt4_nano": limiter}, loop().time)
    load.start()
    with caplog.at_level(logging.WARNING):
        for error in (
            CallError(CallFailure.REFUSED, "nobody is there"),
            CallError(CallFailure.FORBIDDEN, "not for you", status=403),
        ):
            model.error = error
            for _ in range(3):
                limiter.began(loop().time(), 4)
                await asyncio.sleep(ASK_EVERY_S)
        await asyncio.sleep(ASK_EVERY_S / 2)
    await load.stop()
    assert len(model.at) == 6, "it may tell later"
    (line,) = [record for record in caplog.records if "does not tell" in record.message]
    assert "not for you" in str(line.__dict__["error"])
    assert limiter.limit == 4
