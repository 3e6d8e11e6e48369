"""config/topics.conf, as `make up` reads it."""

from __future__ import annotations

import pytest

from stack.errors import StackError
from stack.topics import NewTopicSettings, parse_topics


def test_a_line_is_a_name_a_number_and_configuration() -> None:
    text = "# comment\n\na  6  max.message.bytes=10  retention.ms=5\n  b 1\n"
    assert parse_topics(text) == {
        "a": NewTopicSettings(6, {"max.message.bytes": "10", "retention.ms": "5"}),
        "b": NewTopicSettings(1),
    }


@pytest.mark.parametrize("line", ["a", "a many", "a 1 max.message.bytes", "a 1 =5", "a 1 retention.ms="])
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(StackError, match=r"config/topics\.conf, line 2: "):
        parse_topics(f"# first\n{line}\n")
