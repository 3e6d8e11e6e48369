"""What model.py uses of triton_python_backend_utils, which exists only inside Triton.

`tests/integration/test_model.py` runs the same model under the real one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Column = npt.NDArray[Any]


def environment() -> dict[str, str]:
    return dict(os.environ)


class Tensor:
    def __init__(self, name: str, values: Column) -> None:
        self._name = name
        self._values = values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Column:
        return self._values


@dataclass
class InferenceRequest:
    tensors: Sequence[Tensor]

    def inputs(self) -> Sequence[Tensor]:
        return self.tensors


@dataclass
class TritonError:
    message: str


@dataclass
class InferenceResponse:
    output_tensors: Sequence[Tensor]
    error: TritonError | None = None

    def column(self, name: str) -> list[Any]:
        (tensor,) = [tensor for tensor in self.output_tensors if tensor.name() == name]
        values = tensor.as_numpy()
        assert values.shape == (len(values), 1)
        column: list[Any] = values[:, 0].tolist()
        return column


@dataclass
class Metric:
    labels: dict[str, str]
    value: float = 0

    def set(self, value: float) -> None:
        self.value = value


@dataclass
class MetricFamily:
    name: str
    description: str
    kind: int
    metrics: list[Metric] = field(default_factory=list)

    GAUGE = 1

    def Metric(self, labels: dict[str, str]) -> Metric:
        self.metrics.append(Metric(labels))
        return self.metrics[-1]


class Logger:
    @staticmethod
    def log_info(message: str) -> None:
        pass
