"""A batch's values as tritonclient's tensors, and its answer's outputs as one row per request.

numpy is touched once per tensor, never once per row. BYTES go binary in both directions: in
JSON, one row that is not UTF-8 spoils the whole answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike
from tritonclient.http.aio import InferInput, InferRequestedOutput, InferResult

from promptbus_worker.answer_rows import OUTPUTS, UnreadableOutput, rows_of
from promptbus_worker.model import BadRow, Inputs, ModelSpec, Row

_DTYPES: Mapping[str, DTypeLike] = {
    # object, because numpy's own bytes type drops trailing NULs
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def requested_outputs(spec: ModelSpec) -> list[InferRequestedOutput]:
    """The outputs to ask for: those we read, as far as the model has them. Can be used for every call."""
    return [InferRequestedOutput(name, binary_data=True) for name in OUTPUTS if name in spec.outputs]


def encode(spec: ModelSpec, batch: Sequence[Inputs]) -> list[InferInput]:
    """One tensor per input, of shape [n, 1]: Triton refuses [n] for a model with batches.

    Raises KeyError for an input that the model does not have, or that not all requests of the batch have;
    ValueError, TypeError or OverflowError for a value that its datatype does not take.
    """
    size = len(batch)
    shape = [size, 1]
    tensors = []
    for name in batch[0]:
        datatype = spec.inputs[name].datatype
        values = np.array([inputs[name] for inputs in batch], dtype=_DTYPES[datatype]).reshape(shape)
        tensor = InferInput(name, shape, datatype)
        tensor.set_data_from_numpy(values, binary_data=True)
        tensors.append(tensor)
    return tensors


def decode(result: InferResult, size: int) -> tuple[str, list[Row | BadRow]]:
    """The model version that answered, and one row per request, in the order of the batch.

    Row order is the only link between a prompt and its answer, so an output of any other length makes the whole
    answer unreadable. Raises UnreadableOutput for that, and ValueError, KeyError or struct.error for lengths and
    shapes that do not fit the bytes.
    """
    envelope = result.get_response()
    columns = {name: _column(result, name, size) for name in OUTPUTS}
    return str(envelope.get("model_version", "")), rows_of(columns, size, envelope)


def _column(result: InferResult, name: str, size: int) -> list[object] | None:
    array = result.as_numpy(name)
    if array is None:
        return None
    if array.shape[:1] != (size,) or array.size != size:
        raise UnreadableOutput(f"output {name} has shape {list(array.shape)} for {size} requests")
    values: list[object] = array.reshape(-1).tolist()
    return values
