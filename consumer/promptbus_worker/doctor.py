"""`promptbus doctor`: would a worker with these settings work here, and if not, what mends it.

One line per checked thing, in a few seconds, whatever is up or down. It changes nothing: no topic is made, no group
joined, no offset moved. One short prompt is sent to each model, past Kafka.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread

from promptbus_worker.deadline import Deadline
from promptbus_worker.preflight import Finding, Level, fail
from promptbus_worker.settings import Settings

# Each visit keeps to less by itself; this is for what has no time-out of its own.
_TOTAL_S = 15.0
_INTERRUPTED = 130

_Report = Callable[[Finding], None]


def run(settings: Settings) -> int:
    """Print what was found. 0: nothing keeps a worker from working; 1: something does; 130 (it does not return): interrupted."""
    deadline = Deadline(_TOTAL_S)
    worst: list[Level] = []
    try:
        visits = [_visit("Kafka", _kafka, settings), _visit("Triton", _triton, settings)]
        for name, findings in zip(("Kafka", "Triton"), visits, strict=True):
            for finding in _until_done(name, findings, deadline):
                worst.append(finding.level)
                print(finding.line(), flush=True)
    except KeyboardInterrupt:
        # Not by the usual way out: taking down a client that still waits for a broker can last as long as its time-out.
        sys.stdout.flush()
        os._exit(_INTERRUPTED)
    fails, warns = worst.count(Level.FAIL), worst.count(Level.WARN)
    if fails:
        print(f"{fails} FAIL, {warns} warn: a worker cannot work like this yet")
        return 1
    print("all is in place" + (f", {warns} warn" if warns else "") + ": start with `promptbus worker`")
    return 0


def _kafka(settings: Settings, report: _Report) -> None:
    from promptbus_worker.doctor_kafka import KafkaCheckup

    for finding in KafkaCheckup(settings).findings():
        report(finding)


def _triton(settings: Settings, report: _Report) -> None:
    from promptbus_worker.doctor_triton import TritonCheckup

    async def visit() -> None:
        async for finding in TritonCheckup(settings).findings():
            report(finding)

    asyncio.run(visit())


def _visit(
    name: str, check: Callable[[Settings, _Report], None], settings: Settings
) -> SimpleQueue[Finding | None]:
    """Both are visited at once, each in a thread that does not keep the process alive; None ends the findings."""
    findings: SimpleQueue[Finding | None] = SimpleQueue()

    def check_and_end() -> None:
        try:
            check(settings, findings.put)
        except Exception as error:
            sentence = f"the doctor itself failed at {name}: {type(error).__name__}: {error}"
            findings.put(fail(sentence, "this is a defect of promptbus: please report it"))
        finally:
            findings.put(None)

    Thread(target=check_and_end, name=f"doctor-{name}", daemon=True).start()
    return findings


def _until_done(name: str, findings: SimpleQueue[Finding | None], deadline: Deadline) -> Iterator[Finding]:
    while True:
        try:
            # A signal that another thread took up does not wake this one: look for it a few times a second.
            finding = findings.get(timeout=max(0.01, deadline.remaining_s(at_most=0.2)))
        except Empty:
            if not deadline.expired:
                continue
            yield fail(
                f"{name} was not examined to the end within {_TOTAL_S:g} s",
                "is it reachable, and not overloaded?",
            )
            return
        if finding is None:
            return
        yield finding
