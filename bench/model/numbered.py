"""Answers every prompt with its first 8 bytes, which the prompts of this benchmark number."""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model. Triton calls one method at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._latency_s = float(parameters["latency_ms"]["string_value"]) / 1000

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        if self._latency_s:
            time.sleep(self._latency_s)
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        prompts = pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy()
        answers = [[b"answer to " + prompt[:8]] for prompt in prompts[:, 0].tolist()]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("response", np.array(answers, dtype=np.object_)),
                pb_utils.Tensor("tokens_used", np.full((len(answers), 1), 12, dtype=np.int32)),
            ]
        )
