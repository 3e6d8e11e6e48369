"""What a Triton model takes and gives, in plain types: the seam between the worker and the transport. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

TensorValue = bytes | int | float | bool
Inputs = Mapping[str, TensorValue]
"""One request's inputs by tensor name. BYTES tensors hold bytes."""

CALL_TRACEPARENT: ContextVar[bytes | None] = ContextVar("call_traceparent", default=None)
"""The trace context of the call that the current task makes, for Triton to go on with (`tracing`)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, of shape [1] per request."""

    name: str
    datatype: str
    optional: bool


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's metadata and configuration, as Triton told them.

    `max_batch_size` is at least 1; `instances` counts the copies that run at the same time.
    """

    name: str
    version: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch_size: int
    instances: int


class Row(NamedTuple):
    """One request's answer. Counts and reason are None if the model has no such output."""

    response: str
    total_tokens: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None


class BadRow(NamedTuple):
    """One request's answer, unusable; the other rows of the call are not affected."""

    reason: str


class ModelStatistics(NamedTuple):
    """What a server has done for a model since it was loaded. Of calls that ran, whoever made them and whatever came of them."""

    calls: int
    queue_ns: int
    compute_ns: int


_CANARY: Inputs = {"prompt": b"ping", "max_tokens": 1, "temperature": 0.0}


def canary(spec: ModelSpec) -> Inputs:
    """The inputs of a request of our own, to see whether a model answers at all."""
    return {name: value for name, value in _CANARY.items() if name in spec.inputs}


class InferenceClient(Protocol):
    """Whatever can run a batch. Every failure is a `CallError` of `outcomes`; cancellation passes through."""

    async def read_spec(self, model: str, version: str | None = None) -> ModelSpec:
        """Ask for metadata and configuration. Raises CallError."""
        ...

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        """Run one call: the model version that answered, and one row per input, in order. Raises CallError."""
        ...

    async def statistics(self, model: str, version: str | None = None) -> Mapping[str, ModelStatistics]:
        """By server. Raises CallError if none tells."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...
