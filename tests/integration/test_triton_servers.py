"""Two Tritons in TRITON_URL: both work, and either may break without a prompt paying for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.loopback import http_get
from stack.triton import Triton
from tests.integration.account import Account, answered, dead_letters, holding
from tests.integration.system import System, Workers, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second from each server
SETS_ASIDE, USES_AGAIN = "a Triton server is set aside", "a Triton server is used again"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Triton, Triton]]:
    prompts = {"GPT4_NANO_TEST_PROMPTS": "1"}
    with Triton(engine="canned", env=prompts) as one, Triton(engine="canned", env=prompts) as other:
        yield one, other


@pytest.fixture
def doubled(shared_kafka: Kafka, both: tuple[Triton, Triton], tmp_path: Path) -> Iterator[System]:
    with system(shared_kafka, ",".join(triton.url for triton in both), tmp_path) as made:
        yield made


def inferences(triton: Triton) -> float:
    """Prompts that it has answered."""
    answer = http_get(int(triton.metrics_url.split(":")[2].split("/")[0]), "/metrics")
    assert answer is not None
    lines = answer.body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_count{"))


def says(workers: Workers, words: str) -> bool:
    return words in workers.log.read_text()


def test_one_of_two_servers_is_killed_and_comes_back(doubled: System, both: tuple[Triton, Triton]) -> None:
    one, other = both
    account = Account(doubled)
    workers = doubled.start().ready()
    account.publish(800, SLOW)
    answered(doubled, 100)
    assert inferences(one) > 20
    assert inferences(other) > 20
    holding(100, workers)
    one.kill()
    eventually("the dead server is set aside", lambda: says(workers, SETS_ASIDE))
    replies = account.settle()
    assert replies.codes == {"ok": 800}
    assert dead_letters(doubled) == 0

    one.start()
    eventually("the server is used again", lambda: serves_again(account, workers))
    account.publish(200, SLOW)
    assert account.settle().codes["ok"] == len(account)
    assert inferences(one) > 20
    assert workers.terminate() == 0


def test_a_server_with_dead_stubs_makes_no_prompt_look_bad(
    doubled: System, both: tuple[Triton, Triton]
) -> None:
    one, other = both
    account = Account(doubled)
    workers = doubled.start().ready()
    account.publish(600, SLOW)
    answered(doubled, 50)
    holding(100, workers)
    assert one.kill_stubs() == 2
    eventually("the server with dead stubs is set aside", lambda: says(workers, SETS_ASIDE))
    assert account.settle().codes == {"ok": 600}
    assert dead_letters(doubled) == 0
    assert one.ready  # which is what makes it hard to see
    assert inferences(other) > 0
    assert workers.terminate() == 0
    one.kill()
    one.start()


def serves_again(account: Account, workers: Workers) -> bool:
    """Traffic is what has it looked at."""
    account.publish(1)
    return says(workers, USES_AGAIN)
