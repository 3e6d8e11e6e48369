"""Workers come, go and die while requests keep coming."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.integration.account import Account, answered, holding, shared, uncommitted
from tests.integration.system import System, Workers, eventually

SLOW = "[[slow:100]]"  # a batch takes 0.1 s: 160 prompts a second


def test_one_of_three_workers_killed(either_protocol: System) -> None:
    whole = either_protocol
    account = Account(whole)
    workers = [whole.start().ready() for _ in range(3)]
    shared(whole, 3)
    account.publish(900, SLOW)
    answered(whole, 50)
    holding(100, workers[0])
    for child in workers[0].children():
        child.kill()
    workers[0].process.kill()
    assert workers[0].process.wait(10) == -signal.SIGKILL
    assert uncommitted(whole) > 0
    shared(whole, 2)
    replies = account.settle()
    assert replies.codes == {"ok": 900}
    # Answered and acknowledged, but not committed when it died: at most what it had in hand.
    assert len(replies.repeated) <= 300
    for each in workers[1:]:
        assert each.terminate() == 0


def test_one_of_three_processes_killed(whole: System) -> None:
    account = Account(whole)
    workers = whole.start(WORKER_PROCESSES="3").ready()
    shared(whole, 3)
    account.publish(900, SLOW)
    answered(whole, 50)
    holding(300, workers)
    assert workers.metrics()["promptbus_workers"] == 3
    children = workers.children()
    assert len(children) == 3
    children[0].kill()
    eventually("it is started again", lambda: workers.metrics()["promptbus_worker_restarts_total"] == 1)
    workers.ready()
    replies = account.settle()
    assert replies.codes == {"ok": 900}
    assert len(replies.repeated) <= 300
    assert any("was killed by SIGKILL" in line["message"] for line in workers.lines())
    shared(whole, 3)
    assert workers.terminate() == 0


def test_scaling_up_and_down_answers_none_twice(either_protocol: System) -> None:
    whole = either_protocol
    account = Account(whole)
    first = whole.start().ready()
    account.publish(600, SLOW)
    with account.load(150, SLOW):
        answered(whole, 20)
        more = [whole.start().ready() for _ in range(2)]
        shared(whole, 3)
        eventually("all three answer", lambda: all(answers(each) for each in (first, *more)))
        account.publish(600, SLOW)  # on a slow machine what was there is answered by now
        holding(100, first, *more)
        for each in more:
            assert each.terminate() == 0
        shared(whole, 1)
        answered(whole, len(account))
    replies = account.settle()
    assert replies.codes == {"ok": len(account)}
    assert replies.repeated == []
    assert first.terminate() == 0


def answers(workers: Workers) -> bool:
    """Whether it has answered anything."""
    return workers.metrics()['promptbus_requests_total{code="ok",model="gpt4_nano"}'] > 0


def test_the_first_record_is_polled_soon_after_the_start(
    whole: System, record_property: Callable[[str, object], None]
) -> None:
    account = Account(whole)
    account.publish(1)
    published = time.monotonic()
    whole.start()
    started = time.monotonic()
    (reply,) = account.settle().first.values()
    # From the record's timestamp, which lies before `published`, to its reply: longer than from start to polled.
    start_s = reply.timings.total_ms / 1000 - (started - published)
    record_property("start_to_first_reply_s", round(start_s, 2))
    print(f"start to first reply: {start_s:.2f} s")
    assert start_s < 15
