"""gpt4_nano for Triton's Python backend; also a program: `python model.py "What is AI?"` answers without Triton.

Triton's stub puts this file's folder on sys.path (at its end, so no name there may be that of an installed package),
as Python does for a program, so both find the package gpt4_nano beside it. The work is done there: `tensors` reads and writes, `engines` answers, `settings` chooses.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

if __name__ != "__main__":  # It exists inside Triton only.
    import triton_python_backend_utils as pb_utils
    from gpt4_nano import fault_prompts
    from gpt4_nano.engines import open_engine
    from gpt4_nano.engines.interface import Answer, Prompt, Refused
    from gpt4_nano.settings import Settings, read_settings
    from gpt4_nano.tensors import InputRequest, read_prompts, write_columns


class TritonPythonModel:
    """One instance of the model. Triton calls one method at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raising here makes Triton refuse to load the model, with the message in its log."""
        config: dict[str, Any] = json.loads(args["model_config"])
        self._settings = settings_of(config)
        self._engine = open_engine(self._settings)
        # The environment can override config.pbtxt, and a model cannot correct its own `parameters` (auto-completion
        # drops them), so those need not name the engine that answers. This series on Triton's metrics port does.
        self._family = pb_utils.MetricFamily(
            name="gpt4_nano_engine_info",
            description="1 for the engine that answers the prompts of gpt4_nano",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._metric = self._family.Metric(labels={"engine": self._settings.engine})
        self._metric.set(1)
        pb_utils.Logger.log_info(f"gpt4_nano: engine {self._settings.engine}")

    def execute(self, requests: Sequence["InputRequest"]) -> list[Any]:
        """One response per request, in order. A request that cannot be answered gets an error, the others their answers.

        Errors are 500s, never 400s: to a client that batches, 400 says that the request as such is malformed, 500 that
        some prompt in it may be at fault, which it can find by splitting.
        """
        read = [self._read(request) for request in requests]
        prompts = [prompt for rows in read if isinstance(rows, list) for prompt in rows]
        if self._settings.test_prompts:
            fault_prompts.misbehave_before(prompts)
        if self._settings.batch_latency_ms:
            time.sleep(self._settings.batch_latency_ms / 1000)
        outcomes = iter(self._engine.answer(prompts))
        return [
            self._respond(rows, list(islice(outcomes, len(rows)))) if isinstance(rows, list) else error(rows)
            for rows in read
        ]

    def finalize(self) -> None:
        self._engine.close()

    def _read(self, request: "InputRequest") -> "list[Prompt] | Refused":
        rows = read_prompts(request)
        if self._settings.test_prompts and isinstance(rows, list):
            failure = fault_prompts.failure_of(rows)
            return Refused(failure) if failure else rows
        return rows

    def _respond(self, prompts: "list[Prompt]", outcomes: "list[Answer | Refused]") -> Any:
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        if len(answers) < len(prompts):
            return error(next(outcome for outcome in outcomes if isinstance(outcome, Refused)))
        columns = write_columns(answers)
        if self._settings.test_prompts:
            columns = fault_prompts.spoil(prompts, columns)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, column) for name, column in columns.items()])


def error(refused: "Refused") -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(refused.reason))


def settings_of(config: dict[str, Any]) -> "Settings":
    """`config` is config.pbtxt as JSON, the way Triton hands it to models."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    instances = sum(group.get("count", 1) for group in config.get("instance_group", []))
    return read_settings(os.environ, parameters, instances)


if __name__ == "__main__":
    from gpt4_nano.command import main

    sys.exit(main(sys.argv[1:]))
