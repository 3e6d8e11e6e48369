"""Dead letters without a broker: what they say, what is sent again, what is counted, what is refused."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import KafkaError
from hypothesis import example, given
from hypothesis import strategies as st

from promptbus.commands import dead_letters as command
from promptbus.commands.dead_letters_look import as_json_line, as_row, as_table, as_text
from promptbus.commands.dead_letters_purge import refusal
from promptbus.commands.dead_letters_redrive import report
from promptbus.dead_letters import (
    CODES,
    DeadLetter,
    Obstacle,
    Place,
    Selection,
    Span,
    by_code,
    obstacle,
    parse_place,
    parse_time,
    redriven,
    some,
)
from promptbus.delete_records import why_not
from promptbus.errors import (
    DeliveryFailed,
    KafkaUnavailable,
    MessageTooLarge,
    NotAllowed,
    PromptBusError,
)
from promptbus.messages import ErrorCode, Headers, dead_letter_headers, fit_dead_letter
from promptbus.redrive import Pace, Redrive
from promptbus.settings import KafkaSettings
from tests.unit.cli.commands import promptbus
from tests.unit.client.place import environment_for, settings_for

NOW_S = 1_800_000_000.0


def letter(
    offset: int = 0,
    *,
    partition: int = 0,
    value: bytes | None = b'{"prompt": "x"}',
    headers: Headers = (),
    code: ErrorCode = ErrorCode.MODEL_ERROR,
    topic: str = "requests",
    timestamp_ms: int = 1_000,
    max_bytes: int = 1 << 20,
) -> DeadLetter:
    """As a worker writes it; the request lay at 3:42."""
    ours = dead_letter_headers(
        headers, code=code, topic=topic, partition=3, offset=42, timestamp_ms=900, attempts=2, worker="w-0"
    )
    cut, fitted = fit_dead_letter(value, ours, key=b"k", max_bytes=max_bytes)
    return DeadLetter(Place(partition, offset), timestamp_ms, b"k", cut, fitted)


# ---- what a dead letter says


def test_a_dead_letter_is_read_from_its_headers() -> None:
    read = letter(7, headers=[("redrive-count", b"2")])
    assert (read.code, read.topic, read.origin) == ("model_error", "requests", Place(3, 42))
    assert (read.attempts, read.worker, read.redrive_count, read.whole) == (2, "w-0", 2, True)
    assert (read.request_timestamp_ms, read.truncated_from) == (900, None)


def test_a_record_of_another_program_says_nothing_and_breaks_nothing() -> None:
    odd = [
        ("dlq-partition", b"-1"),
        ("dlq-offset", b"9" * 30),
        ("dlq-attempts", None),
        ("dlq-reason", b"\xff"),
    ]
    read = DeadLetter(Place(0, 0), -1, None, None, odd)
    assert (read.code, read.topic, read.origin, read.attempts, read.request_id) == (
        "\ufffd",
        "",
        None,
        None,
        None,
    )
    assert read.redrive_count == 0
    assert obstacle(read, request_topic="requests", to="x", codes=()) is Obstacle.NO_DEAD_LETTER
    assert as_row(read) == ("0:0", "-", "\ufffd", "-", "-", "-", "-", "null", "0")
    assert orjson.loads(as_json_line(read))["request_id"] is None
    assert "dlq-attempts: null" in as_text(read)


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        (b'{"prompt": "x", "request_id": "body"}', [("request-id", b"header")], "body"),
        (b'{"prompt": 1, "request_id": "body"}', [], "body"),
        (b'{"prompt": "x"}', [("request-id", b"header")], "header"),
        (b'{"prompt": "x", "request_id": 7}', [], "requests-3-42"),
        (b'{"prompt": "x", "stream": true, "request_id": "body"}', [], "body"),
        (b"garbage", [("request-id", b"\xff")], "requests-3-42"),
        (None, [("request-id", None)], "requests-3-42"),
    ],
)
def test_the_request_id_is_the_one_that_the_workers_answered_under(
    value: bytes | None, headers: Headers, expected: str
) -> None:
    assert letter(value=value, headers=headers).request_id == expected


def test_of_a_body_that_was_cut_only_a_header_tells_the_id() -> None:
    long = b'{"request_id": "body", "prompt": "' + b"x" * 5_000 + b'"}'
    assert letter(value=long, max_bytes=2_000).request_id is None
    assert letter(value=long, headers=[("request-id", b"h")], max_bytes=2_000).request_id == "h"


# ---- what is sent again


def test_what_is_redriven_is_the_request_as_it_was() -> None:
    headers: Headers = [
        ("deadline", b"1"),
        ("a", b"1"),
        ("a", None),
        ("request-id", b"old"),
        ("traceparent", b"t"),
    ]
    again = redriven(letter(value=b'{"prompt": "x"}', headers=headers))
    assert again.key == b"k"
    assert again.value == b'{"prompt": "x"}'
    assert again.headers == [
        ("a", b"1"),
        ("a", None),
        ("traceparent", b"t"),
        ("request-id", b"old"),
        ("redrive-count", b"1"),
    ]
    assert ("deadline", b"1") in redriven(letter(headers=headers), keep_deadline=True).headers


def test_each_death_is_counted_and_the_first_id_stays() -> None:
    again = redriven(letter())
    for lives in (2, 3):
        died = DeadLetter(
            Place(0, lives),
            0,
            again.key,
            again.value,
            dead_letter_headers(
                again.headers,
                code=ErrorCode.INTERNAL,
                topic="requests",
                partition=0,
                offset=lives,
                timestamp_ms=0,
                attempts=1,
                worker="w",
            ),
        )
        again = redriven(died)
        assert again.headers == [("request-id", b"requests-3-42"), ("redrive-count", b"%d" % lives)]


header_lists = st.lists(
    st.tuples(
        st.sampled_from(
            ["dlq-reason", "dlq-offset", "dlq-x", "deadline", "request-id", "redrive-count", "x"]
        ),
        st.none() | st.binary(max_size=30),
    )
)


@example(None, [("dlq-reason", b"\x1b[2J")])
@given(st.none() | st.binary(max_size=50), header_lists)
def test_anything_can_be_read_shown_and_redriven(value: bytes | None, headers: Headers) -> None:
    read = DeadLetter(Place(0, 0), 0, None, value, headers)
    again = redriven(read)
    names = [name for name, _ in again.headers]
    assert names.count("redrive-count") == 1
    assert names.count("request-id") <= 1
    assert not {"deadline", "dlq-reason", "dlq-offset", "dlq-x"} & set(names)
    assert [h for h in again.headers if h[0] == "x"] == [h for h in headers if h[0] == "x"]
    orjson.loads(as_json_line(read))
    as_row(read)
    assert "\x1b" not in as_text(read)


def test_what_stands_against_sending() -> None:
    cut = letter(value=b"x" * 5_000, max_bytes=2_000)
    headers_cut = letter(value=None, headers=[("huge", bytes(5_000))], max_bytes=1_000)
    garbage = letter(value=b"[]", code=ErrorCode.INVALID_REQUEST)
    elsewhere = letter(topic="other")

    def against(read: DeadLetter, to: str | None = None, codes: tuple[str, ...] = ()) -> Obstacle | None:
        return obstacle(read, request_topic="requests", to=to, codes=codes)

    assert against(letter()) is None
    assert against(letter(code=ErrorCode.INTERNAL), codes=("internal",)) is None
    assert against(cut) is against(headers_cut) is against(cut, to="other") is Obstacle.CUT
    assert against(elsewhere) is Obstacle.OTHER_TOPIC
    assert against(elsewhere, to="other") is against(elsewhere, to="third") is None
    assert against(garbage) is Obstacle.NO_REQUEST
    assert against(garbage, codes=("invalid_request",)) is None


# ---- a run


class FakeWriter:
    """Acknowledges at `poll` and `flush`; `answer` gives the error for a record, `on_publish` may raise."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes | None, Headers]] = []
        self.answer: Callable[[int], PromptBusError | None] = lambda index: None
        self.on_publish: Callable[[int], None] = lambda index: None
        self.acknowledging = True
        self.slept_s = 0.0
        self._due: list[tuple[int, Callable[[PromptBusError | None], None]]] = []

    def publish_waiting(
        self,
        value: bytes | None,
        *,
        headers: Headers,
        key: bytes | None,
        delivered: Callable[[PromptBusError | None], None],
    ) -> None:
        index = len(self.published)
        self.on_publish(index)
        self.published.append((value, headers))
        self._due.append((index, delivered))

    def poll(self, timeout_s: float) -> None:
        self.slept_s += timeout_s
        self.flush(0)

    def flush(self, timeout_s: float) -> int:
        if self.acknowledging:
            due, self._due = self._due, []
            for index, delivered in due:
                delivered(self.answer(index))
        return len(self._due)


SPANS = [Span(0, 0, 10), Span(2, 5, 10)]


def letters(spans: list[Span] = SPANS) -> Iterator[DeadLetter]:
    for span in spans:
        for offset in range(span.start, span.end):
            # its place as value, so that it is known again
            yield letter(offset, partition=span.partition, value=b"%d:%d" % (span.partition, offset))


def run_of(
    writer: FakeWriter | None,
    *,
    limit: int | None = None,
    rate: float | None = None,
    selected: Selection | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Redrive:
    return Redrive(
        writer,
        stop=stop,
        selection=selected or Selection(),
        request_topic="requests",
        limit=limit,
        rate=rate,
        clock=lambda: 0.0 if writer is None else writer.slept_s,
    )


def test_a_run_sends_all_and_waits_for_the_acknowledgements() -> None:
    writer = FakeWriter()
    run = run_of(writer)
    run.run(letters())
    assert run.sent == {"model_error": 15}
    assert len(writer.published) == 15
    assert (run.stopped_at, run.failure) == (None, None)
    assert run.remaining(SPANS) == []
    assert report(run, SPANS, "requests") == []


def test_a_dry_run_counts_the_same_and_sends_nothing() -> None:
    run = run_of(None, limit=12)
    run.run(letters())
    assert run.sent == {"model_error": 12}
    assert run.remaining(SPANS) == [Span(2, 7, 10)]


def test_only_what_is_selected_counts_towards_the_limit() -> None:
    mixed = [letter(n, code=ErrorCode.INTERNAL if n % 2 else ErrorCode.MODEL_ERROR) for n in range(10)]
    run = run_of(FakeWriter(), limit=2, selected=Selection(codes=frozenset({"internal"})))
    run.run(mixed)
    assert run.sent == {"internal": 2}
    assert run.stopped_at == Place(0, 4)


def test_what_cannot_be_sent_is_named_and_the_rest_goes() -> None:
    run = run_of(FakeWriter())
    cut = letter(1, value=b"x" * 5_000, max_bytes=2_000)
    run.run([letter(0), cut, letter(2, topic="other"), letter(3, code=ErrorCode.INVALID_REQUEST), letter(4)])
    assert run.sent.total() == 2
    told = report(run, SPANS, "requests")
    assert len(told) == 3
    assert "cut to fit this topic, the request is not whole: 1 (0:1)" in told[0]
    assert "'other' 1" in told[1]
    assert "KAFKA_REQUEST_TOPIC is 'requests'" in told[1]
    assert "--code invalid_request" in told[2]


@pytest.mark.parametrize("raised", [True, False], ids=["refused at once", "refused by the broker"])
def test_one_that_is_too_large_does_not_hold_up_the_others(raised: bool) -> None:
    writer = FakeWriter()
    too_large = MessageTooLarge(9, 8, "requests")

    def refuse(index: int) -> None:
        if (
            raised
            and index == 3
            and len(writer.published) == 3
            and not writer.on_publish.__dict__.get("done")
        ):
            writer.on_publish.__dict__["done"] = True
            raise too_large

    writer.on_publish = refuse
    writer.answer = lambda index: too_large if not raised and index == 3 else None
    run = run_of(writer)
    run.run(letters())
    assert run.sent.total() == 14
    assert list(run.too_large) == [Place(0, 3)]
    assert (run.failure, run.stopped_at) == (None, None)
    assert "not redriven, 0:3: the request is 9 bytes" in report(run, SPANS, "requests")[0]


def test_a_failed_delivery_ends_the_run_and_it_goes_on_from_there() -> None:
    writer = FakeWriter()
    writer.answer = lambda index: DeliveryFailed("no broker") if index == 4 else None
    run = run_of(writer)
    run.run(letters())
    assert run.sent.total() == 14
    assert list(run.unacknowledged) == [Place(0, 4)]
    assert run.remaining(SPANS) == [Span(0, 4, 10), Span(2, 5, 10)]
    told = report(run, SPANS, "requests")
    assert told[0] == "not acknowledged, though perhaps written: 1 (0:4)"
    assert told[1] == "no broker"
    assert told[2].endswith(
        "--partition 0 --from-offset 4 --to-offset 9, then with --partition 2 --from-offset 5 --to-offset 9"
    )


def test_a_failure_seen_while_waiting_for_the_turn_skips_nothing() -> None:
    writer = FakeWriter()
    writer.answer = lambda index: DeliveryFailed("no broker") if index == 4 else None
    run = run_of(writer, rate=10)
    run.run(letters())
    assert len(writer.published) == 5
    assert run.stopped_at == Place(0, 4)


def test_a_reader_that_fails_ends_the_run_after_what_it_had_read() -> None:
    def breaking() -> Iterator[DeadLetter]:
        yield from letters([Span(0, 0, 3)])
        raise DeliveryFailed("gone")

    run = run_of(FakeWriter())
    run.run(breaking())
    assert run.sent.total() == 3
    assert run.stopped_at == Place(0, 3)
    assert run.failure is not None


@pytest.mark.parametrize("seed", range(30))
def test_wherever_it_is_interrupted_nothing_is_skipped(seed: int) -> None:
    """Also before and after the record has gone into the producer's queue, and with some not acknowledged."""
    chance = random.Random(seed)
    at, after = chance.randrange(15), chance.random() < 0.5
    writer = FakeWriter()

    def interrupt(index: int) -> None:
        if index == at and not after:
            raise KeyboardInterrupt

    def interrupting() -> Iterator[DeadLetter]:
        for index, read in enumerate(letters()):
            if index == at and after:
                raise KeyboardInterrupt
            if chance.random() < 0.3:
                writer.poll(0)
            yield read

    writer.on_publish = interrupt
    run = run_of(writer)
    writer.acknowledging = chance.random() < 0.8
    run.run(interrupting())
    assert run.interrupted
    left = run.remaining(SPANS)
    remaining = {read.place for read in letters(left)}
    assert set(run.unacknowledged) <= remaining
    acknowledged = {b"%d:%d" % read.place for read in letters()} - {b"%d:%d" % place for place in remaining}
    assert acknowledged <= {value for value, _ in writer.published}
    writer.on_publish, writer.acknowledging = lambda index: None, True
    run_of(writer).run(letters(left))
    assert {value for value, _ in writer.published} == {b"%d:%d" % read.place for read in letters()}


@pytest.mark.parametrize("at", range(15))
def test_told_to_stop_it_goes_on_with_exactly_the_next_one(at: int) -> None:
    writer = FakeWriter()
    run = run_of(writer, stop=lambda: len(writer.published) >= at)
    run.run(letters())
    assert run.interrupted
    assert len(writer.published) == at
    run_of(writer).run(letters(run.remaining(SPANS)))
    assert [value for value, _ in writer.published] == [b"%d:%d" % read.place for read in letters()]


def test_a_rate_is_kept_and_a_pause_is_not_made_up_for() -> None:
    writer = FakeWriter()
    run_of(writer, rate=5).run(letters())
    assert 14 / 5 - 0.2 <= writer.slept_s <= 14 / 5 + 0.2
    pace = Pace(10)
    now = 0.0
    for _ in range(10):
        now = max(now, pace.next_at(now))
    assert now == pytest.approx(0.8, abs=0.11)
    now += 60
    burst = sum(pace.next_at(now) <= now for _ in range(20))
    assert burst <= 3
    assert Pace(None).next_at(1.0) <= 1.0


# ---- filters


def test_all_filters_must_hold() -> None:
    selected = Selection(
        codes=frozenset({"model_error"}),
        since_ms=1_000,
        until_ms=2_000,
        request_ids=frozenset({"requests-3-42"}),
    )
    assert selected.takes(letter())
    assert not selected.takes(letter(code=ErrorCode.INTERNAL))
    assert not selected.takes(letter(timestamp_ms=999))
    assert not selected.takes(letter(timestamp_ms=2_000))
    assert not selected.takes(letter(headers=[("request-id", b"r")]))
    assert Selection().takes(letter(value=None))


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("30s", 1_799_999_970_000),
        ("1.5h", 1_799_994_600_000),
        ("7d", 1_799_395_200_000),
        ("2w", 1_798_790_400_000),
        ("2027-01-15T08:00:00Z", 1_800_000_000_000),
        ("2027-01-15T09:00+01:00", 1_800_000_000_000),
    ],
)
def test_times(text: str, ms: int) -> None:
    assert parse_time(text, NOW_S) == ms


@pytest.mark.parametrize("text", ["", "h", "2 hours", "-2h", "yesterday", "2027-13-01", "99999"])
def test_what_is_no_time_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no time: write"):
        parse_time(text, NOW_S)


def test_the_tables_own_time_is_one_that_since_takes() -> None:
    shown = as_row(letter(timestamp_ms=1_800_000_000_000))[1]
    assert parse_time(shown, 0) == 1_800_000_000_000


def test_places() -> None:
    assert parse_place("0:41") == parse_place("0/41") == Place(0, 41)
    for text in ("41", "0:", ":1", "a:1", "0:-1", "0:1:2"):
        with pytest.raises(ValueError, match="is no place"):
            parse_place(text)


def test_codes_are_those_that_workers_dead_letter() -> None:
    assert set(CODES) == {code.value for code in ErrorCode if code.dead_lettered} | {"invalid_request"}


# ---- what people see


def test_the_table_is_aligned_and_its_rows_stay_rows() -> None:
    evil = letter(headers=[("request-id", b"a\n\x1b[2J" + b"x" * 100)])
    cut = letter(123, value=b"x" * 5_000, max_bytes=2_000)
    lines = as_table([as_row(evil), as_row(cut)])
    assert len(lines) == 3
    assert lines[0].split() == [
        "PLACE",
        "TIME",
        "CODE",
        "ORIGIN",
        "ATTEMPTS",
        "WORKER",
        "REQUEST",
        "ID",
        "BYTES",
        "REDRIVEN",
    ]
    assert "\x1b" not in lines[1]
    assert "requests 3:42" in lines[1]
    assert " of 5,000 " in lines[2]
    assert len({line.index("model_error") for line in lines[1:]}) == 1


def test_show_keeps_a_terminal_safe() -> None:
    text = as_text(letter(value=b"\xff\x1b]0;t\x07{\n}", headers=[("x\n", b"\x9b2J\ny"), ("n", None)]))
    assert "\\xff\ufffd]0;t\ufffd{\n}" in text
    assert "x\\n: \\x9b2J\\ny\n" in text
    assert "n: null\n" in text


def test_counts_and_places_in_words() -> None:
    assert (
        by_code(Counter({"internal": 1, "model_error": 1_200, "": 1}))
        == "1,202 (model_error 1,200, internal 1, no code 1)"
    )
    assert by_code(Counter()) == "0"
    assert "\x1b" not in by_code(Counter({"\x1b[2J": 1}))
    assert some([Place(0, n) for n in range(12)], 2) == "0:0, 0:1 and 10 more"


# ---- the command line


@pytest.mark.parametrize(
    ("selected", "says"),
    [
        (Selection(codes=frozenset({"internal"}), to_offset=3), "cannot take --code"),
        (Selection(since_ms=1, from_offset=1), "cannot take --since and --from-offset"),
        (Selection(request_ids=frozenset({"r"})), "cannot take --request-id"),
        (Selection(), "how far?"),
        (Selection(partitions=frozenset({1})), "how far?"),
        (Selection(until_ms=1), None),
        (Selection(to_offset=0, partitions=frozenset({0})), None),
    ],
)
def test_purge_refuses_what_kafka_cannot_delete(selected: Selection, says: str | None) -> None:
    said = refusal(selected, everything=False)
    assert (said is None) if says is None else (said is not None and says in said)
    if says == "how far?":
        assert refusal(selected, everything=True) is None


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (KafkaError.POLICY_VIOLATION, PromptBusError, "cleanup.policy must contain `delete`"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, NotAllowed, "lacks the right DELETE on topic 'dead'"),
        (KafkaError._TIMED_OUT, KafkaUnavailable, "no Kafka broker at b:1 did it"),
        (KafkaError.OFFSET_OUT_OF_RANGE, PromptBusError, "OFFSET_OUT_OF_RANGE"),
    ],
)
def test_why_kafka_deletes_nothing_is_a_sentence(code: int, kind: type[Exception], says: str) -> None:
    error = why_not(KafkaError(code), "dead", KafkaSettings(_env_file=None, KAFKA_BOOTSTRAP="b:1"))
    assert type(error) is kind
    assert says in str(error)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(arguments)


def test_filters_are_repeatable_and_offsets_inclusive() -> None:
    arguments = parsed(
        *[
            "list",
            "--code",
            "internal",
            "--code",
            "model_error",
            "--partition",
            "1",
            "--partition",
            "2",
            "--from-offset",
            "3",
            "--to-offset",
            "3",
        ]
    )
    assert command.selection(arguments) == Selection(
        codes=frozenset({"internal", "model_error"}), partitions=frozenset({1, 2}), from_offset=3, to_offset=3
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "list --code modelerror",
        "list --since soon",
        "list --partition -1",
        "show",
        "show 41",
        "redrive --rate 0",
        "redrive --rate inf",
        "redrive --limit 0",
        "purge --code internal --raw",
    ],
)
def test_mistakes_are_2(line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*line.split())
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("redrive", b"name a filter"),
        ("redrive --all --to replies", b"no requests go to the topic of replies"),
        ("list --since 1h --until 2h", b"--until is not after --since"),
        ("purge --code internal --yes", b"purge cannot take --code"),
        ("purge --all", b"add --yes"),
        ("show --raw 0:1 0:2", b"--raw writes the value of one"),
        ("list --since soon", b"'soon' is no time: write 30m"),
    ],
)
def test_what_is_refused_before_kafka_is_asked(line: str, says: bytes, tmp_path: Path) -> None:
    environment = environment_for(settings_for("127.0.0.1:1", "requests", "replies"))
    done = promptbus(["dead-letters", *line.split()], environment, tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == b""
