"""Triton's own count of what a model did."""

from typing import NamedTuple

import orjson

from stack.loopback import http_get


class Counts(NamedTuple):
    """Since the server started."""

    prompts: int
    executions: int


def counts(port: int, model: str) -> Counts:
    """Raises RuntimeError when Triton does not answer."""
    answer = http_get(port, f"/v2/models/{model}/stats")
    if answer is None or answer.status != 200:
        raise RuntimeError(f"Triton does not tell its statistics of {model}.")
    (stats,) = orjson.loads(answer.body)["model_stats"]
    return Counts(int(stats["inference_count"]), int(stats["execution_count"]))
