"""Which lines are left out, and that each is counted, in passed-in time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker.repeats import Allowance, Kind, LeftOut, Repeats

TEN = Allowance(lines=10, window_s=10.0)


def kind(template: str) -> Kind:
    return Kind("runner", 30, template)


def test_what_is_within_the_allowance_is_written() -> None:
    repeats = Repeats()
    assert all(repeats.admit(kind("a"), TEN, 0.1 * number) for number in range(10))
    assert repeats.next_end == float("inf")
    assert repeats.over(1000) == []


def test_what_is_beyond_it_is_counted_and_told_once_when_the_window_is_over() -> None:
    repeats = Repeats()
    written = sum(repeats.admit(kind("a"), TEN, 5.0) for _ in range(10_000))
    assert written == 10
    assert repeats.over(14.9) == []
    assert repeats.next_end == 15.0
    assert repeats.over(15.0) == [LeftOut(kind("a"), 9990, 10.0)]
    assert repeats.over(15.0) == []
    assert repeats.next_end == float("inf")


def test_a_new_window_has_a_new_allowance() -> None:
    repeats = Repeats()
    for _ in range(12):
        repeats.admit(kind("a"), TEN, 0.0)
    assert repeats.admit(kind("a"), TEN, 10.0)
    assert repeats.over(10.0) == [LeftOut(kind("a"), 2, 10.0)]
    assert sum(repeats.admit(kind("a"), TEN, 10.0) for _ in range(12)) == 9


def test_kinds_do_not_share_an_allowance_and_have_windows_of_their_own() -> None:
    repeats, rare = Repeats(), Allowance(lines=1, window_s=60.0)
    for _ in range(20):
        repeats.admit(kind("a"), TEN, 0.0)
        repeats.admit(kind("b"), rare, 1.0)
    assert repeats.over(10.0) == [LeftOut(kind("a"), 10, 10.0)]
    assert repeats.next_end == 61.0
    assert repeats.over(61.0) == [LeftOut(kind("b"), 19, 60.0)]


def test_the_table_stays_small_and_tells_what_it_forgets() -> None:
    repeats = Repeats(most_kinds=3)
    for _ in range(15):
        repeats.admit(kind("old"), TEN, 0.0)
    for number in range(100):
        assert repeats.admit(kind(f"new {number}"), TEN, 1.0)
    assert repeats.over(1.0) == [LeftOut(kind("old"), 5, 10.0)]
    assert len(repeats._windows) == 3


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 4)), max_size=200),
    st.integers(1, 5),
)
def test_every_line_is_written_or_counted(lines: list[tuple[str, float]], most_kinds: int) -> None:
    repeats, now = Repeats(most_kinds), 0.0
    seen, accounted = Counter[str](), Counter[str]()

    def told() -> None:
        for left_out in repeats.over(now):
            accounted[left_out.kind.template] += left_out.lines

    for template, wait_s in lines:
        now += wait_s
        seen[template] += 1
        accounted[template] += repeats.admit(kind(template), Allowance(2, 10.0), now)
        told()
    now = float("inf")
    told()
    assert accounted == seen
