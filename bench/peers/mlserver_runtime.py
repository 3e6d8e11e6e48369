"""MLServer: a custom runtime that passes on to Triton, behind MLServer's Kafka endpoint and adaptive batching.

Runs in its own environment: MLServer imports it from the folder of its settings, which bench/contenders/peers.py writes.
"""

from typing import Any

import numpy as np
import tritonclient.http.aio as triton
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

OUTPUTS = [triton.InferRequestedOutput(name) for name in ("response", "tokens_used")]


class TritonModel(MLModel):
    """Batches of up to 8, gathered by MLServer."""

    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        self._client = triton.InferenceServerClient(extra["triton_url"])
        self._model = extra["triton_model"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {tensor.name: tensor for tensor in payload.inputs}
        prompts = StringCodec.decode_input(given["prompt"])
        rows = len(prompts)
        inputs = [
            made(
                "prompt", "BYTES", np.array([p.encode() for p in prompts], dtype=np.object_).reshape(rows, 1)
            ),
            made("max_tokens", "INT32", NumpyCodec.decode_input(given["max_tokens"]).reshape(rows, 1)),
            made("temperature", "FP32", np.full((rows, 1), 0.7, dtype=np.float32)),
        ]
        result = await self._client.infer(self._model, inputs, outputs=OUTPUTS)
        texts = [text.decode() for text in result.as_numpy("response")[:, 0]]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                StringCodec.encode_output("response", texts),
                NumpyCodec.encode_output("tokens_used", result.as_numpy("tokens_used")),
            ],
        )


def made(name: str, datatype: str, values: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor
