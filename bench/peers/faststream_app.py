"""FastStream, confluent flavour: a subscriber that publishes what it returns. Runs in its own environment.

    python -I faststream_app.py BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC TRITON_URL MODEL (message|batch)

`batch` is its batch subscriber with 8 records at most, and Triton is called once for a batch.
"""

import asyncio
import sys
import uuid
from typing import Any

import numpy as np
import tritonclient.http.aio as triton
from faststream import FastStream
from faststream.confluent import KafkaBroker, KafkaMessage

BOOTSTRAP, REQUESTS, REPLIES, URL, MODEL, MODE = sys.argv[1:7]
OUTPUTS = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]

broker = KafkaBroker(BOOTSTRAP)
app = FastStream(broker)
publisher = broker.publisher(REPLIES)
clients: list[triton.InferenceServerClient] = []
subscription = {"group_id": f"faststream-{uuid.uuid4().hex}", "auto_offset_reset": "earliest"}


@app.on_startup
async def connect() -> None:
    clients.append(triton.InferenceServerClient(URL))


@app.after_shutdown
async def disconnect() -> None:
    await clients.pop().close()


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


async def infer(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    texts = np.array([[request["prompt"].encode()] for request in requests], dtype=np.object_)
    limits = np.array([[request["max_tokens"]] for request in requests], dtype=np.int32)
    warmth = np.full((len(requests), 1), 0.7, dtype=np.float32)
    inputs = [
        tensor("prompt", "BYTES", texts),
        tensor("max_tokens", "INT32", limits),
        tensor("temperature", "FP32", warmth),
    ]
    result = await clients[0].infer(MODEL, inputs, outputs=OUTPUTS)
    rows = zip(requests, result.as_numpy("response")[:, 0], result.as_numpy("tokens_used")[:, 0], strict=True)
    return [
        {"request_id": request["request_id"], "response": text.decode(), "tokens_used": int(tokens)}
        for request, text, tokens in rows
    ]


if MODE == "message":

    @broker.subscriber(REQUESTS, **subscription)
    async def answer(request: dict[str, Any], message: KafkaMessage) -> None:
        (reply,) = await infer([request])
        await publisher.publish(reply, key=request["request_id"].encode(), no_confirm=True)

else:

    @broker.subscriber(REQUESTS, batch=True, max_records=8, **subscription)
    async def answer_batch(requests: list[dict[str, Any]]) -> None:
        replies = await infer(requests)
        for request, reply in zip(requests, replies, strict=True):
            await publisher.publish(reply, key=request["request_id"].encode(), no_confirm=True)


if __name__ == "__main__":
    asyncio.run(app.run())
