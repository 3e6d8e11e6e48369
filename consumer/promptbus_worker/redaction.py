"""Prompts in texts that others wrote: an inference server's error may quote the prompt that it failed on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

QUOTED_CHARS = 12
"""So many characters in a row that are also in the prompt are a quotation."""
PROMPT_CHARS = 200
"""Of a prompt, where it is asked for."""
_PLACEHOLDER = "(prompt)"


class ServerText:
    """A text that may quote some prompts. Nothing is done to it before somebody reads it."""

    __slots__ = ("_prompts", "text")

    def __init__(self, text: str, prompts: Sequence[object]) -> None:
        """`prompts`: as they were sent, bytes or str; anything else is ignored."""
        self.text = text
        self._prompts = prompts

    def __str__(self) -> str:
        """Without the prompts."""
        return without(self.text, [text for text in map(prompt_text, self._prompts) if text])


def prompt_text(prompt: object) -> str:
    """A prompt as text; empty if it is none."""
    if isinstance(prompt, bytes):
        return prompt.decode("utf-8", "replace")
    return prompt if isinstance(prompt, str) else ""


def without(text: str, prompts: Sequence[str]) -> str:
    """`text` with every quotation replaced: a whole prompt, or QUOTED_CHARS or more in a row of one."""
    quoted = bytearray(len(text))
    for prompt in prompts:
        length = min(QUOTED_CHARS, len(prompt))
        for start in range(len(text) - length + 1):
            if text[start : start + length] in prompt:
                quoted[start : start + length] = b"\1" * length
    pieces = []
    for index, character in enumerate(text):
        if not quoted[index]:
            pieces.append(character)
        elif index == 0 or not quoted[index - 1]:
            pieces.append(_PLACEHOLDER)
    return "".join(pieces)
