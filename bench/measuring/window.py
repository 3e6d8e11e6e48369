"""Throughput and its cost: two looks at all counters, some seconds apart, while a contender works."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

from confluent_kafka import Message

from bench import prompts
from bench.contenders.contender import Contender
from bench.measuring import triton_counts
from bench.measuring.feeding import fed
from bench.measuring.figures import Figures
from bench.measuring.processes import cpu_s, peak_memory_mb
from bench.measuring.run import ContenderFailed, Run, running
from bench.services import Services
from bench.workloads import REAL, Workload

WARM_SHARE, DONE_SHARE = 0.1, 0.95
"""Of the backlog: a window begins at the latest after the first, and ends at the latest with the second."""
BURST_OVER_S = 0.02
LONGEST_CALM_S = 30.0
CHECKED = 500


class Look(NamedTuple):
    """All counters at one moment. `prompts`: replies on the topic, or Triton's answers if Kafka has no part."""

    at: float
    prompts: int
    cpu_s: dict[str, float]
    triton: triton_counts.Counts


def measure(contender: Contender, workload: Workload, services: Services, concurrency: int = 0) -> Figures:
    """Start it, let it warm up, look, wait, look, stop it. Raises ContenderFailed."""
    place = services.place(workload, contender, concurrency)
    window_s = workload.peer_window_s if contender.is_peer else workload.window_s
    idle = triton_counts.counts(services.triton_port, workload.model).prompts
    with ExitStack() as stack:
        run = stack.enter_context(running(contender, place, services))

        def done() -> int:
            if contender.through_kafka:
                return services.written(place.replies)
            return triton_counts.counts(services.triton_port, workload.model).prompts - idle

        def look() -> Look:
            counts = triton_counts.counts(services.triton_port, workload.model)
            return Look(time.monotonic(), done(), cpu_s(roles), counts)

        if contender.reads_new_only_after:
            run.wait_for("it reads", lambda: run.has_logged(contender.reads_new_only_after))
            stack.enter_context(fed(contender, workload, services, place))
        run.wait_for("the first answer", lambda: done() > 0)
        if contender.members > 1:
            sharing = min(contender.members, workload.partitions)
            run.wait_for("each process has partitions", lambda: services.sharing(place.group) >= sharing)
        roles = run.roles
        has_backlog = contender.through_kafka and not contender.reads_new_only_after
        limit = workload.records if has_backlog else float("inf")
        _wait(run, done, time.monotonic() + workload.warm_s, limit * WARM_SHARE)
        if workload.in_bursts:
            _after_a_burst(run, done)
        first = look()
        _wait(run, done, first.at + window_s, limit * DONE_SHARE)
        if workload.in_bursts:
            _after_a_burst(run, done)
        last = look()
        peak_mb = peak_memory_mb(run.process.pid)
    answered = last.prompts - first.prompts
    if answered <= 0:
        raise ContenderFailed(f"{contender.name} answered nothing for {last.at - first.at:.1f} s.")
    first_poll_s = None
    if contender.through_kafka:
        replies = services.read(place.replies, min(CHECKED, last.prompts))
        _check(contender, workload, replies)
        first_poll_s = _first_poll_s(replies, run.started_at)
    services.clear(place)
    executions = last.triton.executions - first.triton.executions
    return Figures(
        prompts_per_s=answered / (last.at - first.at),
        cpu_us={role: (last.cpu_s[role] - first.cpu_s[role]) / answered * 1e6 for role in first.cpu_s},
        peak_mb=peak_mb,
        mean_batch=(last.triton.prompts - first.triton.prompts) / executions if executions else 0.0,
        first_poll_s=first_poll_s,
    )


def _wait(run: Run, done: Callable[[], int], until: float, or_done: float) -> None:
    """Until the time has come, or so many are done. Asking costs the broker as much as ten replies, so not often."""
    short = run.contender.through_kafka and or_done < 20_000
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.02 if short else 0.25))
        if not run.process.running:
            raise ContenderFailed(f"{run.contender.name} ended while it was measured.")
        if or_done != float("inf") and done() >= or_done:
            return


def _after_a_burst(run: Run, done: Callable[[], int]) -> None:
    """Until answers have come and no more do for a moment.

    A model that works for long answers whole batches at once, instances often in step. Between two bursts there is a
    whole number of them; a window that ended by the clock would have one more or less by chance.
    """
    before = done()
    run.wait_for("an answer", lambda: done() > before, LONGEST_CALM_S)
    seen = 0
    while (now := done()) > seen:
        seen = now
        time.sleep(BURST_OVER_S)


def _check(contender: Contender, workload: Workload, replies: list[Message]) -> None:
    """A fast wrong answer does not count."""
    if workload.model == REAL:
        wrong = [reply for reply in replies if b'"response":' not in (reply.value() or b"")]
    else:
        wrong = [reply for reply in replies if not prompts.answers(reply.key(), reply.value())]
    if wrong or not replies:
        shown = (wrong[0].value() or b"")[:300] if wrong else b"none could be read"
        raise ContenderFailed(
            f"{contender.name}: {len(wrong)} of {len(replies)} replies are wrong: {shown!r}"
        )


def _first_poll_s(replies: list[Message], started_at: float) -> float | None:
    """From the first reply: when it was written, less the times that it says it took since it was polled."""
    times = []
    for reply in replies:
        with suppress(KeyError, TypeError, ValueError):
            timings = json.loads(reply.value() or b"")["timings"]
            polled_ms = reply.timestamp()[1] - timings["queue_ms"] - timings["inference_ms"]
            times.append(polled_ms / 1000 - started_at)
    return min(times, default=None)
