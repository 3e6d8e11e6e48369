"""The ledger's judgement can fail: each kind of violation is found, and what is allowed is not one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.chaos.judgement import Fired, Verdict, judge
from tests.chaos.requests import DEADLINE_CODES, Sent
from tests.integration.system import Read

TOPIC = "req"
AT_S = 1000.0
REPLIED_MS = 1_002_000


def sent(number: int, *codes: str, **more: object) -> Sent:
    made = Sent(
        number,
        "ordinary",
        b"{}",
        None,
        frozenset(codes or ("ok",)),
        given_id=f"r{number}",
        prompt=f"prompt {number}",
        published_at=AT_S,
        place=(0, number),
        timestamp_ms=int(AT_S * 1000),
    )
    return replace(made, **more)  # type: ignore[arg-type]  # fields of Sent


def reply(request: Sent, code: str = "ok", at_ms: int = REPLIED_MS, **more: object) -> Read:
    body: dict[str, object] = {
        "request_id": request.request_id(TOPIC),
        "reply_id": request.reply_id(TOPIC),
        "attempts": 1,
    }
    if code == "ok":
        body |= {"status": "ok", "response": f"{request.fingerprint} text"}
    else:
        body |= {"status": "error", "error": {"code": code, "message": "no", "retryable": False}}
    key = request.request_id(TOPIC).encode() if request.key is None else request.key
    return Read(key, json.dumps(body | more).encode(), {}, timestamp_ms=at_ms)


def letter(request: Sent) -> Read:
    assert request.place is not None
    partition, offset = request.place
    headers = {
        "dlq-topic": TOPIC.encode(),
        "dlq-partition": b"%d" % partition,
        "dlq-offset": b"%d" % offset,
    }
    return Read(None, request.value, dict(headers))


def fault(in_hand: int = 100, breaks: int = 0, at_s: float = AT_S + 1) -> Fired:
    return Fired(at_s, at_s + 5, "kill Triton", "pid 1", in_hand, "process gone", breaks)


def judged(
    requests: list[Sent], replies: list[Read], letters: list[Read] | None = None, *fired: Fired
) -> Verdict:
    settled = {(0, number) for number in range(5)}
    return judge(TOPIC, requests, replies, letters or [], settled, fired)


def test_right_answers_are_clean() -> None:
    failing, garbage = sent(2, "model_error"), sent(3, "invalid_request", dead_letter=True)
    verdict = judged(
        [sent(1), failing, garbage],
        [reply(sent(1)), reply(failing, "model_error"), reply(garbage, "invalid_request")],
        [letter(failing), letter(garbage)],
    )
    assert verdict.clean
    assert verdict.codes == {"ok": 1, "model_error": 1, "invalid_request": 1}


def test_a_settled_request_without_a_reply_is_lost() -> None:
    verdict = judged([sent(1), sent(2)], [reply(sent(1))])
    assert (len(verdict.lost), len(verdict.unanswered), verdict.clean) == (1, 0, False)


@pytest.mark.parametrize(("read", "seen"), [([], "none was ever read"), ([1], "one was read during the run")])
def test_a_lost_reply_is_told_with_whether_it_was_ever_there(read: list[int], seen: str) -> None:
    meanwhile = {sent(number).request_id(TOPIC) for number in read}
    verdict = judge(TOPIC, [sent(1)], [], [], {(0, 1)}, (), read_meanwhile=meanwhile)
    (lost,) = verdict.lost
    assert seen in lost


def test_an_unsettled_request_without_a_reply_is_unanswered() -> None:
    verdict = judged([sent(9)], [])
    assert (len(verdict.lost), len(verdict.unanswered), verdict.clean) == (0, 1, False)


@pytest.mark.parametrize(
    "wrong",
    [
        reply(sent(1), response=f"{sent(2).fingerprint} text"),
        reply(sent(1), reply_id=sent(2).reply_id(TOPIC)),
        reply(sent(1, key=b"another")),
        reply(sent(1), "model_error"),
        reply(sent(1), "expired"),
        reply(sent(1), "internal"),
        Read(b"r1", b"not a reply", {}),
    ],
    ids=["prompt", "reply id", "key", "model_error", "expired", "internal", "no reply"],
)
def test_a_wrong_reply_is_found(wrong: Read) -> None:
    verdict = judged([sent(1)], [wrong], [letter(sent(1))])
    assert verdict.wrong
    assert not verdict.clean


def test_a_wrong_reply_is_found_although_the_first_was_right() -> None:
    verdict = judged([sent(1)], [reply(sent(1)), reply(sent(1), "internal", REPLIED_MS + 1)], [], fault())
    assert not verdict.clean


def test_a_reply_to_nobody_is_wrong() -> None:
    assert judged([sent(1)], [reply(sent(1)), reply(sent(2))]).wrong == ["r2: 1 replies to nobody"]


def test_two_different_answers_to_one_request_are_wrong() -> None:
    other = reply(sent(1), response=f"{sent(1).fingerprint} another text")
    assert judged([sent(1)], [reply(sent(1)), other], [], fault()).wrong


def test_a_repeated_reply_is_a_duplicate_of_the_fault_around_it() -> None:
    again = reply(sent(1), at_ms=REPLIED_MS + 20_000)
    before, during, after = fault(at_s=AT_S - 10), fault(), fault(at_s=AT_S + 15)
    verdict = judged([sent(1)], [reply(sent(1)), again], [], before, during, after)
    assert verdict.clean
    assert verdict.duplicates == 1
    assert verdict.duplicates_by_fault == [0, 1, 0]


def test_a_repeated_reply_may_be_the_aftermath_of_the_last_fault() -> None:
    again = reply(sent(1), at_ms=REPLIED_MS + 1)
    assert judged([sent(1)], [reply(sent(1)), again], [], fault(at_s=AT_S - 10)).duplicates_by_fault == [1]


@pytest.mark.parametrize("at_s", [AT_S - 100, AT_S + 100])
def test_a_repeated_reply_that_no_fault_explains_is_wrong(at_s: float) -> None:
    again = reply(sent(1), at_ms=REPLIED_MS + 1)
    assert judged([sent(1)], [reply(sent(1)), again], [], fault(at_s=at_s)).wrong


def twice(request: Sent) -> list[Read]:
    return [reply(request), reply(request, at_ms=REPLIED_MS + 1)]


def test_with_transactions_nothing_may_be_seen_twice_whatever_explains_it() -> None:
    failing = sent(2, "model_error")
    replies, letters = [reply(failing, "model_error")], [letter(failing)]

    def seen(more: list[Read], more_letters: list[Read]) -> Verdict:
        settled = {(0, number) for number in range(5)}
        found = [*replies, *more], [*letters, *more_letters]
        return judge(TOPIC, [failing], *found, settled, [fault()], exactly_once=True)

    assert seen([], []).clean
    assert not seen(replies, []).clean
    assert not seen([], letters).clean


def test_more_duplicates_than_were_in_hand_are_a_violation() -> None:
    requests = [sent(1), sent(2)]
    replies = [*twice(sent(1)), *twice(sent(2))]
    assert judged(requests, replies, [], fault(in_hand=2)).clean
    assert not judged(requests, replies, [], fault(in_hand=1)).clean
    assert not judged(requests, replies).clean
    assert judged(requests, replies, [], replace(fault(in_hand=1), most_in_hand=2)).clean, "it took more"


def test_a_fault_with_much_in_hand_explains_no_duplicates_of_another() -> None:
    far_away = fault(in_hand=1000, at_s=AT_S + 100)
    assert not judged(
        [sent(1), sent(2)], [*twice(sent(1)), *twice(sent(2))], [], fault(in_hand=1), far_away
    ).clean


def test_what_one_fault_cannot_explain_is_laid_to_another_around_it() -> None:
    replies = [*twice(sent(1)), *twice(sent(2))]
    verdict = judged([sent(1), sent(2)], replies, [], fault(in_hand=1), fault(in_hand=1))
    assert verdict.clean
    assert verdict.duplicates_by_fault == [1, 1]


def in_order(requests: list[Sent], replies: list[Read], *fired: Fired) -> Verdict:
    placed = [replace(record, offset=offset) for offset, record in enumerate(replies)]
    return judge(TOPIC, requests, placed, [], (), fired, ordered=True)


def test_replies_of_a_key_out_of_order_are_wrong() -> None:
    one, two = sent(1, key=b"k"), sent(2, key=b"k")
    assert in_order([one, two], [reply(one), reply(two)]).in_order == 1
    assert in_order([one, two], [reply(one), reply(two)]).clean
    assert in_order([one, two], [reply(two), reply(one)]).wrong
    assert judged([one, two], [reply(two), reply(one)]).clean, "nobody asked for it"


def test_only_a_first_reply_and_only_one_key_and_no_deadline_count_for_the_order() -> None:
    one, two, other = sent(1, key=b"k"), sent(2, key=b"k"), sent(3, key=b"l")
    again = reply(one, at_ms=REPLIED_MS + 1)
    assert in_order([one, two], [reply(one), reply(two), again], fault()).clean
    assert in_order([one, other], [reply(other), reply(one)]).clean
    assert in_order([sent(1), sent(2)], [reply(sent(2)), reply(sent(1))]).clean
    late = replace(one, deadline_ms=REPLIED_MS + 1)
    assert in_order([late, two], [reply(two), reply(late)]).clean


def test_a_missing_dead_letter_is_lost() -> None:
    verdict = judged([sent(1, "model_error")], [reply(sent(1), "model_error")])
    assert len(verdict.lost) == 1


@pytest.mark.parametrize("letters", [[letter(sent(1))], [letter(sent(8))]], ids=["of an answer", "of nobody"])
def test_a_dead_letter_that_nothing_asks_for_is_wrong(letters: list[Read]) -> None:
    assert judged([sent(1)], [reply(sent(1))], letters).wrong


def test_expired_before_the_deadline_is_wrong() -> None:
    late = sent(1, *DEADLINE_CODES, deadline_ms=REPLIED_MS)
    assert judged([late], [reply(late, "expired")]).clean
    early = replace(late, deadline_ms=REPLIED_MS + 100)
    assert judged([early], [reply(early, "expired")]).wrong
    assert judged([early], [reply(early, "unavailable")]).wrong


def test_a_redelivered_request_may_be_too_late_for_its_deadline() -> None:
    late = sent(1, *DEADLINE_CODES, deadline_ms=REPLIED_MS)
    replies = [reply(late, at_ms=REPLIED_MS - 5), reply(late, "expired", REPLIED_MS + 5)]
    assert judged([late], replies, [], fault()).clean


def test_a_good_prompt_may_be_given_up_only_after_three_broken_calls() -> None:
    given_up = reply(sent(1), "inference_timeout", attempts=3)
    breaking = fault(breaks=1)
    verdict = judged([sent(1)], [given_up], [letter(sent(1))], breaking, breaking, breaking)
    assert verdict.clean
    assert verdict.given_up == 1
    assert judged([sent(1)], [given_up], [letter(sent(1))], breaking, breaking, fault()).wrong
    too_late = fault(breaks=1, at_s=AT_S + 100)
    assert judged([sent(1)], [given_up], [letter(sent(1))], breaking, breaking, too_late).wrong
    early = reply(sent(1), "inference_timeout", attempts=2)
    assert judged([sent(1)], [early], [letter(sent(1))], breaking, breaking, breaking).wrong
    refused = sent(1, "invalid_request")
    assert judged([refused], [given_up], [letter(refused)], breaking, breaking, breaking).wrong
