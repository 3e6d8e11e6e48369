"""What promptbus is compared with most: consume one, infer one, produce one.

As good as such a loop is usually written: connections are kept, nothing is flushed per record, offsets are committed
in the background, and the client libraries are the same ones. It waits for each answer before it asks for the next.

    python -m bench.contenders.one_at_a_time BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC TRITON_URL MODEL
"""

import signal
import sys
import uuid

import numpy as np
import orjson
import tritonclient.http as triton
from confluent_kafka import Consumer, Producer

from bench.contenders.tensors import tensor


def main(bootstrap: str, requests: str, replies: str, url: str, model: str) -> None:
    """Answer requests from the topic's beginning until SIGTERM."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"one-at-a-time-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([requests])
    producer = Producer({"bootstrap.servers": bootstrap})
    outputs = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]
    with triton.InferenceServerClient(url) as client:
        while not stopping:
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
            result = client.infer(model, inputs, outputs=outputs)
            reply = {
                "request_id": request["request_id"],
                "response": result.as_numpy("response")[0, 0].decode(),
                "tokens_used": int(result.as_numpy("tokens_used")[0, 0]),
            }
            producer.produce(replies, orjson.dumps(reply), request["request_id"].encode())
            producer.poll(0)
    producer.flush(30)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:6])
