"""Each command as a program: exit code, stdout, stderr. Kafka is librdkafka's mock cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import orjson
import pytest

from promptbus.client import PromptClient
from promptbus.settings import KafkaSettings
from tests.unit.cli.commands import interrupt, promptbus, started
from tests.unit.client.place import MockCluster, environment_for
from tests.unit.client.responder import Responder

WAIT_S = 20.0


@pytest.fixture(scope="module")
def mock_cluster() -> MockCluster:
    return MockCluster()


@pytest.fixture
def place(mock_cluster: MockCluster) -> KafkaSettings:
    return mock_cluster.topics()


@pytest.fixture
def environment(place: KafkaSettings) -> dict[str, str]:
    return environment_for(place)


@pytest.fixture
def responder(place: KafkaSettings) -> Iterator[Responder]:
    with Responder(place) as responder:
        yield responder


def test_help_lists_every_command_with_a_line_and_examples(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["--help"], environment, tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0
    for command in ("ask", "send", "tail", "worker", "doctor"):
        assert f"\n    {command} " in text
        assert promptbus([command, "--help"], environment, tmp_path).returncode == 0
    assert "\n    dead-letters\n" in text
    assert 'promptbus ask "What is Kafka?"' in text


def test_version(environment: dict[str, str], tmp_path: Path) -> None:
    assert (
        promptbus(["--version"], environment, tmp_path).stdout.decode()
        == f"promptbus {version('promptbus')}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], b"<command>"),
        (["dance"], b"dance"),
        (["ask"], b"prompt"),
        (["ask", ""], b"empty"),
        (["ask", b"\xff"], b"not UTF-8"),
        (["ask", "x", "--timeout", "0"], b"seconds"),
        (["ask", "x", "--temperature", "3"], b"temperature must be"),
        (["ask", "x", "--max-tokens", "0"], b"max_tokens must be"),
        (["ask", "--direct", "x", "--max-tokens", "0"], b"max_tokens must be"),
        (["send", "no-such-file"], b"no-such-file cannot be read: No such file"),
        (["send", "-", "--in-flight", "0"], b"--in-flight"),
        (["tail", "--count", "0"], b"--count"),
    ],
)
def test_usage_errors_are_2(
    arguments: list[str], says: bytes, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(arguments, environment, tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_wrong_setting_is_2(environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["ask", "x"], environment | {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, tmp_path)
    assert done.returncode == 2
    assert b"KAFKA_SASL_MECHANISM is not set" in done.stderr
    done = promptbus(
        ["tail"], environment | {"KAFKA_REPLY_TOPIC": environment["KAFKA_REQUEST_TOPIC"]}, tmp_path
    )
    assert done.returncode == 2


# ---- ask


def test_ask_prints_the_answer_alone(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["ask", "Grüße 🧭"], environment | {"LC_ALL": "C"}, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "re: Grüße 🧭\n".encode(), b"")


def test_ask_reads_stdin_and_tells_costs(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["ask", "-v", "--model", "other", "-"], environment, tmp_path, b"two words\n")
    assert (done.returncode, done.stdout) == (0, b"re: two words\n")
    assert "2 + 3 = 5 tokens" in done.stderr.decode()
    assert b"other 1" in done.stderr


def test_ask_json_prints_the_whole_reply(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["ask", "--json", "x"], environment, tmp_path)
    reply = orjson.loads(done.stdout)
    assert (reply["status"], reply["response"], reply["usage"]["total_tokens"]) == ("ok", "re: x", 3)
    assert done.stdout.count(b"\n") == 1


def test_ask_says_an_error_reply_and_is_1(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["ask", "fail"], environment, tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"promptbus: model_error: the model could not answer this prompt\n"


def test_ask_without_a_reply_is_3(responder: Responder, environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["ask", "silent", "--timeout", "0.5"], environment, tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"no reply to request" in done.stderr


def test_ask_is_interrupted_quietly(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    process = started(["ask", "silent"], environment, tmp_path)
    until = time.monotonic() + WAIT_S
    while not responder.seen:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert interrupt(process) == (130, b"", b"")


# ---- send


def test_send_publishes_every_line(responder: Responder, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"".join(b'{"prompt": "p%d"}\n\n' % number for number in range(300)))
    done = promptbus(["send", "p.jsonl"], environment, tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"sent 300 requests" in done.stderr
    until = time.monotonic() + WAIT_S
    while len(responder.seen) < 300:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert {message.value() for message in responder.seen} == {
        b'{"prompt": "p%d"}' % number for number in range(300)
    }


BAD_LINES = b'{"prompt": "a"}\n{"prompt": 1}\nnonsense\n{"prompt": "b"}'


def test_send_stops_at_the_first_line_that_is_no_request(environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["send", "-"], environment, tmp_path, BAD_LINES)
    assert done.returncode == 2
    assert b"stdin:2: prompt must be a string" in done.stderr
    assert b"sent 1 request to" in done.stderr


def test_send_skips_lines_that_are_no_requests_if_told_to(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["send", "--skip-invalid", "-"], environment, tmp_path, BAD_LINES)
    assert done.returncode == 0
    assert b"stdin:2: " in done.stderr
    assert b"stdin:3: " in done.stderr
    assert b"sent 2 requests" in done.stderr
    assert b"skipped 2" in done.stderr


def test_send_wait_writes_every_reply(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    lines = b"".join(b'{"prompt": "p%d", "request_id": "r-%d"}\n' % (number, number) for number in range(200))
    done = promptbus(["send", "--wait", "--in-flight", "20", "-"], environment, tmp_path, lines)
    replies = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {reply["request_id"]: reply["response"] for reply in replies} == {
        f"r-{number}": f"re: p{number}" for number in range(200)
    }
    assert b"200 sent, 200 answered, 0 error replies" in done.stderr


def test_send_wait_answers_lines_that_share_an_id_one_after_the_other(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    lines = b"".join(b'{"prompt": "p%d", "request_id": "same"}\n' % number for number in range(5))
    done = promptbus(["send", "--wait", "-"], environment, tmp_path, lines)
    assert [orjson.loads(line)["response"] for line in done.stdout.splitlines()] == [
        f"re: p{n}" for n in range(5)
    ]


def test_send_wait_raw_matches_even_replies_to_what_is_no_request(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    done = promptbus(["send", "--wait", "--raw", "-"], environment, tmp_path, BAD_LINES)
    assert done.returncode == 1
    assert sorted(orjson.loads(line)["status"] for line in done.stdout.splitlines()) == [
        "error",
        "error",
        "ok",
        "ok",
    ]


def test_send_wait_gives_up_when_nothing_arrives(
    responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    lines = b'{"prompt": "x"}\n{"prompt": "silent", "request_id": "r-9"}\n'
    done = promptbus(["send", "--wait", "--timeout", "1", "-"], environment, tmp_path, lines)
    assert done.returncode == 3
    assert done.stdout.count(b"\n") == 1
    assert b"r-9" in done.stderr
    assert b"1 unanswered" in done.stderr


def test_send_is_interrupted_and_says_how_far_it_came(environment: dict[str, str], tmp_path: Path) -> None:
    import os

    fifo = tmp_path / "endless"
    os.mkfifo(fifo)
    process = started(["send", str(fifo)], environment, tmp_path)
    with fifo.open("wb", buffering=0) as file:
        file.write(b'{"prompt": "a"}\n' * 1_000)
        # the pipe is empty when all of it was read
        _until_read(file.fileno())
        code, out, err = interrupt(process)
    assert (code, out) == (130, b"")
    assert b" requests to " in err
    assert b"Traceback" not in err


def test_send_to_a_topic_that_is_missing_is_3(environment: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["send", "-"], ["send", "--wait", "-"], ["ask", "x"]):
        done = promptbus(
            arguments, environment | {"KAFKA_REQUEST_TOPIC": "missing"}, tmp_path, b'{"prompt": "x"}\n'
        )
        assert done.returncode == 3
        assert b"'missing' does not exist" in done.stderr


# ---- tail


def test_tail_from_the_beginning_writes_json_lines(
    place: KafkaSettings, responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    with PromptClient(settings=place) as client:
        asked = {reply.request_id for reply in client.map(["a", "b", "fail"])}
    done = promptbus(["tail", "--from-beginning", "--count", "3"], environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {orjson.loads(line)["request_id"] for line in done.stdout.splitlines()} == asked


def test_tail_follows_and_ends_with_ctrl_c(
    place: KafkaSettings, responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    process = started(["tail"], environment, tmp_path)
    assert process.stdout is not None
    with PromptClient(settings=place) as client:
        _ask_until_seen(client, process.stdout.fileno())
    code, _out, err = interrupt(process)
    assert (code, err) == (0, b"")


def test_tail_ends_quietly_when_nobody_reads(
    place: KafkaSettings, responder: Responder, environment: dict[str, str], tmp_path: Path
) -> None:
    process = started(["tail"], environment, tmp_path)
    assert process.stdout is not None
    with PromptClient(settings=place) as client:
        _ask_until_seen(client, process.stdout.fileno())
        process.stdout.close()
        until = time.monotonic() + WAIT_S
        while process.poll() is None:
            assert time.monotonic() < until
            client.ask("more")
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (0, b"")
    process.stderr.close()


# ---- worker, doctor


def test_worker_lists_its_settings(environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["worker", "--settings"], environment, tmp_path)
    assert done.returncode == 0
    assert b"\nTRITON_URL=localhost:8000\n" in done.stdout
    assert b"environment" in promptbus(["worker", "--help"], environment, tmp_path).stdout


@pytest.mark.parametrize("command", ["worker", "doctor"])
def test_a_wrong_worker_setting_is_2(command: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus([command], environment | {"CONCURRENCY_MIN": "9", "CONCURRENCY_MAX": "3"}, tmp_path)
    assert done.returncode == 2
    assert b"CONCURRENCY_MIN (9) is above CONCURRENCY_MAX (3)" in done.stderr


def _until_read(pipe: int) -> None:
    import fcntl
    import struct
    import termios

    until = time.monotonic() + WAIT_S
    while struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]:
        assert time.monotonic() < until
        time.sleep(0.01)


def _ask_until_seen(client: PromptClient, stdout: int) -> None:
    """A reply is only followed once the program reads: ask until it prints one."""
    import os
    import select

    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        client.ask("x")
        if select.select([stdout], [], [], 0.1)[0]:
            assert b'"response":"re: x"' in os.read(stdout, 65_536)
            return
    raise AssertionError("nothing was printed")
