"""WORKER_ORDERING=key on real servers: replies of a key in the order of its requests, other keys not kept waiting."""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence

import psutil
import pytest

from tests.integration.account import all_committed, answered, holding, shared, uncommitted
from tests.integration.mixed import body
from tests.integration.system import Read, Sending, System, Workers, eventually

ORDERED = {"WORKER_ORDERING": "key"}
SLOW_MS = 4000
IN_FLIGHT = "promptbus_in_flight_requests"


def request(name: str, key: bytes | None, prompt: str = "", **fields: object) -> Sending:
    return Sending(body(f"{prompt} tell me about {name}", request_id=name, **fields), key)


def order(records: Sequence[Read]) -> dict[bytes | None, list[str]]:
    """For each key, whose replies stand on the topic, in their order there."""
    found = defaultdict[bytes | None, list[str]](list)
    for record in sorted(records, key=lambda record: (record.partition, record.offset)):
        found[record.key].append((record.headers["request-id"] or b"").decode())
    return dict(found)


def in_flight(workers: Workers) -> float:
    return workers.metrics().get(IN_FLIGHT, 0)


def test_replies_of_a_key_stand_in_the_order_of_its_requests_whatever_becomes_of_them(whole: System) -> None:
    chance = random.Random(1)
    keys = [b"key-%d" % number for number in range(16)]
    expected = defaultdict[bytes | None, list[str]](list)
    sendings = []
    for number in range(300):
        key, name = chance.choice(keys), f"r{number}"
        expected[key].append(name)
        match chance.randrange(8):
            case 0:
                sendings.append(request(name, key, max_tokens=0))
            case 1:
                sendings.append(request(name, key, model="gpt5"))
            case 2:
                sendings.append(Sending(b"not a request", key, [("request-id", name.encode())]))
            case 3 if number % 2:
                sendings.append(request(name, key, "[[fail]]"))
            case _:
                sendings.append(request(name, key, f"[[slow:{chance.randrange(0, 120)}]]"))
    workers = whole.start(WORKER_PROCESSES="2", **ORDERED).ready()
    shared(whole, 2)
    whole.send(sendings)
    records = whole.reply_records(len(sendings))
    assert order(records) == expected
    assert workers.terminate() == 0
    assert uncommitted(whole) == 0
    assert len(whole.all_reply_records()) == len(sendings), "and nothing was answered twice"


def test_other_keys_and_records_without_one_go_on_while_a_key_waits(whole: System) -> None:
    workers = whole.start(**ORDERED).ready()
    slow = [f"slow{number}" for number in range(4)]
    others = [f"other{number}" for number in range(40)]
    first, *behind = (request(name, b"slow", f"[[slow:{SLOW_MS}]]" * (name == "slow0")) for name in slow)
    whole.send([first])
    eventually("the slow one is in flight", lambda: in_flight(workers) == 1)
    # In its own partition as well: it is the key that waits, not the partition.
    whole.send([*behind, *(request(name, b"key %d" % (n % 5)) for n, name in enumerate(others))])
    records = sorted(whole.reply_records(len(slow) + len(others)), key=lambda record: record.timestamp_ms)
    replied = [(record.headers["request-id"] or b"").decode() for record in records]
    assert set(replied[: len(others)]) == set(others)
    assert replied[len(others) :] == slow
    whole.send([request("slow", None, f"[[slow:{SLOW_MS}]]")])
    eventually("the slow one is in flight", lambda: in_flight(workers) == 1)
    whole.send([request(f"r{number}", None) for number in range(20)])
    last = max(whole.reply_records(len(replied) + 21), key=lambda record: record.timestamp_ms)
    assert last.headers["request-id"] == b"slow", "records without a key are not ordered"
    assert workers.terminate() == 0


def killed(whole: System, workers: Workers, child: psutil.Process) -> None:
    child.kill()


def frozen(whole: System, workers: Workers, child: psutil.Process) -> None:
    """Longer than its session lasts: when it wakes up, its replies in hand meet those of the next owner."""
    child.send_signal(signal.SIGSTOP)
    shared(whole, 1)
    answered(whole, 150)
    child.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("lose", [killed, frozen], ids=["killed", "frozen"])
def test_the_first_replies_of_a_key_stay_in_order_when_a_worker_is_lost(
    whole: System,
    lose: Callable[[System, Workers, psutil.Process], None],
) -> None:
    expected = {b"key-%d" % key: [f"k{key}-{number}" for number in range(25)] for key in range(24)}
    workers = whole.start(WORKER_PROCESSES="2", WORKER_STUCK_S="60", **ORDERED).ready()
    shared(whole, 2)
    rounds = zip(*expected.values(), strict=True)
    whole.send(
        [
            request(name, b"key-" + name[1:].split("-")[0].encode(), "[[slow:60]]")
            for each in rounds
            for name in each
        ]
    )
    answered(whole, 50)
    holding(100, workers)
    lose(whole, workers, workers.children()[0])
    answered(whole, 600)
    eventually("all offsets are committed", lambda: all_committed(whole))
    found = order(whole.reader(whole.replies, whole.partitions).all_records(2))
    for key, names in found.items():
        assert list(dict.fromkeys(names)) == expected[key or b""]
    assert set(found) == set(expected)
    assert workers.terminate() == 0
