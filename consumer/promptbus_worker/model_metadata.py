"""What Triton says of a model, read: its two descriptions (`GET v2/models/M` and `GET v2/models/M/config`) into a ModelSpec,
its statistics (`GET v2/models/M/stats`) into ModelStatistics. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NotRequired, TypedDict

from promptbus_worker.model import ModelSpec, ModelStatistics, TensorSpec
from promptbus_worker.outcomes import ModelUnusable

INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
STRINGS = frozenset({"BYTES"})
USABLE = INTEGERS | STRINGS | {"BOOL", "FP16", "FP32", "FP64"}
"""Datatypes that one value of a request can be written to."""

_COMPUTE: Final = ("compute_input", "compute_infer", "compute_output")

PROMPT = "prompt"
RESPONSE = "response"
TOTAL_TOKENS = "tokens_used"
PROMPT_TOKENS = "prompt_tokens"
COMPLETION_TOKENS = "completion_tokens"
FINISH_REASON = "finish_reason"


class Duration(TypedDict):
    """How often something was measured, and how long it took together."""

    count: int
    ns: int


class InferenceStatistics(TypedDict):
    """`inference_stats` of one version in `GET v2/models/M/stats`; a duration of each call that ran."""

    success: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class VersionStatistics(TypedDict):
    """One version in `GET v2/models/M/stats`."""

    inference_stats: InferenceStatistics


class Statistics(TypedDict):
    """`GET v2/models/M/stats`, Triton's statistics extension."""

    model_stats: Sequence[VersionStatistics]


class TensorMetadata(TypedDict):
    """A tensor in `GET v2/models/M`; for a model with batches, the shape begins with the batch's dimension, -1."""

    name: str
    datatype: str
    shape: Sequence[int]


class ModelMetadata(TypedDict):
    """`GET v2/models/M`."""

    name: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


class InputConfig(TypedDict):
    """An input in `GET v2/models/M/config`."""

    name: str
    optional: NotRequired[bool]


class InstanceGroup(TypedDict, total=False):
    """An instance group in `GET v2/models/M/config`; `count` is per GPU where there are GPUs."""

    count: int
    gpus: Sequence[int]


class TransactionPolicy(TypedDict, total=False):
    """`model_transaction_policy` in `GET v2/models/M/config`."""

    decoupled: bool


class ModelConfig(TypedDict, total=False):
    """`GET v2/models/M/config`."""

    max_batch_size: int
    input: Sequence[InputConfig]
    instance_group: Sequence[InstanceGroup]
    model_transaction_policy: TransactionPolicy


def describe(metadata: ModelMetadata, config: ModelConfig, *, version: str) -> ModelSpec:
    """The model as Triton's two descriptions give it, with the tensors of one value per request.

    `version` is the one to ask for in calls; empty: the latest, whichever that is when a call arrives.
    Raises ModelUnusable, which names everything that is missing, if prompts cannot be sent to it.
    """
    try:
        return _describe(metadata, config, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelUnusable(
            f"Triton's description of the model cannot be read ({type(error).__name__}: {error}). "
            "Is TRITON_URL the HTTP port of a Triton server?"
        ) from error


def sum_up(statistics: Statistics) -> ModelStatistics:
    """All versions that it tells of, together. Raises ValueError if it cannot be read."""
    try:
        versions = [version["inference_stats"] for version in statistics["model_stats"]]
        return ModelStatistics(
            calls=sum(int(version["success"]["count"]) for version in versions),
            queue_ns=sum(int(version["queue"]["ns"]) for version in versions),
            compute_ns=sum(int(version[part]["ns"]) for version in versions for part in _COMPUTE),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the statistics cannot be read ({type(error).__name__}: {error})") from error


def _describe(metadata: ModelMetadata, config: ModelConfig, version: str) -> ModelSpec:
    name = metadata["name"]
    if config.get("model_transaction_policy", {}).get("decoupled", False):
        raise ModelUnusable(
            f"Model {name} is decoupled (it streams its answers), which is not supported yet. Serve it with "
            "`model_transaction_policy { decoupled: false }`."
        )
    max_batch_size = int(config.get("max_batch_size", 0))
    if max_batch_size < 1:
        raise ModelUnusable(
            f"Model {name} takes no batches. Set `max_batch_size` to 1 or more in its config.pbtxt."
        )
    optional = {tensor["name"] for tensor in config.get("input", ()) if tensor.get("optional", False)}
    inputs = {
        tensor["name"]: TensorSpec(tensor["name"], tensor["datatype"], tensor["name"] in optional)
        for tensor in metadata["inputs"]
        if _holds_one_value(tensor)
    }
    outputs = {
        tensor["name"]: TensorSpec(tensor["name"], tensor["datatype"], optional=False)
        for tensor in metadata["outputs"]
        if _holds_one_value(tensor)
    }
    wants = [
        *_missing("input", inputs, PROMPT, STRINGS),
        *_missing("output", outputs, RESPONSE, STRINGS),
        *_missing("output", outputs, TOTAL_TOKENS, INTEGERS),
    ]
    wants += [
        f"its input `{tensor['name']}` ({tensor['datatype']} {list(tensor['shape'])}) made optional, since a "
        "request has no value for it"
        for tensor in metadata["inputs"]
        if tensor["name"] not in optional | {PROMPT} and tensor["name"] not in inputs
    ]
    if wants:
        raise ModelUnusable(f"Model {name} cannot answer prompts. It needs {'; '.join(wants)}.")
    return ModelSpec(name, version, inputs, outputs, max_batch_size, _instances(config))


def _holds_one_value(tensor: TensorMetadata) -> bool:
    shape = list(tensor["shape"])
    return len(shape) == 2 and shape[1] in (1, -1) and tensor["datatype"] in USABLE


def _missing(
    kind: str, tensors: Mapping[str, TensorSpec], name: str, datatypes: Collection[str]
) -> list[str]:
    if name in tensors and tensors[name].datatype in datatypes:
        return []
    wanted = "TYPE_STRING" if "BYTES" in datatypes else "TYPE_INT32"
    return [f"an {kind} `{name}` ({wanted}, dims [ 1 ])"]


def _instances(config: ModelConfig) -> int:
    groups = config.get("instance_group", ())
    return max(1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus") or ())) for group in groups))
