"""The worker against a loop that consumes one, infers one, produces one, on the same machine in the same run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.mixed import body
from tests.integration.system import Sending, System, system

ROUNDS = int(os.environ.get("THROUGHPUT_ROUNDS", "3"))
OF_WORKER = int(os.environ.get("THROUGHPUT_REQUESTS", "40000"))
OF_LOOP = 2_000
AT_LEAST = float(os.environ.get("THROUGHPUT_RATIO", "2"))
"""A floor that catches a broken batch path on any machine; the ratio that is aimed at is 10."""
WARM_UP = 0.1
"""The share of a round's first replies that is not measured."""
QUESTIONS = ("What is Kafka?", "What is a token, number {}?", "How is the weather in place {}?", "Why {}?")


def test_the_worker_is_several_times_as_fast_as_one_at_a_time(
    shared_kafka: Kafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, worker = [], []
    with Triton(engine="canned") as triton:
        for number in range(ROUNDS):
            folder = tmp_path / str(number)
            folder.mkdir()
            loop.append(measure(shared_kafka, triton, folder, OF_LOOP, use_worker=False))
            worker.append(measure(shared_kafka, triton, folder, OF_WORKER, use_worker=True))
    ratio = statistics.median(worker) / statistics.median(loop)
    with capsys.disabled():
        print(f"\nprompts/s: worker {shown(worker)}, one at a time {shown(loop)}; ratio {ratio:.1f}")
    assert ratio >= AT_LEAST


def shown(rates: list[float]) -> str:
    """The median, and all."""
    return f"{statistics.median(rates):.0f} ({', '.join(f'{rate:.0f}' for rate in rates)})"


def measure(kafka: Kafka, triton: Triton, folder: Path, count: int, *, use_worker: bool) -> float:
    """Prompts per second through a backlog that is there before the start."""
    with system(kafka, triton, folder) as whole:
        whole.send(
            [
                Sending(
                    body(QUESTIONS[n % len(QUESTIONS)].format(n), request_id=f"request-{n}"), b"key-%d" % n
                )
                for n in range(count)
            ]
        )
        if use_worker:
            workers = whole.start()
            wait_for_replies(whole, count)
            assert workers.terminate() == 0
        else:
            addresses = [kafka.bootstrap, whole.requests, whole.replies, triton.url, str(count)]
            subprocess.run(
                [sys.executable, "-m", "tests.integration.naive", *addresses],
                env=whole.environment(),
                check=True,
                timeout=120,
            )
        return rate(whole, count)


def wait_for_replies(whole: System, count: int) -> None:
    """Ask the broker how many there are: reading them here would cost the worker its processor."""
    consumer = Consumer({"bootstrap.servers": whole.kafka.bootstrap, "group.id": "counting", "log_level": 0})
    partitions = [TopicPartition(whole.replies, number) for number in range(whole.partitions)]

    def replies() -> int:
        return sum(consumer.get_watermark_offsets(partition, 10)[1] for partition in partitions)

    deadline = time.monotonic() + 150
    while replies() < count:
        assert time.monotonic() < deadline, f"{replies()} of {count} are answered"
        time.sleep(0.5)  # asking costs the broker as much as a hundred replies
    consumer.close()


def rate(whole: System, count: int) -> float:
    """From the replies' timestamps, which their producer set."""
    times = sorted(record.timestamp_ms for record in whole.reply_records(count))
    measured = times[int(len(times) * WARM_UP) :]
    return (len(measured) - 1) / (measured[-1] - measured[0]) * 1000
