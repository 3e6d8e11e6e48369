"""Prompts that make the model misbehave, for tests of its callers. Only with GPT4_NANO_TEST_PROMPTS=1.

[[fail]]        the request of this prompt, with all its rows, is answered 500
[[slow:MS]]     its batch takes MS milliseconds longer (the longest of a batch counts)
[[crash]]       the process of this model instance dies at once
[[bad-utf8]]    its row of `response` is not UTF-8
[[no-output]]   its response lacks the tensor `response`
[[wrong-rows]]  its response has one row less than the request
[[huge:BYTES]]  its row of `response` is that many bytes long, at most 256 MiB
"""

import os
import re
import time
from collections.abc import Sequence

from gpt4_nano.engines.interface import Prompt
from gpt4_nano.tensors import Column, byte_column

_WORD = re.compile(r"\[\[(fail|crash|bad-utf8|no-output|wrong-rows|slow:\d{1,6}|huge:\d{1,9})\]\]")
_HUGE_LIMIT_BYTES = 256 * 1024 * 1024
CRASH_EXIT_CODE = 70


def magic_words(prompt: Prompt) -> list[str]:
    return _WORD.findall(prompt.text) if "[[" in prompt.text else []


def misbehave_before(prompts: Sequence[Prompt]) -> None:
    """Obey [[crash]] and [[slow:MS]] for a whole batch."""
    words = [word for prompt in prompts for word in magic_words(prompt)]
    if "crash" in words:
        # As a segmentation fault would: no exception, no finalize.
        os._exit(CRASH_EXIT_CODE)
    slow = [int(word.removeprefix("slow:")) for word in words if word.startswith("slow:")]
    if slow:
        time.sleep(max(slow) / 1000)


def failure_of(prompts: Sequence[Prompt]) -> str:
    """Obey [[fail]]: the reason for which the request of these prompts fails; empty if it does not."""
    failing = any("fail" in magic_words(prompt) for prompt in prompts)
    return "a prompt contains [[fail]]" if failing else ""


def spoil(prompts: Sequence[Prompt], columns: dict[str, Column]) -> dict[str, Column]:
    """Obey the words about outputs in the response of one request."""
    response = [bytes(row) for row in columns["response"][:, 0]]
    words_of_request: set[str] = set()
    for row, prompt in enumerate(prompts):
        for word in magic_words(prompt):
            words_of_request.add(word)
            if word == "bad-utf8":
                response[row] = b"not UTF-8: \xff\xfe\xc3("
            elif word.startswith("huge:"):
                size = min(int(word.removeprefix("huge:")), _HUGE_LIMIT_BYTES)
                response[row] = b"x" * size
    spoilt = {**columns, "response": byte_column(response)}
    if "wrong-rows" in words_of_request:
        spoilt = {name: column[:-1] for name, column in spoilt.items()}
    if "no-output" in words_of_request:
        del spoilt["response"]
    return spoilt
