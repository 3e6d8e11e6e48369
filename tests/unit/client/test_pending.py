"""The table of waiting requests: who is answered by what."""

from __future__ import annotations

import pytest

from promptbus.errors import DuplicateRequestId
from promptbus.messages import reply_headers
from promptbus.pending import PendingReplies, ReplyFuture


def waiting(
    table: PendingReplies, request_id: str, timeout_s: float | None = 10.0, now: float = 0.0
) -> ReplyFuture:
    future = ReplyFuture(request_id, timeout_s, now)
    table.add(future)
    return future


def headers(request_id: str, reply_id: str) -> list[tuple[str, bytes | None]]:
    return [*reply_headers(request_id=request_id, reply_id=reply_id, status="ok")]


def test_a_reply_finds_the_request_it_answers_and_only_once() -> None:
    table = PendingReplies()
    one, two = waiting(table, "one"), waiting(table, "two")
    assert table.take(headers("two", "r-2")) is two
    assert table.take(headers("two", "r-2")) is None
    assert table.take(headers("one", "r-1")) is one
    assert len(table) == 0


@pytest.mark.parametrize(
    "foreign", [None, [], [("request-id", None)], [("request-id", b"other")], [("reply-id", b"r")]]
)
def test_a_record_that_is_not_ours_is_nobodys(foreign: list[tuple[str, bytes | None]] | None) -> None:
    table = PendingReplies()
    waiting(table, "one")
    assert table.take(foreign) is None
    assert len(table) == 1


def test_of_duplicate_headers_the_last_wins() -> None:
    table = PendingReplies()
    one = waiting(table, "one")
    assert table.take([("request-id", b"other"), ("request-id", b"one")]) is one


def test_a_redelivered_reply_does_not_answer_a_new_request_that_reuses_the_id() -> None:
    table = PendingReplies()
    waiting(table, "one")
    assert table.take(headers("one", "r-1")) is not None
    again = waiting(table, "one")
    assert table.take(headers("one", "r-1")) is None
    assert table.take(headers("one", "r-2")) is again


def test_reply_ids_are_remembered_up_to_a_bound() -> None:
    table = PendingReplies(remembered=2)
    for number in (1, 2, 3):
        waiting(table, "one")
        assert table.take(headers("one", f"r-{number}")) is not None
    waiting(table, "one")
    assert table.take(headers("one", "r-3")) is None
    assert table.take(headers("one", "r-1")) is not None, "the oldest was forgotten"


def test_two_requests_cannot_wait_under_one_id() -> None:
    table = PendingReplies()
    waiting(table, "one")
    with pytest.raises(DuplicateRequestId, match="'one'"):
        waiting(table, "one")


def test_each_request_expires_at_its_own_deadline() -> None:
    table = PendingReplies()
    slow, quick, patient = (
        waiting(table, "slow", 9.0),
        waiting(table, "quick", 1.0),
        waiting(table, "patient", None),
    )
    assert table.next_deadline() == 1.0
    assert table.expired(0.9) == []
    assert table.expired(1.0) == [quick]
    assert table.expired(100.0) == [slow]
    assert table.next_deadline() is None
    assert table.take_all() == [patient]


def test_an_id_used_again_does_not_inherit_the_old_deadline() -> None:
    table = PendingReplies()
    waiting(table, "one", 1.0)
    table.take(headers("one", "r-1"))
    later = waiting(table, "one", 5.0)
    assert table.expired(1.0) == []
    assert table.expired(5.0) == [later]


def test_a_forgotten_request_is_neither_answered_nor_expired() -> None:
    table = PendingReplies()
    one = waiting(table, "one")
    assert table.forget(one)
    assert not table.forget(one)
    assert table.take(headers("one", "r-1")) is None
    assert table.expired(1e9) == []


def test_answered_requests_leave_no_deadlines_behind() -> None:
    table = PendingReplies()
    for number in range(20_000):
        waiting(table, str(number), 60.0)
        table.take(headers(str(number), f"r-{number}"))
    assert len(table._deadlines) < 2_000
