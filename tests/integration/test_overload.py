"""A Triton that is slow, then refuses everything for a while: the worker calls less at once, and burns nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.chaos.proxy import Proxies, Proxy
from tests.integration.system import Workers, eventually, system

BATCH, INSTANCES = 8, 2
START = 2 * INSTANCES
BATCH_S = 0.1
REQUESTS = 1200
"""7.5 s of work for both instances."""
SLOWER_S = 0.3
WITHIN_S = 90.0
"""Of one step, on a machine that is busy with other things."""


@pytest.fixture
def proxy(shared_triton: Triton) -> Iterator[Proxy]:
    """In front of the real Triton."""
    with Proxies() as proxies:
        made = proxies.add(http=True)
        made.target = int(shared_triton.url.rsplit(":", 1)[1])
        made.open()
        yield made


def limit(workers: Workers) -> float:
    return workers.metrics().get("promptbus_concurrency_limit", -1)


def test_a_triton_that_slows_down_and_then_refuses_everything_burns_no_request(
    shared_kafka: Kafka, proxy: Proxy, tmp_path: Path
) -> None:
    with system(shared_kafka, f"127.0.0.1:{proxy.port}", tmp_path) as whole:
        workers = whole.start().ready()
        assert limit(workers) == START
        whole.publish(
            [{"request_id": f"r{n}", "prompt": f"{n} [[slow:{BATCH_S * 1000:.0f}]]"} for n in range(REQUESTS)]
        )
        eventually("they are being answered", lambda: answered(workers) > BATCH, WITHIN_S)

        proxy.delay_s = SLOWER_S
        eventually("answers come late", lambda: proxy.delayed > 2 * START, WITHIN_S)
        proxy.delay_s = 0.0

        before = answered(workers)
        eventually("they come as before", lambda: answered(workers) > before + START * BATCH, WITHIN_S)
        assert answered(workers) < REQUESTS - 100, "the flood meets requests in flight"
        usual = limit(workers)
        proxy.refusing = True
        eventually("calls are refused", lambda: proxy.refused > 0, WITHIN_S)
        eventually("it calls less at once", lambda: 0 < limit(workers) < usual, WITHIN_S)
        eventually(
            "it pauses and probes", lambda: workers.metrics().get("promptbus_paused_partitions"), WITHIN_S
        )
        assert workers.metrics()["promptbus_breaker_open"] == 1
        assert workers.metrics()['promptbus_retries_total{reason="overloaded"}'] >= BATCH
        proxy.refusing = False
        eventually("it calls as many at once as before", lambda: limit(workers) >= START, WITHIN_S)

        replies = whole.collect(REQUESTS, WITHIN_S)
        assert replies.codes == {"ok": REQUESTS}
        assert {reply.attempts for reply in replies.first.values()} == {1}
        assert replies.repeated == []
        assert whole.all_dead_letters() == []
        samples = workers.metrics()
        assert samples["promptbus_breaker_open"] == 0
        assert samples["promptbus_paused_partitions"] == 0
        assert workers.terminate() == 0


def answered(workers: Workers) -> float:
    return workers.metrics().get('promptbus_requests_total{code="ok",model="gpt4_nano"}', 0)
