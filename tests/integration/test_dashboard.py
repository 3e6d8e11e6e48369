"""The dashboards on a real run: every query of every panel shows something in the scenario it is for."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from grafana.__main__ import BOARDS
from grafana.panels import Scenario
from stack.kafka import Kafka
from stack.prometheus import Line, Prometheus
from stack.triton import Triton
from tests.dashboards import read
from tests.integration.system import CLASSIC, System, Workers, eventually, system

INTERVAL_S = 1.0
# As Grafana fills them in; the rate interval is at least four scrapes.
VARIABLES = {
    "$__rate_interval": "5s",
    "$__range": "60s",
    "$job": "promptbus",
    "$instance": ".*",
    "$triton": "triton",
}
BATCH_MS = 80
SLOW_MS = 500
PER_BURST = 30
FAILING_SHARE = 0.03


@dataclass
class Asked:
    """One query of a dashboard's JSON, and what was seen of it."""

    board: str
    panel: str
    ref: str
    expr: str
    scenario: Scenario
    lines: list[Line] = field(default_factory=list)

    @property
    def telling(self) -> int:
        """How many of its series have a value that is neither zero nor infinite nor missing."""
        return sum(any(value and math.isfinite(value) for _, value in line.points) for line in self.lines)

    def ask(self, prometheus: Prometheus, since: float) -> None:
        now = time.time()
        start = max(since, now - 60)
        self.lines = prometheus.query_range(self.expr, start, now, INTERVAL_S)


def _every_query() -> list[Asked]:
    found = []
    for board in BOARDS:
        specs = {panel.title: panel for panel in board.panels}
        for panel in read(board.file).panels:
            for index, target in enumerate(panel.targets):
                expr = target.expr
                for variable, value in VARIABLES.items():
                    expr = expr.replace(variable, value)
                seen = specs[panel.title].queries[index].seen
                found.append(Asked(board.name, panel.title, target.refId, expr, seen))
    assert len(found) == sum(len(panel.queries) for board in BOARDS for panel in board.panels)
    assert {query.scenario for query in found} == set(Scenario)
    return found


@contextmanager
def _load(made: System) -> Iterator[None]:
    """Bursts of prompts: some fail, some are invalid. Bursts, so that calls queue up in Triton now and then."""
    ended = threading.Event()
    numbers = random.Random(4)

    def prompt(number: int) -> dict[str, object]:
        if numbers.random() < FAILING_SHARE:
            return {"prompt": f"[[fail]] {number}"}
        if numbers.random() < FAILING_SHARE:
            return {"prompt": f"tell me about {number}", "max_tokens": 0}
        return {"prompt": f"tell me about {number}"}

    def publish() -> None:
        burst = 0
        while not ended.is_set():
            made.publish([prompt(burst * PER_BURST + n) for n in range(PER_BURST)])
            burst += 1
            ended.wait(0.5)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _play(
    prometheus: Prometheus,
    queries: Sequence[Asked],
    scenario: Scenario,
    since: float,
    again: Callable[[], None] | None = None,
) -> None:
    """Wait until every query of a scenario has shown something since it began. `again`: makes it happen once more."""
    open_ones = [query for query in queries if query.scenario is scenario]
    assert open_ones, scenario

    def all_told() -> bool:
        for query in open_ones:
            query.ask(prometheus, since)
        open_ones[:] = [query for query in open_ones if not query.telling]
        return not open_ones

    try:
        if again is not None:
            for _ in range(2):
                with suppress(AssertionError):
                    eventually(f"every query shows something: {scenario}", all_told, 20)
                    return
                again()
        eventually(f"every query shows something: {scenario}", all_told)
    except AssertionError:
        silent = "\n".join(f"{query.board}, {query.panel} {query.ref}: {query.expr}" for query in open_ones)
        raise AssertionError(f"nothing but zero while {scenario}:\n{silent}") from None


def _reads(prometheus: Prometheus, queries: Sequence[Asked], title: str, value: float) -> None:
    """Wait until a stat says so, as an instant query like Grafana's."""
    (query,) = (query for query in queries if (query.board, query.panel) == ("overview", title))
    eventually(
        f"{title} reads {value:g}", lambda: [s for s in prometheus.query(query.expr) if s.last == value]
    )


def _kill_one(workers: Workers) -> None:
    child: psutil.Process = workers.children()[0]
    child.kill()


def _freeze_one(workers: Workers, partitions: int) -> None:
    """A worker process that owns partitions, until the group has given them away: then both count them as theirs."""
    oldest = min(workers.children(), key=lambda child: child.create_time())
    oldest.suspend()
    try:
        eventually(
            "the group goes on without it",
            lambda: workers.metrics().get("promptbus_assigned_partitions", 0) > partitions,
        )
    finally:
        oldest.resume()


def test_every_query_shows_something_in_its_scenario(shared_kafka: Kafka, tmp_path: Path) -> None:
    queries = _every_query()
    knobs = {"GPT4_NANO_TEST_PROMPTS": "1", "GPT4_NANO_BATCH_LATENCY_MS": str(BATCH_MS)}
    with Triton(engine="canned", env=knobs) as triton, system(shared_kafka, triton, tmp_path) as made:
        # With the newer protocol a worker that was away commits nothing more, so there would be no refused commit.
        workers = made.start(WORKER_PROCESSES="2", KAFKA_GROUP_PROTOCOL=CLASSIC).ready()
        targets = {"promptbus": f"127.0.0.1:{workers.port}", "triton": triton.metrics_address}
        with Prometheus(targets, INTERVAL_S) as prometheus:
            with _load(made):
                _play(prometheus, queries, Scenario.UNDER_LOAD, time.time())
                _reads(prometheus, queries, "Is it answering?", 1)
                _reads(prometheus, queries, "Calls to Triton", 0)

                began = time.time()
                _kill_one(workers)
                _play(prometheus, queries, Scenario.WORKER_KILLED, began)

                began = time.time()
                _freeze_one(workers, made.partitions)
                # What it had settled out of order is skipped by the next owner; now and then there was nothing such.
                _play(
                    prometheus,
                    queries,
                    Scenario.WORKER_FROZEN,
                    began,
                    again=lambda: _freeze_one(workers, made.partitions),
                )

                began = time.time()
                assert triton.kill_stubs()
                _play(prometheus, queries, Scenario.MODEL_DEAD, began)

                began = time.time()
                triton.kill()
                _play(prometheus, queries, Scenario.TRITON_DOWN, began)
                _reads(prometheus, queries, "Is it answering?", 2)
                _reads(prometheus, queries, "Calls to Triton", 1)

            # Time to drain is infinite until the end of the backlog, for more came in the last minute than was answered.
            # It is measured once a second, so that end has to last for some.
            made.publish([{"prompt": f"[[slow:{SLOW_MS}]] {number}"} for number in range(80)])
            triton.start()
            _play(prometheus, queries, Scenario.CATCHING_UP, time.time())
            _reads(prometheus, queries, "Is it answering?", 1)
            _reads(prometheus, queries, "Oldest request", 0)
            _reads(prometheus, queries, "Is it answering?", 0)

            began = time.time()
            made.publish(
                [{"prompt": f"{number} {'[[bad-utf8]]' * (number % 10 < 8)}"} for number in range(500)]
            )
            _play(prometheus, queries, Scenario.DEAD_LETTERS, began)
            _reads(prometheus, queries, "Calls to Triton", 2)

            assert workers.terminate() == 0
            _reads(prometheus, queries, "Workers", 0)
            _reads(prometheus, queries, "Is it answering?", 3)
    print("\nseries that told something, of all series, in the scenario of the query:")
    for query in queries:
        print(
            f"{query.telling:3} of {len(query.lines):3}  {query.board}: {query.panel} [{query.ref}], {query.scenario}"
        )
