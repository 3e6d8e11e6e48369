"""The doctor's judgements, and its visits where little or nothing answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from promptbus.listener import Address, addresses_of
from promptbus.rights import Right
from promptbus_worker import doctor
from promptbus_worker.doctor_kafka import KafkaCheckup
from promptbus_worker.doctor_net import unreachable
from promptbus_worker.preflight import (
    Finding,
    Level,
    Partition,
    Position,
    Topic,
    judge_batch_size,
    judge_clock,
    judge_missing_topic,
    judge_parallelism,
    judge_partitions,
    judge_positions,
    judge_replication,
    judge_rights,
    judge_sizes,
    new_topic_config,
)
from promptbus_worker.settings import Settings
from tests.unit.worker.scripted import until


def settings(**more: object) -> Settings:
    return Settings(_env_file=None, **more)  # type: ignore[arg-type]  # pydantic takes and checks them


def topic(name: str = "t", partitions: int = 3, **more: object) -> Topic:
    return replace(
        Topic(
            name=name,
            partitions=[Partition(number, leader=1, replicas=3, in_sync=3) for number in range(partitions)],
            operations=None,
            max_message_bytes=2 << 20,
            min_in_sync=2,
        ),
        **more,  # type: ignore[arg-type]  # the test's own fields
    )


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


# -- judgements ------------------------------------------------------------------------------------------------------


def test_a_line_begins_with_the_level_and_says_how_to_mend_it() -> None:
    assert Finding(Level.OK, "all is well").line() == "ok    all is well"
    assert Finding(Level.FAIL, "no topic", "create it").line() == "FAIL  no topic — create it"


def test_a_missing_topic_comes_with_the_command_that_makes_it() -> None:
    finding = judge_missing_topic("t", 3, settings(kafka_bootstrap="k:9092", worker_processes=8))
    assert finding.level is Level.FAIL
    command = (
        "kafka-topics --bootstrap-server k:9092 --create --topic t --partitions 8 --replication-factor 3"
    )
    assert command in finding.mend
    assert "KAFKA_CREATE_TOPICS=true" in finding.mend
    assert judge_missing_topic("t", 3, settings(kafka_create_topics=True)).level is Level.OK


def test_a_new_dead_letter_topic_takes_the_largest_request_and_its_headers() -> None:
    config = new_topic_config("inference-requests.dlq", settings())
    limit = int(config["max.message.bytes"])
    made = {"inference-requests.dlq": topic("inference-requests.dlq", max_message_bytes=limit)}
    assert judge_sizes(made, settings()) == []
    assert new_topic_config("inference-requests", settings()) == {}
    finding = judge_missing_topic("inference-requests.dlq", 3, settings())
    assert f"--config max.message.bytes={config['max.message.bytes']};" in finding.mend


def test_partitions_without_leader_or_quorum_cannot_be_used() -> None:
    away = Partition(3, leader=None, replicas=3, in_sync=0)
    short = Partition(3, leader=1, replicas=3, in_sync=1)
    assert "partition 3" in judge_partitions(replace(topic(), partitions=[away]))[0].what
    (finding,) = judge_partitions(replace(topic(), partitions=[short]))
    assert finding.level is Level.FAIL
    assert "min.insync.replicas=2" in finding.what
    assert levels(judge_partitions(topic())) == [Level.OK]


def test_more_processes_than_partitions_is_worth_a_word() -> None:
    assert judge_parallelism(topic(), settings(worker_processes=3)) == []
    assert levels(judge_parallelism(topic(), settings(worker_processes=4))) == [Level.WARN]


def test_one_replica_or_one_in_sync_is_worth_a_word() -> None:
    one = [Partition(0, leader=1, replicas=1, in_sync=1)]
    assert judge_replication([topic()]) == []
    (finding,) = judge_replication([topic("a"), replace(topic("b"), partitions=one)])
    assert finding.what.startswith("b: one replica")
    assert "min.insync.replicas=1" in judge_replication([topic(min_in_sync=1)])[0].what


def test_sizes_are_compared_with_the_largest_request() -> None:
    names = ("inference-requests", "inference-results", "inference-requests.dlq")
    exact = {name: topic(name, max_message_bytes=1 << 20) for name in names}
    (finding,) = judge_sizes(exact, settings())
    assert finding.what.startswith("topic inference-requests.dlq"), "a dead letter is larger than its request"
    small = {name: topic(name, max_message_bytes=1000) for name in names}
    assert levels(judge_sizes(small, settings())) == [Level.WARN] * 3
    unknown = {name: topic(name, max_message_bytes=None) for name in names}
    assert judge_sizes(unknown, settings()) == []


def test_a_missing_right_fails_and_an_unknown_one_does_not() -> None:
    right, ours = Right("READ", "topic", "t"), settings(KAFKA_BOOTSTRAP="k:9092")
    assert judge_rights(right, frozenset({"READ"}), ours) == []
    assert judge_rights(right, None, ours) == []
    (finding,) = judge_rights(right, frozenset({"DESCRIBE"}), ours)
    assert finding.line() == (
        "FAIL  no right to READ on topic t — kafka-acls --bootstrap-server k:9092 --add "
        "--allow-principal User:ANONYMOUS --operation Read --topic t"
    )


@pytest.mark.parametrize(
    ("committed", "level"), [(9, Level.FAIL), (10, Level.OK), (20, Level.OK), (21, Level.FAIL)]
)
def test_a_committed_offset_has_to_be_in_the_log(committed: int, level: Level) -> None:
    (finding,) = judge_positions([Position(0, 10, 20, committed)], settings())
    assert finding.level is level
    assert ("--reset-offsets" in finding.mend) == (level is Level.FAIL)


def test_what_waits_counts_partitions_without_a_commit_by_where_they_begin() -> None:
    positions = [Position(0, 10, 20, 15), Position(1, 0, 7, None)]
    assert "12 records wait" in judge_positions(positions, settings())[0].what
    assert "5 records wait" in judge_positions(positions, settings(kafka_start="latest"))[0].what
    assert "KAFKA_START=earliest" in judge_positions([Position(0, 0, 9, None)], settings())[0].what


def test_a_request_from_the_future_tells_of_clocks_that_differ() -> None:
    assert judge_clock(1000.0, 999.0) == []
    assert "60 s in the future" in judge_clock(1060.0, 1000.0)[0].what


def test_a_batch_larger_than_the_model_takes_is_worth_a_word() -> None:
    assert judge_batch_size("m", 8, settings()) == []
    assert judge_batch_size("m", 8, settings(batch_max_size=8)) == []
    assert levels(judge_batch_size("m", 8, settings(batch_max_size=9))) == [Level.WARN]


# -- addresses -------------------------------------------------------------------------------------------------------


def test_bootstrap_is_read_as_librdkafka_reads_it() -> None:
    assert addresses_of("a:1, b ,SSL://c:3,,[::1]:4,[::1],a:1") == [
        Address("a", 1),
        Address("b", 9092),
        Address("c", 3),
        Address("::1", 4),
        Address("::1", 9092),
    ]


def test_each_unreachable_address_has_its_own_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as up, socket.create_server(("127.0.0.1", 0)) as down:
        here, gone = Address(*up.getsockname()), Address(*down.getsockname())
        down.close()
        away = unreachable([here, gone, Address("no-such-name.invalid", 1), Address("127.0.0.1", 99999)], 3.0)
    assert here not in away
    assert away[gone] == "connection refused, nothing listens there"
    assert "not known" in away[Address("no-such-name.invalid", 1)] or "not resolved" in str(away)
    assert len(away) == 3


# -- visits ----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_with_everything_down_it_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    kafka, triton = free_port(), free_port()
    begun = time.monotonic()
    code = doctor.run(settings(kafka_bootstrap=f"127.0.0.1:{kafka}", triton_url=f"127.0.0.1:{triton}"))
    assert time.monotonic() - begun < 15
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert f"FAIL  Kafka 127.0.0.1:{kafka}: connection refused, nothing listens there — is Kafka" in lines[0]
    assert any(f"FAIL  Triton 127.0.0.1:{triton}: connection refused" in line for line in lines)
    assert lines[-1] == "4 FAIL, 0 warn: a worker cannot work like this yet"


def test_something_silent_on_kafkas_port_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bootstrap = f"127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        findings = list(KafkaCheckup(settings(kafka_bootstrap=bootstrap), budget_s=1.5).findings())
        assert time.monotonic() - begun < 6
    assert levels(findings) == [Level.FAIL]
    assert bootstrap in findings[0].what


@pytest.mark.parametrize("whose", ["kafka_client", "kafka_consumer", "kafka_producer"])
def test_settings_that_librdkafka_refuses_are_a_finding_not_a_crash(whose: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bootstrap = f"127.0.0.1:{server.getsockname()[1]}"
        wrong = settings(kafka_bootstrap=bootstrap, **{whose: {"BOGUS_KEY": "1"}})
        (finding,) = KafkaCheckup(wrong, budget_s=1.5).findings()
    assert finding.level is Level.FAIL
    assert "bogus.key" in finding.what


def test_no_secret_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(
        settings(
            kafka_bootstrap=f"127.0.0.1:{free_port()}",
            triton_url=f"127.0.0.1:{free_port()}",
            triton_api_key="hush-hush",
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_sasl_mechanism="PLAIN",
            kafka_sasl_username="u",
            kafka_sasl_password="hush-hush",
        )
    )
    captured = capsys.readouterr()
    assert "hush-hush" not in captured.out + captured.err


def test_a_defect_in_a_visit_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(doctor, "_kafka", broken)
    assert doctor.run(settings(triton_url=f"127.0.0.1:{free_port()}")) == 1
    assert "the doctor itself failed at Kafka: KeyError" in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once_and_quietly() -> None:
    program = (
        "import sys\nfrom promptbus_worker import doctor\nfrom promptbus_worker.settings import Settings\n"
        "sys.exit(doctor.run(Settings(_env_file=None, kafka_bootstrap=sys.argv[1], triton_url=sys.argv[1])))"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", program, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ,
            text=True,
        )
        silent.settimeout(20)
        connections = [silent.accept()[0]]  # it is under way
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        for connection in connections:
            connection.close()
    assert (process.returncode, out, err) == (130, "", "")
    assert time.monotonic() - begun < 5
    until(lambda: process.poll() is not None, "ended")
