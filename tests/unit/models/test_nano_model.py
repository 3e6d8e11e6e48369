"""model.py over a recording backend; tests/integration/test_model.py runs it in the real one."""

import json
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gpt4_nano.engines import canned
from gpt4_nano.engines.canned import fingerprint
from gpt4_nano.tensors import byte_column

from tests.unit.models.fake_backend import InferenceRequest, InferenceResponse, Tensor
from tests.unit.models.letters import Letters

CONFIG = {"parameters": {"engine": {"string_value": "canned"}}, "instance_group": [{"count": 2}]}


@pytest.fixture
def instance(model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    return start(model, monkeypatch)


def start(model: ModuleType, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    monkeypatch.setattr(canned, "load_vocabulary", Letters)
    for name, value in environment.items():
        monkeypatch.setenv(f"GPT4_NANO_{name}", value)
    started = model.TritonPythonModel()
    started.initialize({"model_config": json.dumps(CONFIG)})
    return started


def request(*prompts: bytes | str, **numbers: Sequence[float]) -> InferenceRequest:
    rows = [prompt if isinstance(prompt, bytes) else prompt.encode() for prompt in prompts]
    kinds: Mapping[str, type] = {"max_tokens": np.int32, "temperature": np.float32, "top_p": np.float32}
    columns = [Tensor(name, np.array(values, kinds[name]).reshape(-1, 1)) for name, values in numbers.items()]
    return InferenceRequest([Tensor("prompt", byte_column(rows)), *columns])


def errors(responses: list[InferenceResponse]) -> list[str]:
    return [response.error.message if response.error else "" for response in responses]


def test_rows_are_answered_in_order_across_the_requests_of_a_batch(instance: Any) -> None:
    responses = instance.execute([request("a"), request("b", "c", "d"), request("e")])
    rows = [row for response in responses for row in response.column("response")]
    assert [row[1:13].decode() for row in rows] == [fingerprint(letter) for letter in "abcde"]
    assert [len(response.column("response")) for response in responses] == [1, 3, 1]


def test_counts_add_up(instance: Any) -> None:
    (response,) = instance.execute([request("abc", "de", max_tokens=[5, 1000])])
    assert response.column("prompt_tokens") == [3 + 7, 2 + 7]
    assert response.column("completion_tokens")[0] == 5
    assert response.column("finish_reason") == [b"length", b"stop"]
    for used, prompt, completion in zip(
        *(response.column(name) for name in ("tokens_used", "prompt_tokens", "completion_tokens")),
        strict=True,
    ):
        assert used == prompt + completion


def test_without_max_tokens_an_answer_has_at_most_150(instance: Any) -> None:
    (response,) = instance.execute([request("What is Kafka?")])
    assert response.column("completion_tokens") == [150]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (request(b"caf\xe9"), "prompt is not UTF-8: byte 3"),
        (request(""), "prompt must not be empty"),
        (request("a", "b", max_tokens=[1, 0]), "max_tokens must be at least 1, it is 0"),
        (request("a", temperature=[-0.5]), "temperature must be between 0 and 2, it is -0.5"),
        (request("a", temperature=[math.nan]), "temperature must be between 0 and 2"),
        (request("a", top_p=[0.0]), "top_p must be above 0"),
        (request("a", top_p=[math.inf]), "top_p must be above 0"),
    ],
)
def test_a_bad_request_fails_alone(instance: Any, bad: InferenceRequest, complaint: str) -> None:
    responses = instance.execute([request("a"), bad, request("b")])
    first, middle, last = errors(responses)
    assert complaint in middle
    assert (first, last) == ("", "")
    assert [responses[i].column("response")[0][1:13].decode() for i in (0, 2)] == [
        fingerprint("a"),
        fingerprint("b"),
    ]


@pytest.mark.parametrize("text", ["NUL \0 inside\0", "\U0001f600 漢字 e\u0301", "\ufeffmark", "x" * 100_000])
def test_any_unicode_is_answered(instance: Any, text: str) -> None:
    (response,) = instance.execute([request(text)])
    assert response.column("response")[0][1:13].decode() == fingerprint(text)


def test_the_engine_in_use_is_a_metric_even_if_the_environment_chose_it(
    model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    CONFIG_OF_LLAMA = {"parameters": {"engine": {"string_value": "llama_cpp"}}}
    monkeypatch.setattr(canned, "load_vocabulary", Letters)
    monkeypatch.setenv("GPT4_NANO_ENGINE", "canned")
    started = model.TritonPythonModel()
    started.initialize({"model_config": json.dumps(CONFIG_OF_LLAMA)})
    (metric,) = started._family.metrics
    assert (started._family.name, metric.labels, metric.value) == (
        "gpt4_nano_engine_info",
        {"engine": "canned"},
        1,
    )


def test_magic_words_are_plain_text_unless_allowed(instance: Any) -> None:
    assert errors(instance.execute([request("[[fail]] [[no-output]] [[crash]]")])) == [""]


def test_fail_costs_its_request_and_no_other(model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = start(model, monkeypatch, TEST_PROMPTS="1")
    responses = instance.execute([request("a"), request("b", "[[fail]]"), request("c")])
    assert errors(responses) == ["", "a prompt contains [[fail]]", ""]


def test_wrong_outputs_are_those_of_their_request_only(
    model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = start(model, monkeypatch, TEST_PROMPTS="1")
    no_output, few, spoilt, good = instance.execute(
        [
            request("[[no-output]]"),
            request("a", "[[wrong-rows]]"),
            request("[[huge:7]]", "[[bad-utf8]]"),
            request("a"),
        ]
    )
    assert "response" not in {tensor.name() for tensor in no_output.output_tensors}
    assert {len(tensor.as_numpy()) for tensor in few.output_tensors} == {1}
    huge, bad = spoilt.column("response")
    assert huge == b"xxxxxxx"
    with pytest.raises(UnicodeDecodeError):
        bad.decode()
    assert len(good.output_tensors) == 5


def test_latency_is_slept_once_per_batch_and_the_slowest_prompt_counts(
    model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    instance = start(model, monkeypatch, TEST_PROMPTS="1", BATCH_LATENCY_MS="150")
    instance.execute([request("[[slow:10]]"), request("a", "[[slow:40]]")])
    assert slept == [0.04, 0.15]


def test_crash_ends_the_process_without_goodbye(model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = start(model, monkeypatch, TEST_PROMPTS="1")

    def die(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", die)
    with pytest.raises(SystemExit, match="70"):
        instance.execute([request("[[crash]]")])
