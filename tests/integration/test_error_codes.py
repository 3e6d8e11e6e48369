"""Every row of the table of error codes, on the real system: the reply, and the dead letter where there is one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from promptbus.messages import Headers, decode_reply
from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.mixed import body
from tests.integration.system import Read, Sending, System, system

WORKER = "tester"
PROMPT_CHARS = 5_000
SMALL = 4_000
"""`max.message.bytes` of the reply topic that takes little, and of the dead letters' topic."""
TRITONS_WORDS = (
    b"Traceback",
    b"[[",
    b"model.py",
    b"gpt4_nano_0",
    b"Stub",
    b"a prompt contains",
    b"Failed to process",
)


@dataclass(frozen=True)
class Row:
    """A request, and how it has to end. The request is made when it is sent, for deadlines are times."""

    name: str
    code: str
    value: bytes | None
    retryable: bool = False
    dead_lettered: bool = False
    headers: Callable[[], Headers] = list
    attempts: int = 0
    says: str = ""

    def sending(self) -> Sending:
        """With an id in its header: some have none in their value that could be read."""
        headers = [("request-id", self.name.encode()), ("x-kept", b"\xff"), ("x-kept", None), *self.headers()]
        return Sending(self.value, b"key of " + self.name.encode(), headers)


def _invalid(name: str, says: str, prompt: object = "x", **fields: object) -> Row:
    return Row(name, "invalid_request", body(prompt, **fields), says=says)


def _deadline(in_s: float) -> Callable[[], Headers]:
    return lambda: [("deadline", b"%d" % ((time.time() + in_s) * 1000))]


def _fault(word: str, code: str) -> Row:
    return Row(word, code, body(f"please {word}"), dead_lettered=True, attempts=1)


ROWS = [
    Row("no value", "invalid_request", None, dead_lettered=True, says="the message has no value"),
    Row("empty", "invalid_request", b"", dead_lettered=True, says="empty"),
    Row("no JSON", "invalid_request", b"\xff\x00{", dead_lettered=True, says="UTF-8"),
    Row("no object", "invalid_request", b'["prompt"]', dead_lettered=True, says="not an object"),
    _invalid("no prompt", "prompt is required", None),
    _invalid("empty prompt", "prompt must be a string that is not empty", ""),
    _invalid("no tokens", "max_tokens must be at least 1", max_tokens=0),
    _invalid("many tokens", "max_tokens must be at most 2147483647", max_tokens=2**31),
    _invalid("hot", "temperature must be a number from 0 to 2", temperature=2.0001),
    _invalid("unknown field", 'unknown field "stream"', stream=True),
    _invalid(
        "unknown parameter", "top_k is not a parameter of gpt4_nano; it takes: top_p", parameters={"top_k": 1}
    ),
    _invalid("wrong parameter", "parameters.top_p must be a number", parameters={"top_p": "high"}),
    Row(
        "odd deadline", "invalid_request", body("x"), headers=lambda: [("deadline", b"soon")], says="deadline"
    ),
    Row(
        "reply topic not allowed",
        "invalid_request",
        body("x"),
        headers=lambda: [("reply-topic", b"elsewhere")],
        says="KAFKA_REPLY_TOPICS_ALLOWED",
    ),
    Row("too many bytes", "too_large", body("x" * 20_001), says="20"),
    Row(
        "too many characters",
        "too_large",
        body("x" * (PROMPT_CHARS + 1)),
        says="5001 characters; the limit is 5000",
    ),
    Row("no such model", "model_not_found", body("x", model="gpt5"), says="served: gpt4_nano"),
    Row("expired", "expired", body("x"), retryable=True, headers=_deadline(-1), says="deadline"),
    _fault("[[fail]]", "model_error"),
    _fault("[[bad-utf8]]", "bad_model_output"),
    _fault("[[no-output]]", "bad_model_output"),
    _fault("[[wrong-rows]]", "bad_model_output"),
    Row("cut dead letter", "model_error", body("[[fail]]" + "." * 4_900), dead_lettered=True, attempts=1),
]


class Table:
    """A system whose replies and dead letters are looked up per request."""

    def __init__(self, whole: System, dead: str) -> None:
        self.whole = whole
        self._letters = whole.reader(dead, 1)
        self._requests = whole.reader(whole.requests, whole.partitions)

    def check(self, row: Row, within_s: float = 60.0) -> Read:
        """Send the row's request and check how it ends; the reply's record."""
        sending = row.sending()
        self.whole.send([sending])
        record = self.whole.reply_to(row.name, within_s)
        self.check_reply(row, record)
        if row.dead_lettered:
            self.check_dead_letter(row, self.original(sending.key), self.letter(sending.key))
        return record

    def original(self, key: bytes | None) -> Read:
        """The request's record."""
        return self._requests.find(lambda read: read.key == key, 30)

    def letter(self, key: bytes | None) -> Read:
        """The dead letter with this key."""
        return self._letters.find(lambda read: read.key == key, 30)

    def check_reply(self, row: Row, record: Read) -> None:
        reply = decode_reply(record.value)
        assert reply.error is not None, reply.response
        assert (reply.error.code, reply.error.retryable) == (row.code, row.retryable)
        assert row.says in reply.error.message
        assert (reply.request_id, reply.status, reply.response) == (row.name, "error", None)
        assert (record.key, record.headers["status"]) == (b"key of " + row.name.encode(), b"error")
        assert reply.attempts == row.attempts
        assert not [
            word for word in TRITONS_WORDS if word in (record.value or b"").replace(row.name.encode(), b"")
        ]

    def check_dead_letter(self, row: Row, original: Read, letter: Read) -> None:
        kept = len(original.pairs)
        assert letter.pairs[:kept] == original.pairs
        ours = dict(letter.pairs[kept:])
        cut = ours.pop("dlq-truncated", None)
        if cut is None:
            assert letter.value == original.value
        else:
            assert cut == b"%d" % len(original.value or b"")
            assert (original.value or b"").startswith(letter.value or b"")
            assert len(letter.value or b"") > SMALL // 2
        offset = int(ours.pop("dlq-offset") or b"-1")
        assert 0 <= offset < 1000
        assert ours == {
            "dlq-reason": row.code.encode(),
            "dlq-topic": self.whole.requests.encode(),
            "dlq-partition": b"%d" % original.partition,
            "dlq-timestamp": b"%d" % original.timestamp_ms,
            "dlq-attempts": b"%d" % row.attempts,
            "dlq-worker": f"{WORKER}-0".encode(),
        }

    def dead_letters(self) -> list[bytes | None]:
        """The keys of all, once nothing new comes."""
        return [letter.key for letter in self._letters.all_records(1.0)]


def table(
    kafka: Kafka, triton: Triton | str, folder: Path, *, small: Sequence[str] = (), **env: str
) -> Iterator[Table]:
    """A worker with a small topic for dead letters."""
    with system(kafka, triton, folder, env={"WORKER_INSTANCE": WORKER, **env}) as whole:
        dead = f"{whole.dead}-small"
        for topic in (dead, *small):
            whole.create(topic, 1, {"max.message.bytes": str(SMALL)})
        whole.start(KAFKA_DEAD_LETTER_TOPIC=dead).ready()
        yield Table(whole, dead)


@pytest.fixture(scope="module")
def steady(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Table]:
    """Where the model answers; a request may name the reply topic `little`, which takes little."""
    yield from table(
        shared_kafka,
        shared_triton,
        tmp_path_factory.mktemp("steady"),
        small=["little"],
        KAFKA_REPLY_TOPICS_ALLOWED="little",
        REQUEST_MAX_BYTES="20000",
        REQUEST_MAX_PROMPT_CHARS=str(PROMPT_CHARS),
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_of_the_table(steady: Table, row: Row) -> None:
    steady.check(row)


def test_an_answer_that_the_reply_topic_does_not_take(steady: Table) -> None:
    letters, replies = steady.dead_letters(), steady.whole.reader("little", 1)
    row = Row(
        "too large an answer",
        "reply_too_large",
        body("[[huge:6000]]", metadata={"kept": 1}),
        dead_lettered=True,
        headers=lambda: [("reply-topic", b"little")],
        attempts=1,
    )
    original = row.sending()
    steady.whole.send([original])
    record = replies.find(lambda read: read.key == original.key, 60)
    steady.check_reply(row, record)
    assert decode_reply(record.value).metadata == {"kept": 1}
    assert steady.dead_letters() == [*letters, original.key]


def test_an_error_reply_leaves_out_metadata_that_does_not_fit(steady: Table) -> None:
    replies = steady.whole.reader("little", 1)
    row = Row(
        "too much metadata",
        "reply_too_large",
        body("hello", metadata={"much": "m" * SMALL}),
        dead_lettered=True,
        headers=lambda: [("reply-topic", b"little")],
        attempts=1,
    )
    steady.whole.send([row.sending()])
    record = replies.find(lambda read: read.key == b"key of too much metadata", 60)
    steady.check_reply(row, record)
    assert decode_reply(record.value).metadata == {}


def test_an_answer_on_a_reply_topic_that_the_request_names(steady: Table) -> None:
    replies = steady.whole.reader("little", 1)
    steady.whole.send([Sending(body("hello", request_id="elsewhere"), None, [("reply-topic", b"little")])])
    record = replies.find(lambda read: read.key == b"elsewhere", 60)
    assert decode_reply(record.value).ok
    # The default reply topic may be named without being allowed.
    named = [("reply-topic", steady.whole.replies.encode())]
    steady.whole.send([Sending(body("hello", request_id="at home"), None, named)])
    assert decode_reply(steady.whole.reply_to("at home").value).ok
    assert [r for r in steady.whole.all_reply_records() if r.key == b"elsewhere"] == []


def test_a_parameter_of_the_model_is_taken(steady: Table) -> None:
    steady.whole.send([Sending(body("hello", request_id="top_p", parameters={"top_p": 0.9}))])
    assert decode_reply(steady.whole.reply_to("top_p").value).ok


def test_only_codes_that_say_so_are_dead_lettered(steady: Table) -> None:
    """After all the others: what is on the topic by now is all there is."""
    ended = {
        record.key for record in steady.whole.all_reply_records() if record.headers["status"] == b"error"
    }
    expected = {row.sending().key for row in ROWS if row.dead_lettered}
    keys = steady.dead_letters()
    assert len(keys) == len(set(keys))
    assert set(keys) & ended == expected & ended
    assert set(keys) - ended <= {b"key of too large an answer", b"key of too much metadata"}


def test_an_inference_that_takes_too_long(shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path) -> None:
    row = Row(
        "slow", "inference_timeout", body("[[slow:1500]]"), retryable=True, dead_lettered=True, attempts=3
    )
    for made in table(shared_kafka, shared_triton, tmp_path, TRITON_TIMEOUT_S="0.5"):
        made.check(row)


def test_a_deadline_that_passes_while_triton_is_gone(shared_kafka: Kafka, tmp_path: Path) -> None:
    row = Row(
        "gone", "unavailable", body("hello"), retryable=True, headers=_deadline(3), says="inference server"
    )
    with Triton(engine="canned") as triton:
        for made in table(shared_kafka, triton, tmp_path):
            triton.kill()
            record = made.check(row)
            deadline = int(made.original(b"key of gone").headers["deadline"] or b"")
            assert 0 <= record.timestamp_ms - deadline < 1_000
            assert made.dead_letters() == []


DEFECT = """
import orjson

sound = orjson.loads

def broken(value):
    if b"its own id" in value:
        raise RuntimeError("a defect: secret detail")
    return sound(value)

orjson.loads = broken
"""


def test_a_defect_of_our_own(shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path) -> None:
    """Injected into what compiled code looks up when it calls it; the request next to it is answered."""
    injected = tmp_path / "injected"
    injected.mkdir()
    (injected / "sitecustomize.py").write_text(DEFECT)
    path = [str(injected), *filter(None, [os.environ.get("PYTHONPATH")])]
    for made in table(shared_kafka, shared_triton, tmp_path, PYTHONPATH=os.pathsep.join(path)):
        sending = Sending(body("x", request_id="its own id"), b"defect", partition=0)
        places = made.whole.send([sending, Sending(body("x", request_id="sound"), partition=0)])
        derived = f"{made.whole.requests}-{places[0][0]}-{places[0][1]}"
        record = made.whole.reply_to(derived)
        row = Row(derived, "internal", sending.value, retryable=True, dead_lettered=True)
        reply = decode_reply(record.value)
        assert reply.error is not None
        assert (reply.error.code, reply.error.retryable) == (row.code, row.retryable)
        assert b"secret" not in (record.value or b"")
        assert record.key == b"defect"
        assert decode_reply(made.whole.reply_to("sound").value).ok
        letter = made.letter(b"defect")
        assert letter.value == sending.value
        assert letter.headers["dlq-reason"] == b"internal"


def test_unknown_fields_pass_where_they_are_ignored(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path
) -> None:
    env = {"REQUEST_UNKNOWN_FIELDS": "ignore"}
    with system(shared_kafka, shared_triton, tmp_path, env=env) as whole:
        whole.start().ready()
        whole.publish([{"request_id": "newer", "prompt": "hello", "stream": True, "n": {"x": [1]}}])
        whole.publish([{"request_id": "wrong", "prompt": "hello", "stream": True, "max_tokens": 0}])
        assert whole.collect(2).codes == {"ok": 1, "invalid_request": 1}
