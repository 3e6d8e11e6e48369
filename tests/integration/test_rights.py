"""Each right taken away, one at a time: who is stopped by it says which one it is, at start and in mid-stream."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from promptbus import cli, silence
from promptbus.client import PromptClient
from promptbus.errors import NotAllowed
from promptbus.kafka_errors import ConnectionNotes
from promptbus.rights import Right, grant
from promptbus_worker import kafka
from promptbus_worker.doctor_kafka import KafkaCheckup
from promptbus_worker.preflight import Level
from promptbus_worker.settings import Settings
from promptbus_worker.worker_process import Exit
from stack.triton import Triton
from tests.integration.inside import inside
from tests.integration.secured import (
    PASSWORDS,
    Secured,
    rights_of_a_client,
    rights_of_a_worker,
)
from tests.integration.system import System, Workers, eventually, system
from tests.integration.test_logins import client_settings, worker_settings


@pytest.fixture
def place(secured: Secured, shared_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """Topics of its own on the secured broker; its workers come as `worker`."""
    with system(secured.kafka, shared_triton, tmp_path, env=secured.environment("worker")) as made:
        yield made


def gave_up(workers: Workers) -> str:
    """What the worker says last. It has stopped for good, by itself."""
    assert workers.process.wait(180) == 1
    errors = [line for line in workers.lines() if line["level"] == "error"]
    assert "a restart would not help" in errors[-1]["message"]
    text = workers.log.read_text()
    assert not any(password in text for password in PASSWORDS.values())
    (said,) = [line["message"] for line in errors if line["logger"] == "promptbus_worker.worker"]
    return said


def with_transactions(place: System) -> tuple[Settings, Right]:
    """A worker's settings, and the right that it needs besides."""
    settings = worker_settings(place.environment(WORKER_DELIVERY="transactional"))
    return settings, kafka.right_to_transactions(settings, f"{settings.instance}-0")


@pytest.mark.parametrize("delivery", ["at_least_once", "transactional"])
async def test_a_worker_needs_its_rights_and_each_taken_away_in_mid_stream_stops_it(
    secured: Secured, place: System, delivery: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, rights = worker_settings(place.environment()), rights_of_a_worker(place)
    if delivery == "transactional":
        settings, right = with_transactions(place)
        rights.append(right)
    secured.rules.put("worker", *rights)
    answers = Counter[str]()
    for missing in rights:
        async with inside(settings, caplog) as worker:
            await asyncio.to_thread(place.ask, [f"{missing}-{number}" for number in range(10)])
            answers["ok"] += 10
            assert (await asyncio.to_thread(place.collect, answers.total())).codes == answers
            await asyncio.to_thread(secured.rules.take_away, "worker", missing)
            await asyncio.to_thread(place.ask, [f"{missing}-after"])
            await asyncio.to_thread(place.publish, [f"no request, {missing}".encode()])
            answers += Counter({"ok": 1, "invalid_request": 1})
            said = await worker.gave_up()
        assert str(missing) in said
        assert "kafka-acls" in said
        await asyncio.to_thread(secured.rules.put, "worker", missing)
    # Nothing is lost by it: with the right given back, the next worker answers what is left.
    async with inside(settings, caplog) as worker:
        assert (await asyncio.to_thread(place.collect, answers.total())).codes == answers
        await asyncio.to_thread(
            eventually, "every offset is committed", lambda: place.committed() == answers.total()
        )
        assert await worker.end() is Exit.DRAINED
    letters = {letter.value for letter in place.every_dead_letter()}
    assert letters == {f"no request, {missing}".encode() for missing in rights}
    assert not any(password in caplog.text for password in PASSWORDS.values())


def test_without_rights_on_topics_a_worker_does_not_start_and_names_them(
    secured: Secured, place: System
) -> None:
    read, group, *write = rights_of_a_worker(place)
    secured.rules.put("worker", group)
    said = gave_up(place.start(LOG_LEVEL="debug", KAFKA_CLIENT__DEBUG="all"))
    for right in (read, *write):
        assert str(right) in said
        assert f"--operation {right.operation.title()} --topic {right.name}" in said
    assert "--allow-principal User:worker" in said


async def test_without_the_right_on_its_group_a_worker_stops_and_names_it(
    secured: Secured, place: System, caplog: pytest.LogCaptureFixture
) -> None:
    read, group, *write = rights_of_a_worker(place)
    secured.rules.put("worker", read, *write)
    async with inside(worker_settings(place.environment()), caplog) as worker:
        assert str(group) in await worker.gave_up()


async def test_without_the_right_on_its_transactional_id_a_worker_stops_and_names_it(
    secured: Secured, place: System, caplog: pytest.LogCaptureFixture
) -> None:
    settings, right = with_transactions(place)
    for granted in (rights_of_a_worker(place), [Right("DESCRIBE", right.kind, right.name)]):
        secured.rules.put("worker", *granted)
        async with inside(settings, caplog) as worker:
            said = await worker.gave_up()
        assert str(right) in said
        assert said.endswith(grant(settings, right))


def test_the_doctor_checks_the_right_on_transactional_ids_and_fences_nobody(
    secured: Secured, place: System
) -> None:
    settings, right = with_transactions(place)
    secured.rules.put("worker", *rights_of_a_worker(place))
    (missing,) = [finding for finding in KafkaCheckup(settings).findings() if finding.level is Level.FAIL]
    assert right.name in missing.what
    assert missing.mend == grant(settings, right)
    secured.rules.put("worker", right)
    producer = Producer(kafka.transactional_config(settings, f"{settings.instance}-0", [1 << 20]))
    producer.init_transactions(60)
    producer.begin_transaction()
    producer.produce(place.replies, b"{}")
    found = [finding.line() for finding in KafkaCheckup(settings).findings() if right.name in finding.what]
    assert found == [f"ok    this user may use the transactional id {right.name}"]
    producer.commit_transaction(60)
    settings = settings.model_copy(update={"worker_processes": 2})
    (missing,) = [finding for finding in KafkaCheckup(settings).findings() if finding.level is Level.FAIL]
    assert right.name.removesuffix("0") + "1" in missing.what


def start_says(settings: Settings) -> str:
    """Why a worker with these settings does not start."""
    notes = ConnectionNotes()
    admin = kafka.admin_client(settings, "w", notes)
    with pytest.raises(kafka.Unusable) as refusal:
        kafka.ensure_topics(admin, settings, notes)
    return str(refusal.value)


def test_each_right_on_a_topic_is_looked_at_before_a_worker_begins(secured: Secured, place: System) -> None:
    settings = worker_settings(place.environment())
    rights = [right for right in rights_of_a_worker(place) if right.kind == "topic"]
    secured.rules.put("worker", *rights)
    admin = kafka.admin_client(settings, "w")
    kafka.ensure_topics(admin, settings)
    for missing in rights:
        secured.rules.take_away("worker", missing)
        said = start_says(settings)
        assert [right for right in rights if str(right) in said] == [missing]
        secured.rules.put("worker", missing)


def test_a_topic_that_may_not_be_described_is_named(secured: Secured, place: System) -> None:
    secured.rules.put("worker", *rights_of_a_worker(place))
    secured.rules.put("worker", Right("DESCRIBE", "topic", place.requests), permission="DENY")
    assert f"DESCRIBE on topic '{place.requests}'" in start_says(worker_settings(place.environment()))


def test_a_topic_that_may_not_be_created_is_named(secured: Secured, place: System) -> None:
    new = f"{place.dead}-new"
    secured.rules.put("worker", *rights_of_a_worker(place), Right("WRITE", "topic", new))
    settings = worker_settings(
        {**place.environment(), "KAFKA_DEAD_LETTER_TOPIC": new, "KAFKA_CREATE_TOPICS": "true"}
    )
    assert f"CREATE on topic '{new}'" in start_says(settings)


def test_the_doctor_names_every_right_that_is_missing(secured: Secured, place: System) -> None:
    settings = worker_settings(place.environment())
    rights = rights_of_a_worker(place)
    for known in range(len(rights) + 1):
        lines = [line.line() for line in KafkaCheckup(settings).findings() if line.level is Level.FAIL]
        for right in rights:
            command = f"--operation {right.operation.title()} --{right.kind} {right.name}"
            named = [line for line in lines if command in line]
            assert len(named) == (right not in rights[:known]), lines
            assert all("--allow-principal User:worker" in line for line in named)
        if known < len(rights):
            secured.rules.put("worker", rights[known])


class Commands:
    """`promptbus …` as the user `client`, in this process: exit code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = self._capsys.readouterr()
        for password in PASSWORDS.values():
            assert password not in captured.out + captured.err
        return code, captured.out, captured.err


@pytest.fixture
def command(
    place: System, secured: Secured, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    for name, value in {**place.environment(), **secured.environment("client")}.items():
        monkeypatch.setenv(name, value)
    return Commands(capsys)


@pytest.fixture
def one_prompt(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "hello"}) + "\n")
    return str(file)


def names(stderr: str, *rights: Right) -> bool:
    """Whether each is named, and how it is granted to the user."""
    return all(str(right) in stderr for right in rights) and "--allow-principal User:client" in stderr


def test_a_client_needs_two_rights_and_no_more(
    secured: Secured, place: System, command: Commands, one_prompt: str
) -> None:
    secured.rules.put("worker", *rights_of_a_worker(place))
    secured.rules.put("client", *rights_of_a_client(place))
    place.start().ready(180)
    code, out, err = command("ask", "--timeout", "60", "hello")
    assert (code, err) == (0, "")
    assert out
    assert command("send", one_prompt)[0] == 0
    code, out, _ = command("send", "--wait", one_prompt)
    assert code == 0
    assert json.loads(out)["status"] == "ok"
    code, out, err = command("tail", "--from-beginning", "--count", "3")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3


def test_a_right_taken_away_from_a_client_fails_what_it_waits_for_and_is_named(
    secured: Secured, place: System
) -> None:
    write, read = rights_of_a_client(place)
    secured.rules.put("client", write, read)
    environment = {**place.environment(), **secured.environment("client")}
    with PromptClient(settings=client_settings(environment), timeout_s=120) as client:
        waiting = client.submit("nobody answers this")
        eventually("Kafka has the request", lambda: waiting.acknowledged)
        secured.rules.take_away("client", read)
        with pytest.raises(NotAllowed) as refusal:
            waiting.result()
        assert str(read) in str(refusal.value)
        secured.rules.take_away("client", write)
        with pytest.raises(NotAllowed) as refusal:
            client.submit("nobody may ask this").result()
        assert str(write) in str(refusal.value)


def test_commands_name_the_right_that_they_need(
    secured: Secured,
    place: System,
    command: Commands,
    one_prompt: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, read = rights_of_a_client(place)
    see, read_dead = Right("DESCRIBE", "topic", place.requests), Right("READ", "topic", place.dead)
    # without any
    for arguments in (("ask", "hello"), ("send", one_prompt), ("send", "--wait", one_prompt)):
        code, _, err = command(*arguments)
        assert (code, names(err, see, write)) == (3, True), err
    code, _, err = command("tail", "--from-beginning", "--count", "1")
    assert (code, names(err, read)) == (3, True), err
    code, _, err = command("dead-letters", "list")
    assert (code, names(err, read_dead)) == (3, True), err
    # to see is not to use
    secured.rules.put("client", see, Right("DESCRIBE", "topic", place.replies))
    secured.rules.put("client", Right("DESCRIBE", "topic", place.dead))
    secured.put(place.replies, b"{}")
    secured.put(place.dead, b"{}")
    code, _, err = command("tail", "--from-beginning", "--count", "1")
    assert (code, names(err, read)) == (3, True), err
    code, _, err = command("dead-letters", "list")
    assert (code, names(err, read_dead)) == (3, True), err
    secured.rules.put("client", read)
    for arguments in (("send", one_prompt), ("send", "--wait", one_prompt), ("ask", "hello")):
        code, _, err = command(*arguments)
        assert (code, names(err, write)) == (3, True), err
    # to read dead letters is not to send or to delete them
    secured.rules.put("client", read_dead)
    assert command("dead-letters", "list")[0] == 0
    secured.rules.put("client", Right("WRITE", "topic", place.replies))  # so that the producer gets its id
    code, _, err = command("dead-letters", "purge", "--all", "--yes")
    assert (code != 0, names(err, Right("DELETE", "topic", place.dead))) == (True, True), err
    # nobody answers, and the group may not be looked at
    secured.rules.put("client", write)
    monkeypatch.setattr(silence, "ASK_S", 30.0)  # this machine may be busy
    code, _, err = command("ask", "--timeout", "1", "hello")
    assert (code, names(err, Right("DESCRIBE", "group", place.group))) == (3, True), err
