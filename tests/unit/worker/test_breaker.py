"""Each row of the breaker's table, the moves it does not have, and what holds after any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus_worker.breaker import (
    FAILURES_TO_OPEN,
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    LONGEST_RETRY_AFTER_S,
    SINGLE_ERRORS_TO_OPEN,
    Breaker,
    BreakerError,
    State,
)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    breaker.failed(now, gone=True)
    return breaker


def probing(now: float = 1.0) -> Breaker:
    breaker = opened(now - 1)
    breaker.probe()
    return breaker


def test_a_new_breaker_lets_calls_flow() -> None:
    breaker = Breaker()
    assert breaker.may_call(0.0)
    assert not breaker.is_open
    assert not breaker.may_probe(0.0)
    assert breaker.resumes_in(0.0) is None
    assert not breaker.answered_since(-1e9)


def test_closed_success_stays_closed_and_forgets_the_back_off() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0, 2.0):
        breaker.failed(now, gone=False)
    assert not breaker.may_call(2.0)
    breaker.succeeded(2.0)
    assert breaker.may_call(2.0)
    breaker.failed(3.0, gone=False)
    assert breaker.resumes_in(3.0) == pytest.approx(FIRST_BACKOFF_S)


def test_a_success_of_a_call_from_before_a_failure_does_not_end_the_wait() -> None:
    breaker = Breaker()
    breaker.failed(10.0, gone=False)
    breaker.succeeded(9.9)
    assert breaker.resumes_in(10.0) == pytest.approx(FIRST_BACKOFF_S)
    breaker.failed(10.0 + FIRST_BACKOFF_S, gone=False)
    assert breaker.resumes_in(10.0 + FIRST_BACKOFF_S) == pytest.approx(FIRST_BACKOFF_S), "but it begins anew"


def test_closed_failure_pauses_calls_for_the_back_off() -> None:
    breaker = Breaker()
    breaker.failed(10.0, gone=False)
    assert breaker.state is State.CLOSED
    assert not breaker.may_call(10.0)
    assert breaker.resumes_in(10.0) == pytest.approx(FIRST_BACKOFF_S)
    assert breaker.may_call(10.0 + FIRST_BACKOFF_S)


def test_failures_of_the_same_moment_are_one_reason_to_wait() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(10.0, gone=False)
    assert breaker.resumes_in(10.0) == pytest.approx(FIRST_BACKOFF_S)


def test_closed_failure_that_says_gone_opens() -> None:
    breaker = opened()
    assert breaker.state is State.OPEN
    assert breaker.is_open
    assert not breaker.may_call(1e9)


def test_closed_opens_after_five_failures_without_a_success() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(0.0, gone=False)
    breaker.succeeded(0.0)
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(0.0, gone=False)
    assert not breaker.is_open
    breaker.failed(0.0, gone=False)
    assert breaker.state is State.OPEN


def test_closed_opens_after_sixteen_single_errors_without_a_success() -> None:
    breaker = Breaker()
    for _ in range(SINGLE_ERRORS_TO_OPEN - 1):
        breaker.single_error(0.0)
    breaker.succeeded(0.0)
    for _ in range(SINGLE_ERRORS_TO_OPEN - 1):
        breaker.single_error(0.0)
    assert not breaker.is_open
    assert not breaker.may_call(0.0), "it gives the model a moment"
    breaker.single_error(0.0)
    assert breaker.state is State.OPEN
    assert breaker.resumes_in(0.0) is not None


def test_open_lets_a_probe_out_when_the_back_off_is_over() -> None:
    breaker = opened()
    assert not breaker.may_probe(0.0)
    assert breaker.may_probe(FIRST_BACKOFF_S)
    breaker.probe()
    assert breaker.state is State.PROBING
    assert breaker.is_open
    assert not breaker.may_probe(1e9), "one probe at a time"
    assert not breaker.may_call(1e9)
    assert breaker.resumes_in(0.0) is None, "nothing but the probe is waited for"


def test_a_probe_that_answered_a_request_closes_and_forgets_the_back_off() -> None:
    breaker = probing()
    breaker.probe_succeeded(1.0, by_request=True)
    assert breaker.state is State.CLOSED
    assert breaker.may_call(1.0)
    assert breaker.answered_since(0.9)
    assert breaker.worked_since(0.9)
    breaker.failed(2.0, gone=False)
    assert breaker.resumes_in(2.0) == pytest.approx(FIRST_BACKOFF_S)


def test_a_probe_of_our_own_closes_but_is_no_witness_and_keeps_the_back_off() -> None:
    breaker = probing()
    breaker.probe_failed(1.0)
    breaker.probe()
    breaker.probe_succeeded(2.0, by_request=False)
    assert breaker.state is State.CLOSED
    assert breaker.may_call(2.0)
    assert breaker.worked_since(1.9)
    assert not breaker.answered_since(1.9)
    breaker.failed(3.0, gone=True)
    assert breaker.resumes_in(3.0) == pytest.approx(FIRST_BACKOFF_S * 4)


def test_it_is_down_only_once_a_probe_has_failed() -> None:
    breaker = opened()
    assert not breaker.is_down
    breaker.probe()
    assert not breaker.is_down
    breaker.probe_failed(1.0)
    assert breaker.is_down
    breaker.probe()
    assert breaker.is_down
    breaker.probe_succeeded(2.0, by_request=False)
    assert not breaker.is_down
    breaker.failed(3.0, gone=True)
    assert not breaker.is_down, "the next time is another time"


def test_probing_failure_opens_again_with_twice_the_back_off() -> None:
    breaker = probing()
    waits = []
    for now in range(1, 12):
        breaker.probe_failed(float(now))
        assert breaker.state is State.OPEN
        waits.append(breaker.resumes_in(float(now)))
        breaker.probe()
    expected = [min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**n) for n in range(1, 12)]
    assert waits == pytest.approx(expected)


def test_open_stays_open_when_a_call_from_before_succeeds() -> None:
    breaker = opened(5.0)
    breaker.succeeded(4.0)
    assert breaker.state is State.OPEN
    assert not breaker.may_call(5.0)
    assert breaker.answered_since(3.9), "but it is a witness"


def test_calls_from_before_it_opened_do_not_lengthen_the_back_off() -> None:
    breaker = opened(5.0)
    for _ in range(20):
        breaker.failed(5.01, gone=True)
        breaker.single_error(5.01)
    assert breaker.resumes_in(5.0) == pytest.approx(FIRST_BACKOFF_S)


def test_a_witness_began_at_the_failure_or_after_it() -> None:
    breaker = Breaker()
    breaker.succeeded(5.0)
    assert breaker.answered_since(4.999)
    assert breaker.answered_since(5.0)
    assert not breaker.answered_since(5.1)
    breaker.succeeded(3.0)  # an older call comes home later
    assert breaker.answered_since(4.999)


@pytest.mark.parametrize("breaker", [Breaker(), probing()], ids=["closed", "probing"])
def test_no_probe_goes_out_unless_open(breaker: Breaker) -> None:
    with pytest.raises(BreakerError):
        breaker.probe()


@pytest.mark.parametrize("breaker", [Breaker(), opened()], ids=["closed", "open"])
def test_no_probe_comes_back_unless_one_is_out(breaker: Breaker) -> None:
    state = breaker.state
    with pytest.raises(BreakerError):
        breaker.probe_succeeded(0.0, by_request=True)
    with pytest.raises(BreakerError):
        breaker.probe_failed(0.0)
    assert breaker.state is state


def test_single_errors_are_waited_for_longer_and_longer_until_a_request_is_answered() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    for number in range(10):
        breaker.single_error(now)
        breaker.single_error(now)  # of the same moment
        wait = breaker.resumes_in(now)
        assert wait is not None
        waits.append(wait)
        now += wait
        if breaker.is_open:
            breaker.probe()
            breaker.probe_succeeded(now, by_request=False)
        assert breaker.may_call(now), number
    assert waits[:7] == pytest.approx([FIRST_BACKOFF_S * 2**n for n in range(7)])
    assert waits[-1] >= LONGEST_BACKOFF_S / 2
    breaker.succeeded(now)
    breaker.single_error(now)
    assert breaker.resumes_in(now) == pytest.approx(FIRST_BACKOFF_S)


def test_a_time_that_the_server_named_is_waited_for_whatever_earlier_calls_bring() -> None:
    breaker = Breaker()
    breaker.failed(10.0, gone=False)
    breaker.told_to_wait(10.0, 7.0)
    breaker.succeeded(9.9)
    assert not breaker.may_call(16.9)
    assert breaker.is_told_to_wait(16.9)
    assert breaker.resumes_in(10.0) == pytest.approx(7.0)
    assert breaker.may_call(17.0)
    breaker.told_to_wait(20.0, 5.0)
    breaker.told_to_wait(20.0, 2.0)
    assert not breaker.may_call(24.9), "the longer one counts"


def test_a_probe_waits_for_the_named_time_too_but_not_for_ever() -> None:
    breaker = opened(0.0)
    breaker.told_to_wait(0.0, 1e6)
    assert not breaker.may_probe(LONGEST_RETRY_AFTER_S - 0.1)
    assert breaker.may_probe(LONGEST_RETRY_AFTER_S)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "gone", "single", "succeeded", "probe", "probe_ok", "probe_bad"]),
        st.floats(0, 10),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_after_any_events_the_wait_is_bounded_and_one_good_probe_closes(
    events: list[tuple[str, float]],
) -> None:
    breaker, now = Breaker(), 0.0
    for event, seconds in events:
        now += seconds
        match event:
            case "failed" | "gone":
                breaker.failed(now, gone=event == "gone")
            case "single":
                breaker.single_error(now)
            case "succeeded":
                breaker.succeeded(now)
            case "probe" if breaker.may_probe(now):
                breaker.probe()
            case "probe_ok" if breaker.state is State.PROBING:
                breaker.probe_succeeded(now, by_request=seconds > 5)
            case "probe_bad" if breaker.state is State.PROBING:
                breaker.probe_failed(now)
        wait = breaker.resumes_in(now)
        assert wait is None or 0 < wait <= LONGEST_BACKOFF_S
        assert sum([breaker.may_call(now), breaker.may_probe(now)]) <= 1
    now += LONGEST_BACKOFF_S
    assert breaker.may_call(now) or breaker.may_probe(now) or breaker.state is State.PROBING, "it is stuck"
    if breaker.may_probe(now):
        breaker.probe()
    if breaker.state is State.PROBING:
        breaker.probe_succeeded(now, by_request=True)
    assert breaker.may_call(now)
