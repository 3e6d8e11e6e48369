"""One transaction at a time: what each error makes of it, and of the producer."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from promptbus_worker import kafka, transactions
from promptbus_worker.kafka_outcomes import TransactionAction, transaction_verdict
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Pending, Record
from promptbus_worker.reply_records import Outgoing
from promptbus_worker.settings import Settings
from promptbus_worker.transactional_commits import generation
from promptbus_worker.transactions import Ended, Result, Transactions
from tests.unit.worker.fake_consumer import FakeClock, Group
from tests.unit.worker.fake_transactions import (
    ABORTABLE,
    FENCED,
    TIMED_OUT,
    FakeBrokers,
    Fault,
    transaction_error,
)

MEMBER = b"CGMDv2:\1\0\0\0g\0\0\1"
BUDGET_S = 5.0
LATE = Fault(error=TIMED_OUT, done=False)
DONE_BUT_LATE = Fault(error=TIMED_OUT)


class Rig:
    """Transactions of three records and one offset, by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.brokers = FakeBrokers(Group())
        self.stopped: list[tuple[str, bool]] = []
        self.transactions: Transactions = self.brokers.transactions(
            self.clock, lambda reason, restart: self.stopped.append((reason, restart))
        )

    def run(self, values: Iterable[bytes] = (b"a", b"b", b"c"), metadata: bytes | None = MEMBER) -> Result:
        ownership = Ownership("requests", 0, 1)
        records = []
        for offset, value in enumerate(values):
            record = Record(ownership, offset, 0, None, b"", None, 0, 0.0)
            records.append(
                Outgoing(Pending(record, "id", "reply", "results"), "results", None, value, [], False)
            )
        offsets = [TopicPartition("requests", 0, 3, "pb1:x")]
        return self.transactions.run(records, offsets, lambda: metadata, BUDGET_S)

    def nothing_is_committed(self) -> None:
        assert self.brokers.visible == []
        assert self.brokers.group.committed == {}

    @property
    def committed(self) -> tuple[int | None, list[bytes]]:
        return self.brokers.group.committed.get(0), self.brokers.visible


def assert_true(value: bool) -> None:
    assert value


def ready() -> Rig:
    rig = Rig()
    assert rig.transactions.ready()
    return rig


def test_records_and_offsets_are_seen_together_and_are_flushed_before_the_offsets_go() -> None:
    rig = ready()
    assert rig.run() == Result(Ended.COMMITTED, [])
    assert rig.committed == (3, [b"a", b"b", b"c"])
    assert rig.brokers.group.metadata[0] == "pb1:x"
    assert rig.brokers.producers[0].calls == [
        "init_transactions",
        "begin_transaction",
        "flush",
        "send_offsets_to_transaction",
        "commit_transaction",
    ]


@pytest.mark.parametrize("fault", [LATE, DONE_BUT_LATE], ids=["not done", "done"])
def test_a_commit_without_an_answer_is_asked_for_again_and_nothing_else(fault: Fault) -> None:
    rig = ready()
    rig.brokers.faults["commit_transaction"].append(fault)
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])
    assert "abort_transaction" not in rig.brokers.producers[0].calls
    # Its first request may still be on its way: no later transaction may meet it.
    assert rig.transactions.ready()
    assert len(rig.brokers.producers) == 2


def test_a_commit_that_is_never_answered_leaves_it_to_a_new_producer() -> None:
    rig = ready()
    rig.brokers.faults["commit_transaction"].extend([LATE] * 100)
    began = rig.clock.now
    assert rig.run().ended is Ended.UNKNOWN
    assert rig.clock.now - began <= 7
    assert "abort_transaction" not in rig.brokers.producers[0].calls, "it may be committed"
    rig.brokers.faults["init_transactions"].append(LATE)
    assert not rig.transactions.ready(), "and what the old one left is not resolved before that one is ready"
    assert rig.brokers.group.unstable == {0}
    rig.brokers.faults["commit_transaction"].clear()
    assert rig.transactions.ready()
    assert len(rig.brokers.producers) == 2
    assert rig.brokers.visible == []
    assert rig.run().ended is Ended.COMMITTED
    assert rig.stopped == []


@pytest.mark.parametrize("operation", ["send_offsets_to_transaction", "commit_transaction"])
def test_an_error_that_requires_it_aborts_and_the_producer_goes_on(operation: str) -> None:
    rig = ready()
    rig.brokers.faults[operation].append(Fault(error=ABORTABLE, done=False))
    assert rig.run() == Result(Ended.ABORTED, [], "ILLEGAL_GENERATION")
    rig.nothing_is_committed()
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])
    assert len(rig.brokers.producers) == 1
    assert rig.stopped == []


@pytest.mark.parametrize("operation", ["flush", "send_offsets_to_transaction"])
def test_what_cannot_be_written_in_time_is_aborted(operation: str) -> None:
    rig = ready()
    rig.brokers.faults[operation].extend([Fault(error=TIMED_OUT, done=False)] * 100)
    assert rig.run().ended is Ended.ABORTED
    rig.brokers.faults[operation].clear()
    assert rig.transactions.ready()
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])


def test_an_abort_that_is_never_answered_is_left_to_a_new_producer() -> None:
    rig = ready()
    rig.brokers.faults["send_offsets_to_transaction"].append(Fault(error=ABORTABLE, done=False))
    rig.brokers.faults["abort_transaction"].extend([LATE] * 100)
    assert rig.run().ended is Ended.ABORTED
    assert rig.transactions.ready()
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])
    assert len(rig.brokers.producers) == 2


@pytest.mark.parametrize(
    ("operation", "error", "restart"),
    [
        ("commit_transaction", FENCED, True),
        ("send_offsets_to_transaction", transaction_error("_STATE"), True),
        ("begin_transaction", FENCED, True),
        ("commit_transaction", transaction_error("TOPIC_AUTHORIZATION_FAILED", fatal=True), False),
        (
            "send_offsets_to_transaction",
            transaction_error("GROUP_AUTHORIZATION_FAILED", requires_abort=True),
            False,
        ),
    ],
)
def test_what_this_producer_cannot_mend_stops_the_worker(
    operation: str, error: KafkaError, restart: bool
) -> None:
    rig = ready()
    rig.brokers.faults[operation].append(Fault(error=error, done=False))
    assert rig.run().ended is not Ended.COMMITTED
    assert [may for _, may in rig.stopped] == [restart]
    assert not rig.transactions.ready()
    rig.nothing_is_committed()


def test_a_missing_right_for_the_transactional_id_is_named() -> None:
    rig = Rig()
    error = transaction_error("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", fatal=True)
    rig.brokers.faults["init_transactions"].append(Fault(error=error, done=False))
    assert not rig.transactions.ready()
    ((reason, restart),) = rig.stopped
    assert "transactional id" in reason
    assert not restart


def test_a_missing_right_is_the_reason_even_if_the_abort_fails_as_well() -> None:
    rig = ready()
    denied = transaction_error("GROUP_AUTHORIZATION_FAILED", requires_abort=True)
    unable = transaction_error("INVALID_TXN_STATE", fatal=True)
    rig.brokers.faults["send_offsets_to_transaction"].append(Fault(error=denied, done=False))
    rig.brokers.faults["abort_transaction"].append(Fault(error=unable, done=False))
    assert rig.run().ended is Ended.ABORTED
    ((reason, restart),) = rig.stopped
    assert "READ on the group" in reason
    assert not restart


def test_records_that_are_too_large_are_named_and_nothing_is_committed() -> None:
    rig = ready()
    rig.brokers.refuse = lambda topic, value: "MSG_SIZE_TOO_LARGE" if value == b"b" else None
    result = rig.run()
    assert result.ended is Ended.ABORTED
    assert [outgoing.value for outgoing in result.refused] == [b"b"]
    assert rig.run([b"a", b"c"]).ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"c"])


def test_a_missing_right_for_a_topic_stops() -> None:
    rig = ready()
    rig.brokers.refuse = lambda topic, value: "TOPIC_AUTHORIZATION_FAILED"
    assert rig.run().ended is Ended.ABORTED
    ((reason, restart),) = rig.stopped
    assert "WRITE" in reason
    assert not restart


@pytest.mark.parametrize("late", ["before the next producer is ready", "after it"])
def test_a_producer_that_does_not_come_back_with_its_offsets_is_given_up(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = ready()
    monkeypatch.setattr(transactions, "OVERDUE_S", 0.05 - BUDGET_S * transactions.TO_WRITE)
    broker_is_back = threading.Event()
    fault = Fault(before=lambda: assert_true(broker_is_back.wait(30)))
    rig.brokers.faults["send_offsets_to_transaction"].append(fault)
    before = set(threading.enumerate())
    assert rig.run() == Result(Ended.ABORTED, [], "_TIMED_OUT")
    rig.nothing_is_committed()
    (waiting,) = set(threading.enumerate()) - before
    if late.startswith("before"):
        broker_is_back.set()
        waiting.join()
    assert rig.transactions.ready()
    broker_is_back.set()
    waiting.join()
    assert rig.brokers.producers[0].calls[-1] == "send_offsets_to_transaction", "it takes no other call"
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])
    assert len(rig.brokers.producers) == 2
    assert rig.stopped == []


def test_a_full_queue_is_waited_for() -> None:
    rig = ready()
    rig.brokers.queue_size = 1
    assert rig.run().ended is Ended.COMMITTED
    assert rig.committed == (3, [b"a", b"b", b"c"])


def test_a_transaction_that_takes_no_more_records_is_aborted() -> None:
    rig = ready()
    rig.brokers.queue_size = 1
    rig.brokers.refuse = lambda topic, value: "_MSG_TIMED_OUT"
    assert rig.run() == Result(Ended.ABORTED, [], "_STATE")
    rig.brokers.refuse = lambda topic, value: None
    assert rig.run().ended is Ended.COMMITTED
    assert rig.stopped == []


def test_one_that_is_no_member_commits_nothing() -> None:
    rig = ready()
    assert rig.run(metadata=None).ended is Ended.ABORTED
    rig.nothing_is_committed()


@pytest.mark.parametrize("fatal", [False, True])
@pytest.mark.parametrize("requires_abort", [False, True])
@pytest.mark.parametrize("retriable", [False, True])
def test_flags_decide(fatal: bool, requires_abort: bool, retriable: bool) -> None:
    action = transaction_verdict(fatal=fatal, requires_abort=requires_abort, retriable=retriable)
    if fatal or not (requires_abort or retriable):
        assert action is TransactionAction.STOP
    else:
        assert action is (TransactionAction.ABORT if requires_abort else TransactionAction.RESUME)


def test_the_real_client_tells_the_generation_and_none_outside_of_a_group() -> None:
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
    assert generation(consumer.consumer_group_metadata()) == -1
    consumer.close()
    assert generation(MEMBER) == 1
    with pytest.raises(ValueError, match="not understood"):
        generation(b"CGMDv9:")


def test_the_id_is_the_slots_own_and_librdkafka_takes_the_rest() -> None:
    settings = Settings(
        _env_file=None,
        worker_instance="pod-3",
        worker_delivery="transactional",
        kafka_client={"socket_timeout_ms": "60000"},
    )
    config = kafka.transactional_config(settings, f"{settings.instance}-1", [1_048_588])
    assert config["transactional.id"] == "promptbus-pod-3-1"
    assert cast(int, config["transaction.timeout.ms"]) == 10_000
    assert Producer(config).flush(0) == 0
    assert Settings(_env_file=None, kafka_session_timeout_ms=6_000).transaction_timeout_ms == 6_000
