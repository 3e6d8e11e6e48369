"""The commands at a real Kafka: what the mock cluster cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from promptbus.settings import KafkaSettings
from stack.kafka import Kafka
from stack.ports import free_ports
from tests.unit.cli.commands import promptbus
from tests.unit.client.place import environment_for, real_topics
from tests.unit.client.responder import Responder


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    with Kafka() as running:
        yield running


@pytest.fixture
def place(kafka: Kafka) -> KafkaSettings:
    return real_topics(kafka.bootstrap)


@pytest.fixture
def environment(place: KafkaSettings) -> dict[str, str]:
    return environment_for(place) | {"KAFKA_GROUP_ID": f"group-of-{place.kafka_request_topic}"}


def test_ask_says_that_nobody_consumes(environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["ask", "x", "--timeout", "0.5"], environment, tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"nobody consumes" in done.stderr
    assert b"promptbus worker" in done.stderr
    assert b"Triton" not in done.stderr


def test_ask_says_that_triton_is_down_behind_the_workers(
    place: KafkaSettings, environment: dict[str, str], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with Responder(place, group_id=environment["KAFKA_GROUP_ID"]):
        done = promptbus(
            ["ask", "silent", "--timeout", "0.5"], environment | {"TRITON_URL": f"127.0.0.1:{port}"}, tmp_path
        )
    assert done.returncode == 3
    assert b"1 consumer of the group" in done.stderr
    assert (
        f"seen from here, Triton at http://127.0.0.1:{port} (TRITON_URL) cannot be reached".encode()
        in done.stderr
    )


def test_ask_says_that_no_broker_is_reached(environment: dict[str, str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for arguments in (["ask", "x", "--timeout", "1"], ["send", "-"], ["send", "--wait", "-"], ["tail"]):
        done = promptbus(arguments, environment | {"KAFKA_BOOTSTRAP": f"127.0.0.1:{port}"}, tmp_path)
        assert (done.returncode, done.stdout) == (3, b"")
        assert f"no Kafka broker answered at 127.0.0.1:{port}".encode() in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_send_wait_answers_5000_lines_each_once(
    place: KafkaSettings, environment: dict[str, str], tmp_path: Path
) -> None:
    with (tmp_path / "p.jsonl").open("wb") as file:
        for number in range(5_000):
            prompt = "fail" if number % 1_000 == 0 else f"p{number}"
            file.write(orjson.dumps({"prompt": prompt, "metadata": {"n": number}}) + b"\n")
    with Responder(place):
        done = promptbus(["send", "--wait", "p.jsonl"], environment, tmp_path)
    replies = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, "five of them are error replies"
    assert sorted(reply["metadata"]["n"] for reply in replies) == list(range(5_000))
    assert all(
        reply["response"] == f"re: p{reply['metadata']['n']}" for reply in replies if reply["status"] == "ok"
    )
    assert b"5,000 sent, 4,995 answered, 5 error replies" in done.stderr


def test_send_names_a_line_that_is_too_large(environment: dict[str, str], tmp_path: Path) -> None:
    lines = b'{"prompt": "a"}\n{"prompt": "' + b"x" * 1_100_000 + b'"}\n{"prompt": "b"}\n'
    done = promptbus(["send", "-"], environment, tmp_path, lines)
    assert done.returncode == 2
    assert b"stdin:2: the request is 1,100," in done.stderr
    assert b"1,048,588 bytes" in done.stderr
    done = promptbus(["send", "--skip-invalid", "-"], environment, tmp_path, lines)
    assert done.returncode == 0
    assert b"sent 2 requests" in done.stderr
