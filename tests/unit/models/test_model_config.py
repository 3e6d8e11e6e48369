"""config.pbtxt is what callers see; model.py must do what it says."""

from gpt4_nano.engines import ENGINES
from gpt4_nano.engines.interface import Answer
from gpt4_nano.tensors import write_columns

from tests.unit.models import pbtxt

INPUTS = {
    "prompt": "TYPE_STRING",
    "max_tokens": "TYPE_INT32",
    "temperature": "TYPE_FP32",
    "top_p": "TYPE_FP32",
}
OUTPUTS = {
    "response": "TYPE_STRING",
    "tokens_used": "TYPE_INT32",
    "prompt_tokens": "TYPE_INT32",
    "completion_tokens": "TYPE_INT32",
    "finish_reason": "TYPE_STRING",
}


def tensors(config: dict[str, list[pbtxt.Value]], kind: str) -> list[dict[str, list[pbtxt.Value]]]:
    found = [tensor for tensor in config[kind] if isinstance(tensor, dict)]
    assert all(tensor["dims"] == [1] for tensor in found)
    return found


def datatypes(found: list[dict[str, list[pbtxt.Value]]]) -> dict[object, object]:
    return {tensor["name"][0]: tensor["data_type"][0] for tensor in found}


def test_the_tensors_are_the_contract(config_text: str) -> None:
    config = pbtxt.read(config_text)
    assert datatypes(tensors(config, "input")) == INPUTS
    assert datatypes(tensors(config, "output")) == OUTPUTS
    required = [tensor["name"][0] for tensor in tensors(config, "input") if tensor.get("optional") != [True]]
    assert required == ["prompt"]


def test_the_model_writes_exactly_the_outputs_of_the_config_in_their_datatypes() -> None:
    columns = write_columns([Answer("text", 3, 4, "stop")] * 3)
    names = {"TYPE_STRING": "object", "TYPE_INT32": "int32"}
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        name: names[datatype] for name, datatype in OUTPUTS.items()
    }
    assert {column.shape for column in columns.values()} == {(3, 1)}


def test_batching_and_instances_are_as_promised(config_text: str) -> None:
    config = pbtxt.read(config_text)
    assert config["name"] == ["gpt4_nano"]
    assert config["backend"] == ["python"]
    assert config["max_batch_size"] == [8]
    assert config["dynamic_batching"] == [
        {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": [0]}
    ]
    assert config["instance_group"] == [{"count": [2], "kind": ["KIND_CPU"]}]


def test_the_engine_it_names_exists(config_text: str) -> None:
    config = pbtxt.read(config_text)
    (engine,) = [p for p in config["parameters"] if isinstance(p, dict) and p["key"] == ["engine"]]
    (value,) = engine["value"]
    assert isinstance(value, dict)
    assert value["string_value"] == ["llama_cpp"]
    assert "llama_cpp" in ENGINES
