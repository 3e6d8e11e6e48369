"""A model that only makes dead letters is hardly called any more, until it answers again."""

from __future__ import annotations

import asyncio
from collections import Counter

from promptbus_worker.dead_letter_budget import IN_A_ROW, TRY_EVERY_S
from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import in_virtual_time


def ids(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@in_virtual_time
async def test_a_model_that_only_makes_dead_letters_does_not_empty_the_topic() -> None:
    path = Path(concurrency=2)
    names = ids(1000)
    path.model.bad_rows.update(names)
    path.ask(*names)
    await asyncio.sleep(29)
    assert path.held[-1], "there is no use in fetching more"
    first = len(path.dead_letters())
    assert IN_A_ROW <= first <= IN_A_ROW + 2 * 8, "those in a row, and what was in flight"
    await asyncio.sleep(TRY_EVERY_S * 3)
    assert first + 3 * 8 - 1 <= len(path.dead_letters()) <= first + 4 * 8, "a batch every 30 s"
    path.model.bad_rows.clear()
    await path.settle(1000, within_s=TRY_EVERY_S + 60)
    codes = Counter(path.codes().values())
    assert codes["ok"] == 1000 - len(path.dead_letters())
    assert not path.held[-1]


@in_virtual_time
async def test_what_senders_do_wrong_does_not_count_against_the_budget() -> None:
    path = Path()
    path.publish(*[b"not a request"] * 300)
    path.ask("good")
    await path.settle(301, within_s=5)
    assert path.codes()["good"] == "ok"
    assert len(path.dead_letters()) == 300


@in_virtual_time
async def test_a_trial_without_anything_waiting_fetches_more() -> None:
    path = Path(concurrency=1)
    names = ids(IN_A_ROW)
    path.model.bad_rows.update(names)
    path.ask(*names)
    await path.settle(IN_A_ROW)
    await asyncio.sleep(1)
    assert path.held[-1]
    await asyncio.sleep(TRY_EVERY_S)
    assert not path.held[-1]
    path.ask(*ids(20, "later"))
    await path.settle(IN_A_ROW + 20, within_s=10)
