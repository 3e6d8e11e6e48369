"""What an engine is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

DEFAULT_MAX_TOKENS = 150
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 1.0


class Prompt(NamedTuple):
    """One row of a request; already checked, see `tensors.read_prompts`."""

    text: str
    max_tokens: int = DEFAULT_MAX_TOKENS  # at least 1
    temperature: float = DEFAULT_TEMPERATURE  # 0 (always the likeliest token) to 2
    top_p: float = DEFAULT_TOP_P  # above 0, at most 1


def problem_of(prompt: Prompt) -> str:
    """What is wrong with the values, as a sentence; empty if nothing is."""
    if not prompt.text:
        return "prompt must not be empty"
    if prompt.max_tokens < 1:
        return f"max_tokens must be at least 1, it is {prompt.max_tokens}"
    # Written so that NaN fails too.
    if not 0 <= prompt.temperature <= 2:
        return f"temperature must be between 0 and 2, it is {prompt.temperature:g}"
    if not 0 < prompt.top_p <= 1:
        return f"top_p must be above 0 and at most 1, it is {prompt.top_p:g}"
    return ""


class Answer(NamedTuple):
    """`prompt_tokens` includes what the engine's chat template adds around the prompt."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str  # "stop": the answer is complete; "length": max_tokens or the context cut it


@dataclass(frozen=True, slots=True)
class Refused:
    """Why this one prompt has no answer: a sentence for the person who sent it."""

    reason: str


class EngineUnavailable(Exception):
    """The engine cannot start: a package or file is missing. The message says which, and how to get it."""


class Engine(Protocol):
    """Turns prompts into answers. One per model instance; `answer` is called by one thread at a time."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | Refused]:
        """One outcome per prompt, in order. A prompt that cannot be answered is Refused; its neighbours are answered."""
        ...

    def close(self) -> None:
        """Frees what the engine holds. Called once, after the last answer."""
        ...
