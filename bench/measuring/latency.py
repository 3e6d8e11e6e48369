"""Latency at a given rate: from when a request was due to be sent until its reply was read.

Counting from when it was due, not from when it was sent, leaves nothing out if the sender itself was held up.
"""

import random
import threading
import time
from collections.abc import Sequence
from itertools import accumulate

from confluent_kafka import Consumer, Producer, TopicPartition

from bench import prompts
from bench.contenders.contender import Contender, Place
from bench.measuring import triton_counts
from bench.measuring.figures import Figures
from bench.measuring.processes import cpu_s, peak_memory_mb
from bench.measuring.run import ContenderFailed, Run, running
from bench.services import PARTITIONS, Services
from bench.statistics import percentile
from bench.workloads import Workload
from promptbus.settings import DURABLE

WARM_PROMPTS = 200
WARM_RATE = 200
PATIENCE_S = 10.0


class Conversation:
    """Sends requests and reads replies. Numbers go on from one rate to the next."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._next = 0
        client = {"bootstrap.servers": place.bootstrap, "log_level": 0}
        # As PromptClient's: it sends at once, and what comes while a batch is under way goes together.
        self._producer = Producer({**client, "linger.ms": 0, "partitioner": "murmur2_random", **DURABLE})
        self._consumer = Consumer({**client, "group.id": "bench", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(place.replies, number, 0) for number in range(PARTITIONS)])

    def hold(self, times_s: Sequence[float], patience_s: float = PATIENCE_S) -> list[float]:
        """Send a request at each of these times from now; the latencies in ms of those that are answered."""
        numbers = range(self._next, self._next + len(times_s))
        self._next += len(times_s)
        start = time.perf_counter() + 0.05
        due = {prompts.key(number): start + time_s for number, time_s in zip(numbers, times_s, strict=True)}
        sender = threading.Thread(target=self._send, args=(numbers, list(due.values())))
        sender.start()
        try:
            return self._read(due, start + times_s[-1] + patience_s)
        finally:
            sender.join()

    def _send(self, numbers: range, due: list[float]) -> None:
        place = self._place
        for number, moment in zip(numbers, due, strict=True):
            key, value = prompts.request(number, place.prompt_bytes, place.max_tokens)
            pause = moment - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            self._producer.produce(place.requests, value, key)
            self._producer.poll(0)

    def _read(self, due: dict[bytes, float], deadline: float) -> list[float]:
        latencies = []
        while due and (left := deadline - time.perf_counter()) > 0:
            message = self._consumer.poll(left)
            if message is None or message.error() is not None:
                continue
            now = time.perf_counter()
            moment = due.pop(message.key() or b"", None)
            if moment is not None:
                latencies.append((now - moment) * 1000)
        return latencies

    def close(self) -> None:
        """Let go."""
        self._producer.flush(10)
        self._consumer.close()


def even(rate: float, count: int) -> list[float]:
    """Times at an even pace."""
    return [number / rate for number in range(count)]


def at_random(rate: float, count: int) -> list[float]:
    """Times as of many callers who know nothing of each other (Poisson); the same ones for each run."""
    dice = random.Random(count)
    return list(accumulate(dice.expovariate(rate) for _ in range(count)))


def measure(contender: Contender, workload: Workload, services: Services) -> dict[str, Figures]:
    """Figures for each of the workload's rates. Raises ContenderFailed."""
    place = services.place(workload, contender)
    found = {}
    with running(contender, place, services) as run:
        conversation = Conversation(place)
        try:
            _warm(run, conversation)
            for name, rate in zip(workload.rows, workload.rates, strict=True):
                found[name] = _at_rate(run, conversation, services, workload, rate)
        finally:
            conversation.close()
    services.clear(place)
    return found


def _warm(run: Run, conversation: Conversation) -> None:
    run.wait_for("the first answer", lambda: bool(conversation.hold([0.0], 5.0)))
    conversation.hold(even(WARM_RATE, WARM_PROMPTS))


def _at_rate(
    run: Run, conversation: Conversation, services: Services, workload: Workload, rate: int
) -> Figures:
    roles, count = run.roles, round(rate * workload.window_s)
    cpu, triton = cpu_s(roles), triton_counts.counts(services.triton_port, workload.model)
    found = sorted(conversation.hold((at_random if workload.at_random else even)(rate, count)))
    if not run.process.running:
        raise ContenderFailed(f"{run.contender.name} ended at {rate} per second.")
    answered = max(1, len(found))
    # What was not answered took at least as long as was waited for it.
    latencies = found + [PATIENCE_S * 1000] * (count - len(found))
    used, now = cpu_s(roles), triton_counts.counts(services.triton_port, workload.model)
    executions = now.executions - triton.executions
    return Figures(
        prompts_per_s=len(found) / workload.window_s,
        cpu_us={role: (used[role] - cpu[role]) / answered * 1e6 for role in cpu},
        peak_mb=peak_memory_mb(run.process.pid),
        mean_batch=(now.prompts - triton.prompts) / executions if executions else 0.0,
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        unanswered=count - len(found),
    )
