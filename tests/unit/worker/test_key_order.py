"""Records of one key go one after the other; other keys, and records without one, are not kept waiting."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus.messages import Headers
from promptbus_worker.outcomes import CallFailure
from promptbus_worker.record import Record
from tests.unit.worker.path import Path
from tests.unit.worker.virtual_time import in_virtual_time, loop, run


def publish(path: Path, key: bytes | None, *names: str, headers: Headers | None = None) -> list[Record]:
    """Requests whose id is their prompt; a name that begins with "bad" is none."""
    values = [
        b"not a request"
        if name.startswith("bad")
        else json.dumps({"request_id": name, "prompt": name}).encode()
        for name in names
    ]
    return path.publish(*values, key=key, headers=headers)


def written(path: Path, key: bytes | None = None) -> list[str]:
    """Ids of the replies in their order, of one key or of all."""
    replies = [record for record in path.broker.written if record.topic == "results"]
    return [json.loads(r.value or b"")["request_id"] for r in replies if key is None or r.key == key]


@in_virtual_time
async def test_requests_of_one_key_are_called_one_after_the_other() -> None:
    path = Path(ordered=True)
    path.model.latency_s = 1
    publish(path, b"k", *[f"k{number}" for number in range(6)])
    await path.settle(6)
    assert path.model.calls == [[f"k{number}"] for number in range(6)]
    assert written(path) == [f"k{number}" for number in range(6)]


@in_virtual_time
async def test_other_keys_and_records_without_one_go_on() -> None:
    path = Path(ordered=True, concurrency=2)
    path.model.occupy(instances=2, seconds={"k0": 20.0})
    publish(path, b"k", "k0", "k1")
    publish(path, b"l", "l0", "l1")
    publish(path, None, *[f"n{number}" for number in range(16)])
    await asyncio.sleep(10)
    assert set(written(path)) == {"l0", "l1", *[f"n{number}" for number in range(16)]}
    await path.settle(20)
    assert written(path, b"k") == ["k0", "k1"]


@in_virtual_time
async def test_a_rejection_waits_for_the_request_before_it() -> None:
    path = Path(ordered=True)
    path.model.latency_s = 1
    publish(path, b"k", "k0", "bad", "k2")
    publish(path, b"other", "bad")
    await asyncio.sleep(0.5)
    assert written(path) == ["requests-0-3"]
    await path.settle(4)
    assert written(path, b"k") == ["k0", "requests-0-1", "k2"]


@in_virtual_time
async def test_a_request_that_is_tried_again_keeps_its_turn() -> None:
    path = Path(ordered=True)
    path.model.failure = CallFailure.OVERLOADED
    publish(path, b"k", "k0", "k1")
    await asyncio.sleep(20)
    path.model.failure = None
    await path.settle(2)
    assert written(path) == ["k0", "k1"]
    assert not any("k1" in call and path.model.calls.index(call) == 0 for call in path.model.calls)


@in_virtual_time
async def test_a_deadline_is_kept_wherever_a_request_stands_in_line() -> None:
    path = Path(ordered=True)
    path.model.occupy(instances=1, seconds={"k0": 10.0})
    publish(path, b"k", "k0")
    soon = [("deadline", str(int((loop().time() + 2) * 1000)).encode())]
    publish(path, b"k", "k1", headers=soon)
    publish(path, b"k", "k2")
    await asyncio.sleep(3)
    assert path.codes() == {"k1": "expired"}
    await path.settle(3)
    assert written(path) == ["k1", "k0", "k2"]


@in_virtual_time
async def test_what_waits_for_its_key_is_given_back_with_its_partition() -> None:
    path = Path(ordered=True)
    path.model.latency_s = 1
    publish(path, b"k", *[f"k{number}" for number in range(5)])
    await asyncio.sleep(0.5)
    path.dispatcher.release([path.owned])
    assert sorted(path.released_offsets) == [1, 2, 3, 4]
    await path.settle(1)
    assert await path.dispatcher.idle(1)
    path.ledger.end(path.owned)
    path.dispatcher.forget([path.owned])
    assert len(path.dispatcher._reception) == 0


@in_virtual_time
async def test_a_full_producer_queue_does_not_change_the_order() -> None:
    path = Path(ordered=True, concurrency=4)
    path.broker.queue_size = 2
    for key in range(4):
        publish(path, b"key-%d" % key, *[f"{key}-{number}" for number in range(25)])
    await path.settle(100)
    for key in range(4):
        assert written(path, b"key-%d" % key) == [f"{key}-{number}" for number in range(25)]


@in_virtual_time
async def test_the_end_of_a_backlog_does_not_change_the_order() -> None:
    """Its replies are still being collected when those to the last ones may leave at once."""
    path = Path(ordered=True, concurrency=1)
    for turn in range(3):
        for key in range(40):
            publish(path, b"key-%d" % key, f"{key}-{turn}")
    await path.settle(120)
    for key in range(40):
        assert written(path, b"key-%d" % key) == [f"{key}-{turn}" for turn in range(3)]


KINDS = st.sampled_from(["good", "good", "bad", "poison", "spoilt"])
KEYS = st.sampled_from([b"a", b"b", b"c", None])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KEYS, KINDS), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 5))
def test_replies_of_a_key_stand_in_the_order_of_its_requests(
    requests: list[tuple[bytes | None, str]], concurrency: int, queue_size: int
) -> None:
    async def body() -> None:
        path = Path(ordered=True, concurrency=concurrency)
        path.broker.queue_size = queue_size
        places: dict[str, int] = {}
        keys: dict[str, bytes | None] = {}
        for number, (key, kind) in enumerate(requests):
            name = f"{kind}-{number}"
            if kind == "poison":
                path.model.poison.add(name)
            if kind == "spoilt":
                path.model.bad_rows.add(name)
            (record,) = publish(path, key, name)
            place = f"requests-0-{record.offset}" if kind == "bad" else name
            places[place], keys[place] = record.offset, key
        await path.settle(len(requests))
        answered = written(path)
        assert sorted(answered) == sorted(places)
        for key in {key for key, _ in requests if key is not None}:
            offsets = [places[name] for name in answered if keys[name] == key]
            assert all(first < second for first, second in pairwise(offsets))
        assert len(path.dispatcher._reception) == 0

    run(body())


@in_virtual_time
async def test_a_deadline_that_passes_just_as_its_turn_comes_is_kept() -> None:
    path = Path(ordered=True)
    path.model.latency_s = 1
    began = loop().time()
    publish(path, b"k", "k0")
    publish(path, b"k", "k1", headers=[("deadline", b"%d" % ((began + 1.2) * 1000))])
    publish(path, b"k", "k2")
    # The loop is held up when k0's answer has come, and finds it and k1's deadline waiting at the same time.
    loop().call_at(began + 1, lambda: loop().freeze(0.5))
    await path.settle(3)
    assert path.codes() == {"k0": "ok", "k1": "expired", "k2": "ok"}
    assert written(path) == ["k0", "k1", "k2"]
    assert path.model.calls == [["k0"], ["k2"]]


@in_virtual_time
async def test_a_partition_that_is_taken_away_just_as_a_turn_comes_is_given_back_whole() -> None:
    path = Path(ordered=True)
    path.model.latency_s = 1
    publish(path, b"k", "k0", "k1", "bad", "k3")
    seen: list[int] = []

    def taken_away() -> None:
        if path.replies.due and not seen:
            seen.append(len(path.dispatcher._reception))
            path.dispatcher.release([path.owned])
        elif not seen:
            loop().call_soon(taken_away)

    loop().call_at(loop().time() + 1, taken_away)
    await path.settle(1)
    assert seen == [3]
    assert sorted(path.released_offsets) == [1, 2, 3]
    assert await path.dispatcher.idle(1)
    assert written(path) == ["k0"]
