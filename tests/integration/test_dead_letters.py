"""`promptbus dead-letters` at a real Kafka, with letters that a real worker wrote."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public names, but the package has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from promptbus.cli import main
from promptbus.messages import decode_reply
from stack.triton import Triton
from tests.integration.system import Read, Sending, System, eventually
from tests.unit.cli.commands import interrupt, started

WORD = "[[fail]]"


class Commands:
    """`promptbus dead-letters …` on one system, in this process: a new one takes longer to start than to do its work."""

    def __init__(
        self, whole: System, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[bytes], folder: Path
    ) -> None:
        self.environment = whole.environment()
        self._patch = patch
        self._capture = capture
        patch.chdir(folder)

    def __call__(self, *arguments: str, code: int = 0) -> tuple[bytes, str]:
        """stdout and stderr of one that has to end with `code`."""
        self._capture.readouterr()
        for name, value in self.environment.items():
            self._patch.setenv(name, value)
        ended = main(["dead-letters", *arguments])
        out, err = self._capture.readouterr()
        assert ended == code, err.decode()
        return out, err.decode()

    def letters(self, *arguments: str) -> list[dict[str, object]]:
        """What `list --json` writes."""
        return [json.loads(line) for line in self("list", "--json", *arguments)[0].splitlines()]


@pytest.fixture
def commands(
    whole: System, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Commands:
    return Commands(whole, monkeypatch, capsysbinary, tmp_path)


def requests_of(whole: System, count: int) -> list[Read]:
    return whole.reader(whole.requests, whole.partitions).records(count, 30)


def test_from_a_poisonous_request_to_a_purged_dead_letter(whole: System, commands: Commands) -> None:
    """Requests die, are looked at, are redriven and answered or die again, and are deleted."""
    whole.start().ready()
    old = [("deadline", b"99999999999999"), ("x-kept", b"\xff"), ("x-kept", None)]
    whole.send(
        [
            Sending(json.dumps({"request_id": "in-body", "prompt": f"a {WORD}"}).encode(), b"key", old, 2),
            Sending(json.dumps({"prompt": f"b {WORD}"}).encode(), None, [("request-id", b"in-header")], 2),
            Sending(json.dumps({"prompt": f"c {WORD}"}).encode(), None, [], 3),
            Sending(b"no object", None, [], 4),
        ]
    )
    derived = f"{whole.requests}-3-0"
    whole.dead_letters(4)

    listed = commands.letters()
    assert {letter["request_id"]: letter["code"] for letter in listed} == {
        "in-body": "model_error",
        "in-header": "model_error",
        derived: "model_error",
        f"{whole.requests}-4-0": "invalid_request",
    }
    assert [letter["offset"] for letter in listed] == [0, 1, 2, 3]
    out, err = commands("list", "--since", "1h", "--code", "model_error")
    assert len(out.splitlines()) == 1 + 3
    assert f"dead letters on {whole.dead!r}: 3 (model_error 3)" in err
    assert len(commands("list", "--limit", "1")[0].splitlines()) == 1 + 1
    assert commands.letters("--until", "1h") == commands.letters("--request-id", "unknown") == []

    (place,) = (f"0:{letter['offset']}" for letter in listed if letter["request_id"] == "in-body")
    shown = commands("show", place)[0].decode()
    assert (
        "key: key\ndeadline: 99999999999999\nx-kept: \\xff\nx-kept: null\ndlq-reason: model_error\n" in shown
    )
    assert f'"prompt": "a {WORD}"' in shown
    assert json.loads(commands("show", "--raw", place)[0])["request_id"] == "in-body"
    assert "holds 0 to 3" in commands("show", "0/99", code=1)[1]

    # The model is still broken: they come back, and count.
    assert "name a filter" in commands("redrive", code=2)[1]
    _, err = commands("redrive", "--all", "--dry-run")
    assert "would redrive" in err
    assert "3 (model_error 3)" in err
    _, err = commands("redrive", "--all")
    assert f"redriven to {whole.requests!r}: 3 (model_error 3)" in err
    assert "no JSON object: 1" in err
    again = [read for read in requests_of(whole, 7) if "redrive-count" in read.headers]
    assert {read.headers["request-id"]: read.headers["redrive-count"] for read in again} == {
        b"in-body": b"1",
        b"in-header": b"1",
        derived.encode(): b"1",
    }
    (full,) = (read for read in again if read.key == b"key")
    assert full.pairs == (
        ("x-kept", b"\xff"),
        ("x-kept", None),
        ("request-id", b"in-body"),
        ("redrive-count", b"1"),
    )
    whole.dead_letters(7)
    second = commands.letters("--from-offset", "4")
    assert {(letter["request_id"], letter["redrive_count"]) for letter in second} == {
        ("in-body", 1),
        ("in-header", 1),
        (derived, 1),
    }

    # The model was mended: the same requests are answered, under the same ids.
    whole.workers[-1].terminate()
    with Triton(engine="canned") as mended:
        whole.start(TRITON_URL=mended.url).ready()
        _, err = commands("redrive", "--from-offset", "4", "--limit", "2", "--rate", "20")
        assert (
            "stopped before 0:6; to go on, the same with --partition 0 --from-offset 6 --to-offset 6" in err
        )
        commands("redrive", "--from-offset", "6")
        replies = [decode_reply(record.value) for record in whole.reply_records(4 + 3 + 3)]
    assert {reply.request_id for reply in replies if reply.ok} == {"in-body", "in-header", derived}
    assert Counter(reply.ok for reply in replies) == {False: 7, True: 3}
    counts = Counter(read.headers.get("redrive-count") for read in requests_of(whole, 10))
    assert counts == {None: 4, b"1": 3, b"2": 3}

    # --- delete
    assert "cannot take --code" in commands("purge", "--code", "model_error", code=2)[1]
    assert "how far?" in commands("purge", code=2)[1]
    assert "add --yes" in commands("purge", "--all", code=2)[1]
    _, err = commands("purge", "--to-offset", "3", "--dry-run")
    assert "would delete 4 (model_error 3, invalid_request 1)" in err
    assert len(commands.letters()) == 7
    commands("purge", "--to-offset", "3", "--yes")
    assert [letter["offset"] for letter in commands.letters()] == [4, 5, 6]
    assert "nothing to delete" in commands("purge", "--until", "1h", "--yes")[1]
    commands("purge", "--all", "--yes")
    assert commands.letters() == []
    assert "nothing to delete" in commands("purge", "--all", "--yes")[1]
    assert "holds nothing" in commands("show", "0:1", code=1)[1]


def letters_of(
    whole: System, count: int, topic: str | None = None, *, partitions: int = 1, **headers: str
) -> None:
    """Dead letters that no worker wrote, for what no worker is needed for."""
    producer = Producer({"bootstrap.servers": whole.kafka.bootstrap, "log_level": 0})
    said = {"dlq-reason": "internal", "dlq-topic": whole.requests, "dlq-partition": "0", "dlq-worker": "w-0"}
    for number in range(count):
        ours = {
            **said,
            "dlq-offset": str(number),
            **{name.replace("_", "-"): v for name, v in headers.items()},
        }
        producer.produce(
            topic or whole.dead,
            b'{"prompt": "%d"}' % number,
            partition=number % partitions,
            headers=[(n, v.encode()) for n, v in ours.items()],
        )
    assert producer.flush(30) == 0


def test_what_lies_in_transactions_is_read_if_it_was_committed(whole: System, commands: Commands) -> None:
    """Markers are gaps, also at the very end; what was aborted was never there; a transaction left open ends it."""
    letters_of(whole, 2)
    producer = Producer(
        {"bootstrap.servers": whole.kafka.bootstrap, "transactional.id": whole.dead, "log_level": 0}
    )
    producer.init_transactions(30)
    for finish in (producer.commit_transaction, producer.abort_transaction, None):
        producer.begin_transaction()
        producer.produce(whole.dead, b"{}", headers=[("dlq-reason", b"internal")])
        producer.flush(30)
        if finish is not None:
            finish(30)
    # 0, 1, committed, marker, aborted, marker, open
    assert [letter["offset"] for letter in commands.letters()] == [0, 1, 2]
    assert commands.letters("--from-offset", "3") == []
    assert "no dead letter at 0:3" in commands("show", "0:3", code=1)[1]
    producer.abort_transaction(30)
    assert [letter["offset"] for letter in commands.letters()] == [0, 1, 2]


def test_a_dead_letter_topic_that_takes_less_than_the_request_holds_nothing_up(
    whole: System, commands: Commands
) -> None:
    """Its limit is lowered after the workers have read it: they find out by being refused."""
    whole.start().ready()
    admin = AdminClient({"bootstrap.servers": whole.kafka.bootstrap, "log_level": 0})
    limit = ConfigEntry("max.message.bytes", "5000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, whole.dead, incremental_configs=[limit])
    admin.incremental_alter_configs([topic])[topic].result(30)
    whole.ask(["before", "after"])
    noise = random.Random(0).randbytes(100_000).hex()  # the limit is about compressed batches
    value = json.dumps({"request_id": "large", "prompt": f"{WORD} {noise}"}).encode()
    whole.publish([value], headers=[("request-id", b"large")])
    assert whole.collect(3, 60).codes == {"ok": 2, "model_error": 1}
    eventually("all three are committed", lambda: whole.committed() == 3, 30)
    (letter,) = whole.dead_letters(1)
    assert letter.headers["dlq-truncated"] == b"%d" % len(value)
    assert 2_500 < len(letter.value or b"") < 5_000
    assert "not whole: 1 (0:0)" in commands("redrive", "--code", "model_error", code=1)[1]
    assert b" of 200,0" in commands("list")[0]


def test_redrive_is_interrupted_and_goes_on_where_it_stopped(
    whole: System, commands: Commands, tmp_path: Path
) -> None:
    letters_of(whole, 300)
    process = started(["dead-letters", "redrive", "--all", "--rate", "100"], commands.environment, tmp_path)
    requests_of(whole, 20)
    code, _, err = interrupt(process)
    assert code == 130, err
    stopped = re.search(rb"go on, the same with (--partition 0 --from-offset \d+ --to-offset 299)\n", err)
    assert stopped is not None, err
    commands("redrive", "--all", *stopped[1].decode().split())
    sent = Counter(read.value for read in requests_of(whole, 300))
    assert sent == {b'{"prompt": "%d"}' % number: 1 for number in range(300)}


def test_letters_of_another_topic_go_only_where_they_are_told_to(whole: System, commands: Commands) -> None:
    letters_of(whole, 2, dlq_topic="elsewhere")
    letters_of(whole, 1, dlq_truncated="999")
    _, err = commands("redrive", "--all", code=1)
    assert "from another topic: 2 (0:0, 0:1); 'elsewhere' 2" in err
    assert "not whole: 1 (0:2)" in err
    assert f"redriven to {whole.requests!r}: 0" in err
    other = f"{whole.requests}-other"
    assert f"topic {other!r} does not exist" in commands("redrive", "--all", "--to", other, code=3)[1]
    assert "no requests go to" in commands("redrive", "--all", "--to", whole.replies, code=2)[1]
    whole.create(other, 1)
    commands("redrive", "--all", "--to", other, code=1)
    redriven = whole.reader(other, 1).records(2, 30)
    assert [read.headers["request-id"] for read in redriven] == [b"elsewhere-0-0", b"elsewhere-0-1"]


def test_purge_asks_and_deletes_partitions_up_to_a_time(
    whole: System, commands: Commands, tmp_path: Path
) -> None:
    """On a topic of several partitions; an answer other than yes deletes nothing."""
    dead = f"{whole.dead}-wide"
    whole.create(dead, 3)
    commands.environment["KAFKA_DEAD_LETTER_TOPIC"] = dead
    letters_of(whole, 60, dead, partitions=3)
    assert len({letter["partition"] for letter in commands.letters()}) == 3
    assert "--to-offset needs --partition" in commands("purge", "--to-offset", "1", "--yes", code=2)[1]
    assert "no partition 9" in commands("list", "--partition", "9", code=1)[1]
    for answer, code, left in ((b"no\n", 2, 60), (b"yes\n", 0, 0)):
        code_seen, said = on_terminal(commands, answer, tmp_path)
        assert code_seen == code, said
        assert b"Type yes:" in said
        assert len(commands.letters()) == left
    letters_of(whole, 3, dead)
    assert len(commands.letters()) == 3, "what came later is there"


def test_a_compacted_topic_deletes_nothing_and_says_why(whole: System, commands: Commands) -> None:
    dead = f"{whole.dead}-compacted"
    whole.create(dead, 1, {"cleanup.policy": "compact"})
    commands.environment["KAFKA_DEAD_LETTER_TOPIC"] = dead
    producer = Producer({"bootstrap.servers": whole.kafka.bootstrap, "log_level": 0})
    producer.produce(dead, b"{}", b"key")
    assert producer.flush(30) == 0
    assert "cleanup.policy must contain `delete`" in commands("purge", "--all", "--yes", code=3)[1]


def test_a_topic_that_is_missing_or_empty(whole: System, commands: Commands) -> None:
    assert f"dead letters on {whole.dead!r}: 0\n" in commands("list")[1]
    assert f"redriven to {whole.requests!r}: 0" in commands("redrive", "--all")[1]
    commands.environment["KAFKA_DEAD_LETTER_TOPIC"] = "missing"
    for arguments in (["list"], ["show", "0:0"], ["redrive", "--all"], ["purge", "--all", "--yes"]):
        assert "'missing' does not exist" in commands(*arguments, code=3)[1]


def on_terminal(commands: Commands, answer: bytes, folder: Path) -> tuple[int, bytes]:
    """`purge --until` now, with somebody to ask; exit code and stderr."""
    here, there = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "promptbus", "dead-letters", "purge", "--until", "0s"],
            env=commands.environment,
            cwd=folder,
            stdin=there,
            stderr=subprocess.PIPE,
        )
        os.write(here, answer)
        said = process.communicate(timeout=60)[1]
    finally:
        os.close(here)
        os.close(there)
    return process.returncode, said
