"""What `python -m bench.capacity` writes into its document, and what it refuses."""

from __future__ import annotations

import pytest

from bench import capacity


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    old = f"before\n{capacity.BEGIN}old\n{capacity.END}after\n"
    new = capacity.written(old, ["facts\n", "table\n"])
    assert new == f"before\n{capacity.BEGIN}facts\n\ntable\n{capacity.END}after\n"
    assert capacity.written(new, ["facts\n", "table\n"]) == new


def test_the_document_has_the_marks() -> None:
    text = capacity.DOCUMENT.read_text()
    assert text.count(capacity.BEGIN) == text.count(capacity.END) == 1
    for title, _ in capacity.TABLES.values():
        assert f"**{title}**" in text


def test_a_table_that_is_none_and_a_part_of_the_tables_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in (
        (["--only", "nothing"], "nothing"),
        (["--only", "servers", "--write"], "--write"),
    ):
        with pytest.raises(SystemExit) as ended:
            capacity.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
