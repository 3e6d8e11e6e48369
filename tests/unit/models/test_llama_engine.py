import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from gpt4_nano.engines.interface import Answer, EngineUnavailable, Prompt, Refused
from gpt4_nano.engines.llama_cpp import SYSTEM_MESSAGE, LlamaCpp, find_weights, read_completion


def completion(text: str, reason: str = "stop") -> dict[str, object]:
    return {
        "choices": [{"finish_reason": reason, "index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 7, "total_tokens": 31},
        "timings": {},
    }


class Server:
    """Answers as xllamacpp does, with the prompt in upper case."""

    def __init__(self, meet: int = 1) -> None:
        self.bodies: list[Mapping[str, object]] = []
        self._barrier = threading.Barrier(meet)

    def handle_chat_completions(self, body: Mapping[str, object]) -> dict[str, object]:
        self.bodies.append(body)
        self._barrier.wait(timeout=10)
        match body["messages"]:
            case [{"role": "system"}, {"role": "user", "content": "long"}]:
                return {
                    "error": {
                        "code": 400,
                        "message": "request (3021 tokens) exceeds the available context size (2048 tokens)",
                        "type": "exceed_context_size_error",
                        "n_prompt_tokens": 3021,
                        "n_ctx": 2048,
                    }
                }
            case [{"role": "system"}, {"role": "user", "content": "broken"}]:
                raise RuntimeError("parse error")
            case [{"role": "system", "content": system}, {"role": "user", "content": str(text)}]:
                assert system == SYSTEM_MESSAGE
                return completion(text.upper())
        raise AssertionError(body)


def test_the_prompts_of_a_batch_are_with_llama_cpp_at_the_same_time_and_answered_in_order() -> None:
    engine = LlamaCpp(Server(meet=4), slots=4)
    outcomes = engine.answer([Prompt(text) for text in "abcd"])
    engine.close()
    assert outcomes == [Answer(text, 24, 7, "stop") for text in "ABCD"]


def test_a_prompt_that_cannot_be_answered_is_refused_alone() -> None:
    engine = LlamaCpp(Server(), slots=2)
    outcomes = engine.answer([Prompt("a"), Prompt("long"), Prompt("broken"), Prompt("b")])
    engine.close()
    assert outcomes[0] == Answer("A", 24, 7, "stop")
    assert outcomes[1] == Refused(
        "the prompt takes 3021 tokens, chat template included; the context holds 2048"
    )
    assert outcomes[2] == Refused("llama.cpp could not answer: parse error")
    assert outcomes[3] == Answer("B", 24, 7, "stop")


def test_sampling_and_length_are_passed_on() -> None:
    server = Server()
    LlamaCpp(server, slots=1).answer([Prompt("a", max_tokens=9, temperature=0.5, top_p=0.25)])
    (body,) = server.bodies
    assert {name: body[name] for name in body if name != "messages"} == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
    }


def test_after_close_prompts_are_refused() -> None:
    engine = LlamaCpp(Server(), slots=1)
    engine.close()
    assert engine.answer([Prompt("a")]) == [Refused("the model is shutting down")]


def test_a_cut_answer_says_so() -> None:
    assert read_completion(completion("x", "length")) == Answer("x", 24, 7, "length")


@pytest.mark.parametrize(
    "result", [None, {}, {"choices": []}, {"choices": [{}], "usage": {}}, {"error": "text"}]
)
def test_a_completion_of_another_form_is_not_taken_for_an_answer(result: object) -> None:
    with pytest.raises(ValueError, match="another form"):
        read_completion(result)


def test_weights_that_are_missing_or_something_else_are_named(tmp_path: Path) -> None:
    other = tmp_path / "weights.gguf"
    other.write_text("<html>not found</html>")
    with pytest.raises(EngineUnavailable, match="is not a GGUF file"):
        find_weights(str(other))
    with pytest.raises(EngineUnavailable, match=r"nowhere\.gguf cannot be read: No such file"):
        find_weights(str(tmp_path / "nowhere.gguf"))
    other.write_bytes(b"GGUF\3\0\0\0")
    assert find_weights(str(other)) == other
