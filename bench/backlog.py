"""Fills a topic as fast as this machine lets it, and says how far it is."""

import time
from collections.abc import Callable

from confluent_kafka import KafkaError, Message, Producer

from bench.prompts import Record

SAY_EVERY_S = 5.0


def fill(
    bootstrap: str, topic: str, numbers: range, record: Callable[[int], Record], headers: list[tuple[str, str | bytes | None]],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Publish the records of these numbers, and return when the broker has them all. Raises RuntimeError."""
    failures: list[str] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error.str())

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 50,
            "batch.size": 500_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 131_072,
            # Only failures call back: a million calls would take longer than the rest.
            "delivery.report.only.error": True,
            "on_delivery": delivered,
            "acks": 1,
        }
    )
    next_word = time.monotonic() + SAY_EVERY_S
    for done, number in enumerate(numbers):
        key, value = record(number)
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
                break
            except BufferError:
                producer.poll(0.05)
        if done % 1000 == 0:
            producer.poll(0)
            if time.monotonic() > next_word:
                say(f"{topic}: {done:,} of {len(numbers):,} records written")
                next_word += SAY_EVERY_S
    left = producer.flush(120)
    if left or failures:
        raise RuntimeError(
            f"{left + len(failures)} of {len(numbers)} records were not written: {failures[:1]}"
        )
