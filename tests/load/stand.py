"""What load runs are made on: a real Kafka, a real Triton with a known capacity, one supervisor, and that capacity."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.http.aio as triton_http

from stack.kafka import Kafka
from stack.triton import MODELS, Triton
from tests.integration.system import System, Workers, system

PROCESSES, PARTITIONS = 2, 12
BATCH, BATCH_MS, INSTANCES = 8, 150, 4
"""A model that takes 150 ms for up to 8 prompts, four times over: about 210 prompts a second, and little processor."""
CALLERS = 3 * INSTANCES
SETTINGS = {"WORKER_PROCESSES": str(PROCESSES), "KAFKA_SESSION_TIMEOUT_MS": "45000"}
"""The session time-out is the default one: these runs are no test of a starved machine."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stand:
    """All that runs."""

    system: System
    triton: Triton
    workers: Workers


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Kafka, Triton]]:
    """Kafka, and Triton with its model in `folder`."""
    knobs = {"GPT4_NANO_BATCH_LATENCY_MS": str(BATCH_MS)}
    with Kafka() as kafka, Triton(_repository(folder / "models"), engine="canned", env=knobs) as triton:
        yield kafka, triton


@contextmanager
def running(kafka: Kafka, triton: Triton, folder: Path, say: Say) -> Iterator[Stand]:
    """Topics and a supervisor on these servers; its log is in `folder`."""
    with system(kafka, triton, folder, partitions=PARTITIONS) as made:
        say(f"starting a supervisor with {PROCESSES} worker processes")
        yield Stand(made, triton, made.start(**SETTINGS).ready())


def _repository(folder: Path) -> Path:
    """The model, with more instances."""
    shutil.copytree(MODELS, folder)
    config = folder / "gpt4_nano" / "config.pbtxt"
    text = config.read_text()
    assert text.count("count: 2") == 1
    config.write_text(text.replace("count: 2", f"count: {INSTANCES}"))
    return folder


def capacity(triton: Triton, seconds: float) -> float:
    """Prompts per second that Triton answers to a loop that calls it directly, with full batches, without Kafka."""
    return asyncio.run(_capacity(triton.url, seconds))


async def _capacity(url: str, seconds: float) -> float:
    prompts = triton_http.InferInput("prompt", [BATCH, 1], "BYTES")
    prompts.set_data_from_numpy(np.full((BATCH, 1), b"what is a batch?", dtype=np.object_))
    warm = time.monotonic() + 1.0
    end = warm + seconds
    answered = 0

    async def call() -> None:
        nonlocal answered
        while True:
            result = await client.infer("gpt4_nano", [prompts])
            if (now := time.monotonic()) > end:
                return
            if now > warm:
                answered += len(result.as_numpy("response"))

    async with triton_http.InferenceServerClient(url, conn_limit=CALLERS) as client:
        await asyncio.gather(*(call() for _ in range(CALLERS)))
    return answered / seconds
