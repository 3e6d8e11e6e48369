"""Three times as many requests as the model can answer, most of them with a deadline: no call is spent on nobody."""

from __future__ import annotations

import asyncio
import json

from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import in_virtual_time, loop

CALL_S, BATCH = 0.15, 8
CAPACITY = BATCH / CALL_S
SLOTS = 4
"""Calls at once, for one instance: so each takes four times as long."""
DEADLINE_S, SECONDS = 3.0, 30.0


@in_virtual_time
async def test_overload_with_deadlines_uses_the_whole_capacity_for_answers_in_time() -> None:
    path = Path(concurrency=SLOTS)
    path.model.latency_s = CALL_S
    path.model.occupy(1, {})
    began, number, owed = loop().time(), 0, 0.0
    while (now := loop().time()) < began + SECONDS:
        owed += 3 * CAPACITY * 0.01
        while owed >= 1:
            owed -= 1
            number += 1
            patient = number % 4 == 0
            headers = None if patient else [("deadline", b"%d" % ((now + DEADLINE_S) * 1000))]
            name = f"r{number}"
            path.publish(json.dumps({"request_id": name, "prompt": name}).encode(), headers=headers)
        await asyncio.sleep(0.01)
    assert set(path.codes().values()) == {"ok", "expired"}
    under_way = (SLOTS + 1) * CALL_S
    assert list(path.codes().values()).count("ok") >= CAPACITY * (SECONDS - under_way)
    await path.settle(number)
    assert all(code == "ok" for name, code in path.codes().items() if int(name[1:]) % 4 == 0)
