"""A worker that leaves while the group rebalances. Its commits are refused then, and librdkafka may stay silent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, answered, holding, parts, shared
from tests.integration.system import CLASSIC, CONSUMER, System, eventually, system

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_while_the_group_rebalances_answers_none_twice(
    either_protocol: System, how: signal.Signals
) -> None:
    whole = either_protocol
    account = Account(whole)
    first = whole.start()
    second = whole.start()
    shared(whole, 2)
    account.publish(900, SLOW)
    answered(whole, 50)
    holding(100, first)
    joining = whole.start()
    rebalances = 'promptbus_rebalances_total{kind="revoke"}'
    eventually(
        "a rebalance is under way", lambda: (first.metrics()[rebalances] + second.metrics()[rebalances]) > 1
    )
    for each in (first, joining):
        each.process.send_signal(how)
    for each in (first, joining):
        assert each.process.wait(60) == 0
    assert account.settle().repeated == []


@pytest.mark.parametrize("protocol", [CLASSIC, CONSUMER])
def test_a_worker_without_partitions_is_ready_and_leaves_the_group(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path, protocol: str
) -> None:
    env = {"KAFKA_GROUP_PROTOCOL": protocol}
    with system(shared_kafka, shared_triton, tmp_path, partitions=1, env=env) as made:
        leaves(made)


def leaves(whole: System) -> None:
    workers = [whole.start(KAFKA_SESSION_TIMEOUT_MS="60000") for _ in range(2)]
    eventually("one has nothing", lambda: parts(whole) == [0, 1])
    (idle,) = (each for each in workers if each.ready().metrics()["promptbus_assigned_partitions"] == 0)
    assert idle.terminate() == 0
    eventually("it has left", lambda: parts(whole) == [1], 20)
