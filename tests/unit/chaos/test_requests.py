"""The requests of a chaos run: unique, repeatable, of every kind."""

from __future__ import annotations

from itertools import islice

from tests.chaos.requests import SHARES, Requests

NOW_S = 1_700_000_000.0


def made(seed: int, count: int) -> list[object]:
    requests = Requests(seed, 60)
    return [requests.next(NOW_S) for _ in range(count)]


def test_the_same_seed_makes_the_same_requests() -> None:
    assert made(7, 500) == made(7, 500)
    assert made(7, 500) != made(8, 500)


def test_there_is_every_kind_and_no_prompt_or_id_comes_twice() -> None:
    requests = Requests(3, 60)
    some = [requests.next(NOW_S) for _ in range(2000)]
    assert {request.kind for request in some} == set(SHARES)
    assert len({request.prompt for request in some}) == len(some)
    ids = [request.given_id for request in some if request.given_id is not None]
    assert len(set(ids)) == len(ids)
    assert any(request.key is None for request in islice(some, 20))
