"""No prompt in a server's text, whole or in part, and the rest of the text stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbus_worker.redaction import QUOTED_CHARS, ServerText, without


@pytest.mark.parametrize(
    ("text", "prompts", "left"),
    [
        ("cannot tokenize 'my password is 1234'", ["my password is 1234"], "cannot tokenize '(prompt)'"),
        ("cannot tokenize 'my password is'...", ["my password is 1234"], "cannot tokenize '(prompt)'..."),
        ("bad: hi", ["hi"], "bad: (prompt)"),
        (
            "first line of it / second line of it",
            ["first line of it\nsecond line of it"],
            "(prompt) / (prompt)",
        ),
        ("one two three four five", ["two three four", "three four five"], "one (prompt)"),
        ("out of memory", ["What is Kafka?"], "out of memory"),
        ("out of memory", [], "out of memory"),
        ("", ["x"], ""),
    ],
)
def test_quotations_are_taken_out(text: str, prompts: list[str], left: str) -> None:
    assert without(text, prompts) == left


@given(st.text(max_size=40), st.text(min_size=QUOTED_CHARS, max_size=60), st.text(max_size=40))
def test_no_part_of_a_prompt_is_left(before: str, prompt: str, after: str) -> None:
    left = without(before + prompt + after, [prompt]).replace("(prompt)", "")
    parts = (prompt[start : start + QUOTED_CHARS] for start in range(len(prompt) - QUOTED_CHARS + 1))
    assert len(left) <= len(before + after)
    assert prompt not in left or prompt in (before + after)
    assert all(part not in left or part in (before + after) for part in parts)


def test_prompts_come_as_they_were_sent() -> None:
    text = ServerText("bad: grüße an alle", ["grüße an alle".encode(), None, 3])
    assert str(text) == "bad: (prompt)"
    assert text.text == "bad: grüße an alle"
