"""The loop that promptbus is compared with: consume one, infer one, produce one.

As good as such a loop is usually written: connections are kept, nothing is flushed per record, offsets are committed
in the background, and the client libraries are the same ones. It waits for each answer before it asks for the next.

    python -m tests.integration.naive BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC TRITON_URL COUNT
"""

from __future__ import annotations

import sys
import uuid

import numpy as np
import orjson
import tritonclient.http as triton
from confluent_kafka import Consumer, Producer


def main(bootstrap: str, requests: str, replies: str, url: str, count: int) -> None:
    """Answer `count` requests from the topic's beginning."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"naive-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([requests])
    producer = Producer({"bootstrap.servers": bootstrap})
    outputs = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]
    with triton.InferenceServerClient(url) as client:
        done = 0
        while done < count:
            message = consumer.poll(1.0)
            if message is None or message.error() is not None:
                continue
            request = orjson.loads(message.value() or b"")
            inputs = [
                tensor("prompt", "BYTES", np.array([[request["prompt"].encode()]], dtype=np.object_)),
                tensor("max_tokens", "INT32", np.array([[request.get("max_tokens", 150)]], dtype=np.int32)),
                tensor(
                    "temperature", "FP32", np.array([[request.get("temperature", 0.7)]], dtype=np.float32)
                ),
            ]
            result = client.infer("gpt4_nano", inputs, outputs=outputs)
            reply = {
                "request_id": request["request_id"],
                "response": result.as_numpy("response")[0, 0].decode(),
                "tokens_used": int(result.as_numpy("tokens_used")[0, 0]),
            }
            producer.produce(replies, orjson.dumps(reply), request["request_id"].encode())
            producer.poll(0)
            done += 1
    producer.flush(30)
    consumer.close()


def tensor(
    name: str, datatype: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> triton.InferInput:
    """One input of a batch of one."""
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
