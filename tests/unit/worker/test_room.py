"""What is answered and waits for the broker takes no room from what is to be answered, up to a bound."""

from __future__ import annotations

from promptbus_worker.limiter import Limiter
from promptbus_worker.room import BATCHES_PER_SLOT, MOST_ANSWERED, TIMES_WITH_TRANSACTIONS, Room

FIRST = 4
UNANSWERED = BATCHES_PER_SLOT * 8 * FIRST


def room(answered: int = 0, *, limiter: Limiter | None = None, transactional: bool = False) -> Room:
    limiters = {"gpt4_nano": limiter or Limiter(FIRST, 1, 32)}
    return Room(limiters, lambda model: 8, transactional=transactional, answered=lambda: answered)


def test_requests_that_wait_have_room_for_so_many_batches_of_each_call() -> None:
    assert room().records() == UNANSWERED
    assert room(transactional=True).records() == TIMES_WITH_TRANSACTIONS * UNANSWERED


def test_answered_ones_do_not_take_it_however_long_the_broker_takes() -> None:
    for answered in (1, UNANSWERED, MOST_ANSWERED):
        assert room(answered).records() - answered == UNANSWERED


def test_while_no_broker_acknowledges_what_is_in_hand_is_bounded() -> None:
    assert room(MOST_ANSWERED + UNANSWERED).records() == MOST_ANSWERED + UNANSWERED
    assert room(10 * MOST_ANSWERED).records() == MOST_ANSWERED + UNANSWERED


def test_it_follows_the_limit_but_not_below_where_that_began() -> None:
    limiter = Limiter(FIRST, 1, 32)
    asked = room(limiter=limiter)
    limiter.overloaded(began=1.0, now=2.0)
    assert limiter.limit < FIRST
    assert asked.records() == UNANSWERED
    raised = Limiter(FIRST, 1, 32)
    asked = room(limiter=raised)
    raised.limit = 2 * FIRST
    assert asked.records() == 2 * UNANSWERED
