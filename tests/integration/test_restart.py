"""A restart repeats nothing that was settled and committed, however much of it lies above an unsettled offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.account import Account, offsets_reader, uncommitted
from tests.integration.system import System, eventually, system

LATER = int(os.environ.get("RESTART_REQUESTS", "1000"))
"""Requests settled above the slow one. With more of them, RESTART_SLOW_MS has to grow as well."""
SLOW_MS = int(os.environ.get("RESTART_SLOW_MS", "8000"))
SKIPPED = "promptbus_redeliveries_skipped_total"


@pytest.fixture
def one_partition(shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """One partition on the shared servers."""
    with system(shared_kafka, shared_triton, tmp_path, partitions=1) as made:
        yield made


def committed(whole: System) -> TopicPartition:
    """The group's commit of the only partition."""
    with offsets_reader(whole) as consumer:
        (partition,) = consumer.committed([TopicPartition(whole.requests, 0)], 20)
        return partition


def test_what_was_settled_behind_a_slow_request_is_not_answered_again_after_a_kill(
    one_partition: System,
) -> None:
    whole = one_partition
    account = Account(whole)
    workers = whole.start(TRITON_TIMEOUT_S=str(SLOW_MS / 1000 + 30)).ready()
    account.publish(1, f"[[slow:{SLOW_MS}]]")
    eventually("the slow one is in flight", lambda: workers.metrics()["promptbus_in_flight_requests"] == 1)
    account.publish(LATER)
    eventually("only the slow one is unsettled", lambda: uncommitted(whole) == 1, SLOW_MS / 1000)
    assert committed(whole).offset == 0
    workers.kill()
    restarted = whole.start(TRITON_TIMEOUT_S=str(SLOW_MS / 1000 + 30)).ready()
    replies = account.settle(within_s=SLOW_MS / 1000 + 60)
    assert replies.repeated == []
    assert restarted.metrics()[SKIPPED] == LATER
    assert (committed(whole).offset, committed(whole).metadata) == (LATER + 1, "")


def test_text_of_others_in_the_metadata_is_ignored(one_partition: System) -> None:
    whole = one_partition
    account = Account(whole)
    account.publish(20)
    with offsets_reader(whole) as consumer:
        by_hand = TopicPartition(whole.requests, 0, 5, "moved by hand, see ticket 7")
        consumer.commit(offsets=[by_hand], asynchronous=False)
    workers = whole.start().ready()
    answered = whole.collect(15).by_id
    assert sorted(answered) == sorted(f"r{number}" for number in range(6, 21))
    eventually("all is committed", lambda: committed(whole).offset == 20)
    assert workers.metrics()[SKIPPED] == 0
