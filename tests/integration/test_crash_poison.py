"""A prompt that kills the worker process itself: its neighbours are answered, and it is given up after a few crashes."""

from __future__ import annotations

import json

from tests.integration.account import Account
from tests.integration.system import System

# The worker, with an adapter for the model that dies of one prompt, as a defect in a native library would make it.
DIES_OF_POISON = """
import os, sys
from promptbus_worker import worker

class Client(worker.TritonClient):
    async def infer(self, spec, batch, timeout_s):
        if any(b"poison" in inputs["prompt"] for inputs in batch):
            os.abort()
        return await super().infer(spec, batch, timeout_s)

worker.TritonClient = Client
sys.exit(worker.main())
"""


def test_a_prompt_that_kills_the_worker_is_given_up_and_its_neighbours_are_answered(whole: System) -> None:
    account = Account(whole)
    account.publish(200)
    whole.publish([{"request_id": "deadly", "prompt": "poison"}], headers=[("request-id", b"deadly")])
    account.publish(200)
    workers = whole.start(DIES_OF_POISON, WORKER_PROCESSES="2").ready()
    replies = whole.collect(401, within_s=180)
    assert replies.codes == {"ok": 400, "internal": 1}
    (reply,) = replies.by_id.pop("deadly")
    assert reply.error is not None
    assert reply.error.code == "internal"
    account.check(replies)
    (dead,) = whole.dead_letters(1)
    assert dead.headers["dlq-reason"] == b"internal"
    assert json.loads(dead.value or b"") == {"request_id": "deadly", "prompt": "poison"}
    assert workers.metrics()["promptbus_worker_restarts_total"] <= 4, "one among others, and three alone"
    assert workers.terminate() == 0
