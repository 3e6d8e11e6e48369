"""Tensors of a request → prompts, answers → tensors of its response. The names here are those of config.pbtxt."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpt4_nano.engines.interface import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Answer,
    Prompt,
    Refused,
    problem_of,
)

# One column: shape [rows, 1]. The element type differs between tensors and numpy cannot say "object or int32".
Column = npt.NDArray[Any]


class InputTensor(Protocol):
    """The part of pb_utils.Tensor that is used for inputs."""

    def name(self) -> str: ...
    def as_numpy(self) -> Column: ...


class InputRequest(Protocol):
    """The part of pb_utils.InferenceRequest that is used."""

    def inputs(self) -> Sequence[InputTensor]: ...


def read_prompts(request: InputRequest) -> list[Prompt] | Refused:
    """One Prompt per row. Triton has checked names, datatypes and shapes against config.pbtxt; values are checked here.

    Triton has one status for a whole request, so one unusable row refuses all its rows.
    """
    columns = {tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}
    try:
        texts = [str(text, "utf-8") for text in columns["prompt"]]
    except UnicodeDecodeError as error:
        return Refused(f"prompt is not UTF-8: byte {error.start} cannot be decoded")
    rows = len(texts)
    prompts = [
        Prompt(text, max_tokens, temperature, top_p)
        for text, max_tokens, temperature, top_p in zip(
            texts,
            columns.get("max_tokens") or [DEFAULT_MAX_TOKENS] * rows,
            columns.get("temperature") or [DEFAULT_TEMPERATURE] * rows,
            columns.get("top_p") or [DEFAULT_TOP_P] * rows,
            strict=True,
        )
    ]
    for prompt in prompts:
        problem = problem_of(prompt)
        if problem:
            return Refused(problem)
    return prompts


def write_columns(answers: Sequence[Answer]) -> dict[str, Column]:
    """The output tensors of one response by name, each [rows, 1], rows in the order of the prompts."""
    prompt_tokens = _integers([answer.prompt_tokens for answer in answers])
    completion_tokens = _integers([answer.completion_tokens for answer in answers])
    return {
        "response": byte_column([answer.text.encode() for answer in answers]),
        "tokens_used": prompt_tokens + completion_tokens,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "finish_reason": byte_column([answer.finish_reason.encode() for answer in answers]),
    }


def byte_column(rows: Sequence[bytes]) -> Column:
    """dtype object: numpy's own bytes type drops trailing NULs."""
    column = np.empty((len(rows), 1), dtype=np.object_)
    column[:, 0] = rows
    return column


def _integers(rows: Sequence[int]) -> Column:
    return np.array(rows, dtype=np.int32).reshape(-1, 1)
