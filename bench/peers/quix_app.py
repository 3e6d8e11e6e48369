"""Quix Streams: a streaming data frame whose function calls Triton. Runs in its own environment.

    python -I quix_app.py BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC TRITON_URL MODEL

Its functions get one record at a time and must return before the next, so every call is a batch of one.
"""

import sys
import uuid
from typing import Any

import numpy as np
import tritonclient.http as triton
from quixstreams import Application

BOOTSTRAP, REQUESTS, REPLIES, URL, MODEL = sys.argv[1:6]
OUTPUTS = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]
client = triton.InferenceServerClient(URL)


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def answer(request: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        tensor("prompt", "BYTES", np.array([[request["prompt"].encode()]], dtype=np.object_)),
        tensor("max_tokens", "INT32", np.array([[request["max_tokens"]]], dtype=np.int32)),
        tensor("temperature", "FP32", np.array([[0.7]], dtype=np.float32)),
    ]
    result = client.infer(MODEL, inputs, outputs=OUTPUTS)
    return {
        "request_id": request["request_id"],
        "response": result.as_numpy("response")[0, 0].decode(),
        "tokens_used": int(result.as_numpy("tokens_used")[0, 0]),
    }


app = Application(
    broker_address=BOOTSTRAP,
    consumer_group=f"quix-{uuid.uuid4().hex}",
    auto_offset_reset="earliest",
    auto_create_topics=False,
    loglevel="WARNING",
)
requests = app.topic(REQUESTS, value_deserializer="json")
replies = app.topic(REPLIES, value_serializer="json")
app.dataframe(requests).apply(answer).to_topic(replies)

if __name__ == "__main__":
    app.run()
