"""Requests in, replies out, on real Kafka and real Triton."""

from __future__ import annotations

from tests.integration.system import System, eventually


def test_each_request_gets_its_own_answer(whole: System) -> None:
    ids = [f"r{number}" for number in range(500)]
    workers = whole.start().ready()
    whole.ask(ids)
    replies = whole.collect(500)
    assert replies.codes == {"ok": 500}
    assert replies.repeated == []
    eventually("all offsets are committed", lambda: whole.committed() == 500)
    metrics = workers.metrics()
    assert metrics['promptbus_requests_total{code="ok",model="gpt4_nano"}'] == 500
    assert workers.terminate() == 0
