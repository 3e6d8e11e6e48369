"""One chaos run: load, faults one after the other, everything healed and drained, the judgement, the ledger file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

from confluent_kafka import TopicPartition

from promptbus_worker.commit_metadata import decode
from stack.cache import PROJECT
from stack.kafka import Kafka
from tests.chaos.cluster import SESSION_TIMEOUT_S, Cluster, running
from tests.chaos.faults import CLEAN_EXITS, Struck, strike
from tests.chaos.in_hand import InHand
from tests.chaos.judgement import AFTERMATH_S, Fired, Verdict, judge
from tests.chaos.requests import NUMBER, Requests, Sent
from tests.chaos.schedule import FAMILY, WORKERS, Fault, Kind, Step, one_round, schedule
from tests.chaos.traffic import Traffic
from tests.integration.account import all_committed, offsets_reader
from tests.integration.system import Read, System, eventually

NOTHING: Mapping[str, str] = {}
LEDGERS = PROJECT / ".stack" / "chaos"
LEAST_IN_HAND = 100
PER_S = 60.0
ORDERING = "WORKER_ORDERING"
KEYS_IN_ORDER = 40
"""Of a key that has to be kept in order only one request is under way: all together must do PER_S."""
SLOW_MS = 60
LOAD_WITHIN_S = 90.0
RECOVERED_WITHIN_S = 120.0
RECOVERED_ANSWERS = 50
DRAINED_WITHIN_S = 240.0
READ_WITHIN_S = 120.0


@dataclass
class Report:
    """What a run found. `failures`: what went wrong beside the ledger: no load, a fault not seen, no recovery.

    `finished`: it came to its judgement. One that was interrupted has found nothing, and that is no good news.
    """

    seed: int
    brokers: int
    env: Mapping[str, str]
    seconds: float = 0.0
    fired: list[Fired] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    finished: bool = False

    @property
    def clean(self) -> bool:
        """Judged, with no violation and no failure."""
        return self.finished and self.verdict.clean and not self.failures

    @property
    def ordered(self) -> bool:
        """Whether the workers keep the order of keys."""
        return self.env.get(ORDERING) == "key"

    @property
    def name(self) -> str:
        """Of its ledger: one for each seed, number of brokers and environment."""
        return "-".join([str(self.seed), str(self.brokers), *self.env.values()])

    @property
    def ledger(self) -> Path:
        """JSON lines."""
        return LEDGERS / f"{self.name}.json"

    @property
    def logs(self) -> Path:
        """The folder of the workers' logs."""
        return LEDGERS / self.name


Say = Callable[[str], None]


def run(
    seed: int,
    brokers: int,
    minutes: float | None,
    say: Say,
    without: Collection[Kind] = (),
    env: Mapping[str, str] = NOTHING,
) -> Report:
    """Faults for so many minutes; None: one round of them, each kind once but those `without` which it goes.

    `env` is added to the workers' environment. With WORKER_ORDERING=key the order of keys is checked as well.
    The ledger is written whatever happens.
    """
    report = Report(seed, brokers, env)
    folder = report.logs
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    steps: Iterable[Step]
    if minutes is None:
        steps, until = one_round(seed, brokers, SESSION_TIMEOUT_S, without), float("inf")
    else:
        steps, until = schedule(seed, brokers, SESSION_TIMEOUT_S), began + minutes * 60
    try:
        with running(brokers, folder, say, env) as cluster:
            _play(cluster, seed, steps, until, report, say)
    finally:
        report.seconds = time.monotonic() - began
        write(report)
    return report


def _play(cluster: Cluster, seed: int, steps: Iterable[Step], until: float, report: Report, say: Say) -> None:
    requests = Requests(seed, SLOW_MS, KEYS_IN_ORDER if report.ordered else 1)
    with InHand(cluster) as in_hand, Traffic(cluster.system, requests, PER_S) as traffic:
        for step in steps:
            if time.monotonic() >= until:
                break
            try:
                _take(cluster, traffic, step, report, say)
            except Exception as error:
                report.failures.append(f"{' with '.join(fault.kind for fault in step)}: {error}")
                say(f"FAILED: {report.failures[-1]}")
                break
        say(f"healed; draining {traffic.open} open requests")
        traffic.stop()
        for what, done in (
            ("the broker has taken every request", lambda: traffic.published),
            ("all offsets are committed", lambda: all_committed(cluster.system)),
        ):
            try:
                eventually(what, done, DRAINED_WITHIN_S)
            except AssertionError as error:
                report.failures.append(str(error))
        for slot, workers in enumerate(cluster.supervisors):
            code = workers.terminate(60)
            if code not in CLEAN_EXITS:
                report.failures.append(f"slot {slot} ended with {code} after SIGTERM")
        report.failures += [f"request {refusal} was not published" for refusal in traffic.refused]
        report.fired = [
            replace(fault, most_in_hand=in_hand.most(fault.at, fault.until + AFTERMATH_S))
            for fault in report.fired
        ]
        report.verdict = _judge(cluster.system, traffic, report)
        report.finished = True
        if not report.verdict.clean:
            _keep(cluster.kafka, report.logs)


def _keep(kafka: Kafka, folder: Path) -> None:
    """The brokers' logs and what is on the topics: they tell whether a record was ever written, and where it went."""
    for broker in kafka.brokers:
        indexes = shutil.ignore_patterns(
            "*.index", "*.timeindex", "*.txnindex"
        )  # large, and made of the rest
        with suppress(shutil.Error):  # they still run: a file may go while it is copied
            shutil.copytree(broker.folder, folder / f"broker-{broker.node_id}", ignore=indexes)


def _take(cluster: Cluster, traffic: Traffic, step: Step, report: Report, say: Say) -> None:
    """All faults of a step strike, last, and are healed; returns when answers come again."""
    struck: list[tuple[int, Fault, Struck]] = []
    failure: Exception | None = None
    try:
        for fault in step:
            in_hand = _loaded(cluster, traffic)
            at = time.time()
            hit = strike(cluster, fault)
            fired = Fired(at, float("inf"), fault.kind, hit.target, in_hand, hit.seen, hit.breaks)
            struck.append((len(report.fired), fault, hit))
            report.fired.append(fired)
            say(f"{fault.kind}: {hit.target} ({hit.seen}) with {in_hand} in hand, for {fault.hold_s:g} s")
        time.sleep(max(fault.hold_s for fault in step))
    except Exception as error:
        failure = error
    with ExitStack() as healing:
        # Last in, first out: workers are ready again only when the servers are.
        for _, _, hit in sorted(struck, key=lambda each: FAMILY[each[1].kind] != WORKERS):
            healing.callback(hit.heal)
        if failure is not None and not struck:
            # Half a fault is healed by what heals whole ones.
            healing.callback(cluster.heal)
    for index, _, _ in struck:
        report.fired[index] = replace(report.fired[index], until=time.time())
    if failure is not None:
        raise failure
    answered = len(traffic.answered)

    def again() -> bool:
        traffic.check()
        return len(traffic.answered) >= answered + RECOVERED_ANSWERS

    eventually("answers come again", again, RECOVERED_WITHIN_S)


def _loaded(cluster: Cluster, traffic: Traffic) -> int:
    def enough() -> int:
        traffic.check()
        in_hand = cluster.in_hand()
        return in_hand if in_hand >= LEAST_IN_HAND else 0

    return eventually(f"enough load: {LEAST_IN_HAND} requests in flight or waiting", enough, LOAD_WITHIN_S)


def _judge(system: System, traffic: Traffic, report: Report) -> Verdict:
    with offsets_reader(system) as consumer:
        settled = set[tuple[int, int]]()
        numbers = range(system.partitions)
        for commit in consumer.committed([TopicPartition(system.requests, number) for number in numbers], 20):
            runs = [(0, max(0, commit.offset)), *decode(commit.offset, commit.metadata)]
            settled.update((commit.partition, offset) for run in runs for offset in range(*run))

    def everything(topic: str) -> list[Read]:
        return system.reader(topic, system.partitions).everything(READ_WITHIN_S)

    sent = _placed(traffic, everything(system.requests), report)
    came_back, letters = everything(system.replies), system.every_dead_letter(READ_WITHIN_S)
    exactly_once = system.env.get("WORKER_DELIVERY") == "transactional"
    return judge(
        system.requests,
        sent,
        came_back,
        letters,
        settled,
        report.fired,
        ordered=report.ordered,
        exactly_once=exactly_once,
        read_meanwhile=traffic.answered,
    )


def _placed(traffic: Traffic, records: list[Read], report: Report) -> list[Sent]:
    """What was sent, with its place on the topic. What is not there once is a failure, of Kafka or of ours."""
    missing = {request.number: request for request in traffic.sent}
    placed = []
    for record in records:
        request = missing.pop(int(record.headers[NUMBER] or b""), None)
        if request is None:
            report.failures.append(
                f"{record.headers[NUMBER]!r} is on the topic twice, or was never acknowledged"
            )
        else:
            place = (record.partition, record.offset)
            placed.append(replace(request, place=place, timestamp_ms=record.timestamp_ms))
    report.failures += [f"request {number} was acknowledged and is not on the topic" for number in missing]
    return placed


def write(report: Report) -> None:
    """The ledger as JSON lines: the run, each fault, each violation."""
    verdict = report.verdict
    head = {
        "seed": report.seed,
        "brokers": report.brokers,
        "env": dict(report.env),
        "seconds": round(report.seconds, 1),
        "finished": report.finished,
        "clean": report.clean,
        "requests": verdict.requests,
        "replies": verdict.replies,
        "codes": dict(verdict.codes.most_common()),
        "lost": len(verdict.lost),
        "unanswered": len(verdict.unanswered),
        "wrong": len(verdict.wrong),
        "given_up": verdict.given_up,
        "duplicates": verdict.duplicates,
        "in_order": verdict.in_order,
    }
    counts = chain(verdict.duplicates_by_fault, repeat(0))
    lines: list[dict[str, object]] = [head]
    lines += [
        {"time": round(fault.at, 3), "duplicates": count, **asdict(fault)}
        for fault, count in zip(report.fired, counts, strict=False)
    ]
    for name in ("lost", "unanswered", "wrong"):
        lines += [{name: sentence} for sentence in getattr(verdict, name)]
    lines += [{"failure": failure} for failure in report.failures]
    report.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
