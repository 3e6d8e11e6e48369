"""What the worker's two ways to Triton cost, side by side: `python -m bench.transports`.

Batches of 8 prompts at concurrency 4 on uvloop, against a server that answers at once with ready-made bytes (what is
left is the client), and against real Triton with the model's `canned` engine. Rounds are interleaved; printed are
medians of this process's CPU per prompt and of prompts per second, and of the rounds' ratios. To measure them compiled
(`make compile`), set PYTHONPATH to what `python -m stack.compiled --path` prints.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import get_args

import uvloop

from promptbus_worker.model import Inputs, Row
from promptbus_worker.triton import Transport, TritonClient
from stack.triton import Triton
from tests.unit.triton.scripted_triton import (
    Received,
    ScriptedTriton,
    answer_of,
    outputs_for,
)

BATCH = 8
CONCURRENCY = 4
PROMPTS = [f"What does partition {number} of a topic do?".encode() for number in range(BATCH)]
ANSWER = answer_of(outputs_for(PROMPTS))


class InstantTriton(ScriptedTriton):
    """Describes the model as the scripted server does, and answers every inference with the same bytes."""

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if request.method == "GET":
            await super()._answer(request, writer)
        else:
            writer.write(ANSWER)


def serve(port: Connection) -> None:
    """Tell the port and serve until the other end closes."""

    async def until_closed() -> None:
        async with InstantTriton() as server:
            port.send(server.port)
            await asyncio.to_thread(port.poll, None)

    uvloop.run(until_closed())


async def measure(url: str, transport: Transport, seconds: float) -> tuple[float, float]:
    """CPU microseconds of this process per prompt, and prompts per second."""
    client = TritonClient(url, transport=transport)
    spec = await client.read_spec("gpt4_nano")
    batch: list[Inputs] = [{"prompt": prompt, "max_tokens": 150, "temperature": 0.7} for prompt in PROMPTS]
    done = 0

    async def calls(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            _, rows = await client.infer(spec, batch, 10.0)
            assert type(rows[-1]) is Row
            done += len(rows)

    await calls(time.perf_counter() + 0.2)
    done = 0
    cpu, clock = time.process_time(), time.perf_counter()
    await asyncio.gather(*(calls(clock + seconds) for _ in range(CONCURRENCY)))
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    await client.close()
    return cpu / done * 1e6, done / clock


def compare(name: str, url: str, seconds: float, rounds: int) -> None:
    """Print one server's table."""
    transports: tuple[Transport, ...] = get_args(Transport)
    figures: dict[Transport, list[tuple[float, float]]] = {transport: [] for transport in transports}
    for number in range(rounds):
        for transport in transports if number % 2 else transports[::-1]:
            figures[transport].append(uvloop.run(measure(url, transport, seconds)))
    print(f"{name}: batch {BATCH}, concurrency {CONCURRENCY}, {rounds} rounds of {seconds} s")
    for transport, rows in figures.items():
        cpu, rate = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {transport:<13} {cpu:6.1f} us CPU per prompt {rate:9.0f} prompts/s")
    pairs = list(zip(figures["tritonclient"], figures["binary"], strict=True))
    cpus = sorted(old[0] / new[0] for old, new in pairs)
    rates = sorted(new[1] / old[1] for old, new in pairs)
    print(f"  CPU {statistics.median(cpus):.2f}x less ({cpus[0]:.2f}-{cpus[-1]:.2f})", end=", ")
    print(f"rate {statistics.median(rates):.2f}x ({rates[0]:.2f}-{rates[-1]:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instant-only", action="store_true", help="without the real Triton")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    compare("instant server", f"127.0.0.1:{ours.recv()}", options.seconds, options.rounds)
    ours.close()
    server.join()
    if not options.instant_only:
        with Triton(engine="canned") as triton:
            compare("Triton, canned engine", triton.url, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
