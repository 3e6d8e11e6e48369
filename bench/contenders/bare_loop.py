"""What promptbus is measured against: a Python program that calls Triton directly, without Kafka.

tritonclient.http.aio on uvloop, batches of 8, a number of calls at a time. It makes its tensors for each call and reads
every answer, as a program does that has a use for them.

    python -m bench.contenders.bare_loop TRITON_URL MODEL CONCURRENCY PROMPT_BYTES MAX_TOKENS
"""

import asyncio
import itertools
import signal
import sys
from collections.abc import Iterator

import numpy as np
import tritonclient.http.aio as triton
import uvloop

from bench import prompts
from bench.contenders.tensors import tensor

BATCH = 8
PREPARED = 256
OUTPUTS = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]


async def calls(
    client: triton.InferenceServerClient,
    model: str,
    batches: Iterator[list[bytes]],
    max_tokens: int,
    stopping: asyncio.Event,
) -> None:
    """One call after the other, until it is to stop."""
    for batch in batches:
        if stopping.is_set():
            return
        rows = len(batch)
        inputs = [
            tensor("prompt", "BYTES", np.array(batch, dtype=np.object_).reshape(rows, 1)),
            tensor("max_tokens", "INT32", np.full((rows, 1), max_tokens, dtype=np.int32)),
            tensor("temperature", "FP32", np.full((rows, 1), 0.7, dtype=np.float32)),
        ]
        result = await client.infer(model, inputs, outputs=OUTPUTS)
        texts = [text.decode() for text in result.as_numpy("response")[:, 0]]
        tokens = result.as_numpy("tokens_used")[:, 0].tolist()
        if len(texts) != rows or len(tokens) != rows:
            raise RuntimeError(f"{len(texts)} answers to {rows} prompts")


async def main(url: str, model: str, concurrency: int, size: int, max_tokens: int) -> None:
    """Until SIGTERM; calls in flight are finished, so that nobody after it finds Triton busy with them."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    texts = [prompts.prompt(number, size).encode() for number in range(PREPARED)]
    batches = itertools.cycle([texts[start : start + BATCH] for start in range(0, PREPARED, BATCH)])
    async with triton.InferenceServerClient(url, conn_limit=concurrency) as client:
        await asyncio.gather(
            *(calls(client, model, batches, max_tokens, stopping) for _ in range(concurrency))
        )


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
