"""Whatever lies on a topic is a request or a rejection, a reply or none, a dead letter: never an exception.

`PROMPTBUS_FUZZ_INPUTS=1000000 pytest tests/unit/messages/test_fuzz.py` throws more than the usual number. An input that
breaks something is printed whole by the failing test; it belongs into FOUND_BEFORE for good.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from itertools import islice
from operator import attrgetter
from random import Random

import pytest

from promptbus.dead_letters import DeadLetter, Place, Selection, iso_time, obstacle, redriven
from promptbus.messages import (
    ErrorCode,
    Headers,
    InvalidReply,
    Reply,
    Timings,
    decode_reply,
    read_request_headers,
)
from promptbus.messages import dead_letter as dlq
from promptbus_worker.admission import Admission
from promptbus_worker.commit_metadata import MAX_CHARS, decode
from promptbus_worker.ledger import Ownership
from promptbus_worker.record import Pending, Record, Rejection
from promptbus_worker.reply_records import ReplyRecords
from tests.unit.messages.fuzz_inputs import (
    REPLIES,
    REPLY_FIELDS,
    REQUEST_FIELDS,
    REQUESTS,
    SECRET,
    headers,
    mutated,
    nearly_json,
    without_grammar,
)
from tests.unit.worker.path import LIMITS, SPEC

INPUTS = int(os.environ.get("PROMPTBUS_FUZZ_INPUTS", "200000"))
FAMILIES = ["mutated", "without grammar", "nearly JSON"]

ADMISSION = Admission(LIMITS, {"gpt4_nano": SPEC}, "gpt4_nano")
RECORDS = ReplyRecords({"results": 1 << 20, "other": 1 << 20}, dead_letter_topic="dead", worker="w")
OWNED = Ownership("requests", 3, 1)
NOW, WALL_MS = 1_000.0, 1_750_000_000_000.0
NO_TIMINGS = Timings(0.0, 0.0, 0.0)
ALL_OF = attrgetter(*(name for name in dir(Pending) if not name.startswith("_")))

FOUND_BEFORE: list[tuple[bytes, Headers | None]] = [
    (b'{"p\xef\xbb\xbfrompt":"a"}', None),
    (b'{"parameters":{"\\n":"\\u0000"},"prompt":"a"}', None),
    (b'{"prompt":"","metadata":{"n":' + b"9" * 5000 + b"}}", None),
]
"""Inputs that once broke something. The sentences about the first two held a byte order mark and a line break; the
reply to the last one cannot be read in Python."""


def an_input(family: str, chance: Random) -> tuple[bytes | None, Headers | None]:
    match family:
        case "mutated":
            return mutated(chance, REQUESTS), headers(chance)
        case "without grammar":
            return without_grammar(chance) or None, headers(chance)
        case _:
            return nearly_json(chance, REQUEST_FIELDS), headers(chance)


def outcome(value: bytes | None, given: Headers | None, *, twice: bool = True) -> Pending | Rejection:
    """What admission makes of these bytes, after everything that must hold of it."""
    record = Record(OWNED, 77, 1_750_000_000_000, b"k", value, given, len(value or b""), NOW)
    admitted = ADMISSION.admit(record, now=NOW, wall_ms=WALL_MS)
    again = ADMISSION.admit(record, now=NOW, wall_ms=WALL_MS) if twice else admitted
    assert type(admitted) is type(again)
    if isinstance(admitted, Pending):
        assert isinstance(again, Pending)
        assert ALL_OF(admitted) == ALL_OF(again)
        assert admitted.inputs["prompt"]
        assert admitted.model == "gpt4_nano"
        return admitted
    assert isinstance(again, Rejection)
    assert admitted[1:] == again[1:]
    assert ALL_OF(admitted.pending) == ALL_OF(again.pending)
    assert 0 < len(admitted.message) < 400
    assert admitted.message.isprintable()
    assert SECRET not in admitted.message or SECRET in without_prompts(value or b"")
    return admitted


def without_prompts(value: bytes) -> str:
    """The names of an object: what was meant as a prompt may have become one, and a sentence may quote names."""
    try:
        body = json.loads(value)
    except (ValueError, RecursionError):
        return ""
    names = list(body) if isinstance(body, dict) else []
    parameters = body.get("parameters") if isinstance(body, dict) else None
    return " ".join([*names, *(parameters if isinstance(parameters, dict) else [])])


def answer_it(rejection: Rejection) -> None:
    """The reply to a rejection can be written, and read by the one who sent the request."""
    request = rejection.pending
    written = RECORDS.error(request, rejection.code, rejection.message, NO_TIMINGS)
    assert written.topic in ("results", "other")
    try:
        reply = decode_reply(written.value)
    except InvalidReply:
        # Echoed as it came, but Python reads no integer of this length.
        assert re.search(rb"[0-9]{4301}", written.value or b"")
        return
    assert reply.request_id == request.request_id
    assert reply.error is not None
    assert (reply.error.code, reply.error.message) == (rejection.code, rejection.message)


def throw(family: str, inputs: int) -> tuple[Counter[str], str]:
    """So many inputs of a family; how often each outcome was seen, and a digest of all of them."""
    chance = Random(f"{family} 20261121")
    seen, digest = Counter[str](), sha256()
    for number in range(inputs):
        value, given = an_input(family, chance)
        try:
            result = outcome(value, given, twice=number % 4 == 0)
            if isinstance(result, Rejection):
                seen[result.code] += 1
                seen["no request at all"] += result.dead_letter
                if number % 8 == 0:
                    answer_it(result)
                digest.update(result.message.encode())
            else:
                seen["request"] += 1
                digest.update(repr(result.inputs).encode())
        except BaseException as error:
            raise AssertionError(
                f"input {number} of {family!r}: value={value!r} headers={given!r}"
            ) from error
    return seen, digest.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_record_is_a_request_or_a_rejection_with_a_sentence(family: str) -> None:
    seen, _ = throw(family, INPUTS // len(FAMILIES) + 1)
    # A family that reaches one outcome only would test nothing.
    assert seen["no request at all"] > 0.05 * seen.total()
    if family != "without grammar":
        assert seen["request"] > 0.02 * seen.total()
        assert seen["invalid_request"] - seen["no request at all"] > 0.02 * seen.total()
        assert min(seen["model_not_found"], seen["expired"]) > 0


def test_another_process_comes_to_the_same_results() -> None:
    """Nothing depends on the order of a set or a dict that is another one tomorrow."""
    code = (
        "from tests.unit.messages.test_fuzz import FAMILIES, throw;"
        "print([throw(family, 1000)[1] for family in FAMILIES])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert other.stdout.strip() == str([throw(family, 1000)[1] for family in FAMILIES]), other.stderr


@pytest.mark.parametrize(("value", "given"), FOUND_BEFORE)
def test_what_once_broke_it_does_not_any_more(value: bytes, given: Headers | None) -> None:
    result = outcome(value, given)
    if isinstance(result, Rejection):
        answer_it(result)


def test_any_bytes_are_a_reply_or_none() -> None:
    chance, read = Random(20261121), 0
    for number in range(INPUTS // 4):
        match number % 3:
            case 0:
                value = mutated(chance, REPLIES)
            case 1:
                value = nearly_json(chance, REPLY_FIELDS)
            case _:
                value = without_grammar(chance)
        try:
            reply = decode_reply(value)
        except InvalidReply:
            continue
        except BaseException as error:
            raise AssertionError(f"reply {number}: {value!r}") from error
        read += 1
        assert isinstance(reply, Reply)
        assert (reply.response is None) != (reply.error is None)
    assert INPUTS // 1000 < read < INPUTS // 5


DLQ_NAMES = [*sorted(dlq.OUR_HEADERS), dlq.REDRIVE_COUNT]
DLQ_VALUES: list[bytes | None] = [
    None, b"", b"0", b"7", b"-1", b"9" * 19, b"9" * 5000, b"\xff", "²".encode(), "٣".encode(), b"1.5", b" 1",
    b"model_error", b"invalid_request", b"requests", b"no code", b"\0",
]  # fmt: skip


def test_any_record_can_be_looked_at_as_a_dead_letter() -> None:
    chance, sent = Random(20261122), 0
    for number in range(INPUTS // 10):
        value, given = an_input(FAMILIES[number % 3], chance)
        ours = [(chance.choice(DLQ_NAMES), chance.choice(DLQ_VALUES)) for _ in range(chance.randrange(6))]
        letter = DeadLetter(
            Place(0, number), chance.choice([-1, 0, 2**62]), None, value, [*(given or ()), *ours]
        )
        try:
            Selection(codes=frozenset({"internal"}), request_ids=frozenset({"r"})).takes(letter)
            assert letter.origin is None or letter.origin.offset >= 0
            assert letter.redrive_count >= 0
            assert isinstance((letter.worker, letter.attempts, letter.truncated_from), tuple)
            iso_time(letter.request_timestamp_ms)
            iso_time(letter.timestamp_ms)
            if obstacle(letter, request_topic="requests", to=None, codes=()) is None:
                again = redriven(letter)
                sent += 1
                assert read_request_headers(again.headers).request_id == letter.request_id
        except BaseException as error:
            raise AssertionError(f"dead letter {number}: {letter!r}") from error
    assert sent > 0


def test_any_text_is_commit_metadata_or_says_nothing() -> None:
    chance, understood = Random(20261123), 0
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for number in range(INPUTS // 10):
        letters = alphabet if number % 4 else alphabet + "=+/\0é\n "
        text = "".join(chance.choices(letters, k=chance.choice([0, 1, 2, 3, 8, 40, 500])))
        runs = decode(chance.choice([0, 1, 10**6, 2**62]), chance.choice(["pb1:", "pb1:", "pb2:", ""]) + text)
        understood += bool(runs)
        assert all(first < end for first, end in runs)
        assert all(before[1] < after[0] for before, after in zip(runs, islice(runs, 1, None), strict=False))
    assert decode(0, "pb1:" + "A" * 10 * MAX_CHARS) == []
    assert understood > INPUTS // 1000


def test_every_code_that_admission_gives_is_one_that_needs_no_call() -> None:
    """Of the codes, admission has four; the others need a call, a broker or a defect."""
    seen = Counter[str]()
    for family in FAMILIES:
        seen += throw(family, 3000)[0]
    codes = set(seen) - {"request", "no request at all"}
    assert codes <= {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.TOO_LARGE,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.EXPIRED,
    }
