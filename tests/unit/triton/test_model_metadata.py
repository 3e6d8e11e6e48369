"""Which models can answer prompts, and what is said of those that cannot."""

import copy
from typing import Any

import pytest

from promptbus_worker.model import ModelStatistics
from promptbus_worker.model_metadata import describe, sum_up
from promptbus_worker.outcomes import ModelUnusable
from tests.unit.triton.scripted_triton import CONFIG, METADATA

# JSON as it comes from the server, to be spoilt in many ways: hence Any.
Json = dict[str, Any]


@pytest.fixture
def metadata() -> Json:
    return copy.deepcopy(METADATA)


@pytest.fixture
def config() -> Json:
    return copy.deepcopy(CONFIG)


def refusal(metadata: Any, config: Any) -> str:
    with pytest.raises(ModelUnusable) as caught:
        describe(metadata, config, version="")
    return caught.value.sentence


def version_statistics(calls: int, ns: int) -> Json:
    shares = {"queue": 1, "compute_input": 10, "compute_infer": 100, "compute_output": 1000, "success": 1111}
    counted = {part: {"count": calls, "ns": share * ns} for part, share in shares.items()}
    return {"inference_stats": counted}


def test_the_statistics_of_all_versions_are_added_up() -> None:
    statistics: Any = {"model_stats": [version_statistics(2, 1), version_statistics(3, 2)]}
    assert sum_up(statistics) == ModelStatistics(calls=5, queue_ns=3, compute_ns=3330)
    assert sum_up({"model_stats": []}) == ModelStatistics(0, 0, 0)


@pytest.mark.parametrize("statistics", [{}, [], None, {"model_stats": [{}]}, {"model_stats": 3}, "text"])
def test_statistics_that_are_none_are_said_to_be_so(statistics: Any) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        sum_up(statistics)


def without(tensors: list[Json], name: str) -> list[Json]:
    return [tensor for tensor in tensors if tensor["name"] != name]


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        ("inputs", "prompt", "an input `prompt` (TYPE_STRING"),
        ("outputs", "response", "an output `response` (TYPE_STRING"),
        ("outputs", "tokens_used", "an output `tokens_used` (TYPE_INT32"),
    ],
)
def test_a_missing_tensor_is_named(metadata: Json, config: Json, kind: str, name: str, wanted: str) -> None:
    metadata[kind] = without(metadata[kind], name)
    assert wanted in refusal(metadata, config)


def test_everything_missing_is_named_at_once(metadata: Json, config: Json) -> None:
    metadata["outputs"] = []
    said = refusal(metadata, config)
    assert "`response`" in said
    assert "`tokens_used`" in said


@pytest.mark.parametrize(
    "change", [{"datatype": "INT32"}, {"shape": [-1, 2]}, {"shape": [-1, 1, 1]}, {"shape": [-1]}]
)
def test_a_prompt_of_another_type_or_shape_is_no_prompt(metadata: Json, config: Json, change: Json) -> None:
    metadata["inputs"][0].update(change)
    assert "an input `prompt`" in refusal(metadata, config)


def test_a_prompt_of_any_length_is_taken_as_one(metadata: Any, config: Any) -> None:
    metadata["inputs"][0]["shape"] = [-1, -1]
    assert "prompt" in describe(metadata, config, version="").inputs


def test_optional_outputs_may_be_missing(metadata: Any, config: Any) -> None:
    metadata["outputs"] = [
        tensor for tensor in metadata["outputs"] if tensor["name"] in ("response", "tokens_used")
    ]
    assert set(describe(metadata, config, version="").outputs) == {"response", "tokens_used"}


def test_a_required_input_that_no_request_can_fill_is_named(metadata: Json, config: Json) -> None:
    metadata["inputs"].append({"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]})
    assert "`image`" in refusal(metadata, config)


def test_an_optional_input_that_no_request_can_fill_is_left_out(metadata: Any, config: Any) -> None:
    metadata["inputs"].append({"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]})
    config["input"].append({"name": "image", "optional": True})
    assert "image" not in describe(metadata, config, version="").inputs


def test_a_required_input_of_one_value_is_kept_as_required(metadata: Any, config: Any) -> None:
    metadata["inputs"].append({"name": "user", "datatype": "BYTES", "shape": [-1, 1]})
    assert not describe(metadata, config, version="").inputs["user"].optional


def test_a_decoupled_model_is_refused(metadata: Json, config: Json) -> None:
    config["model_transaction_policy"] = {"decoupled": True}
    assert "decoupled" in refusal(metadata, config)


def test_a_model_without_batches_is_refused(metadata: Json, config: Json) -> None:
    config["max_batch_size"] = 0
    assert "max_batch_size" in refusal(metadata, config)


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ([], 1),
        ([{"count": 2}], 2),
        ([{"count": 2}, {"count": 3, "gpus": []}], 5),
        ([{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1, 2]}], 6),
        ([{}], 1),
    ],
)
def test_instances_are_counted_over_groups_and_devices(
    metadata: Any, config: Any, groups: list[Json], instances: int
) -> None:
    config["instance_group"] = groups
    assert describe(metadata, config, version="").instances == instances


@pytest.mark.parametrize("garbage", [{}, [], None, "hello", {"name": "m", "inputs": 3}, {"inputs": [{}]}])
def test_metadata_that_is_none_is_said_to_be_unreadable(config: Json, garbage: Any) -> None:
    assert "cannot be read" in refusal(garbage, config)


@pytest.mark.parametrize(
    "garbage",
    [[], None, "hello", {"max_batch_size": "many"}, {"max_batch_size": 8, "input": [{"optional": True}]}],
)
def test_a_configuration_that_is_none_is_said_to_be_unreadable(metadata: Json, garbage: Any) -> None:
    assert "cannot be read" in refusal(metadata, garbage)
