"""model.py as a program. That it answers is tested in tests/integration/test_model.py, where packages are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.models.conftest import MODEL


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """With an interpreter that sees no installed packages (-S) and a cache that `make setup` has not filled."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT4_NANO_")}
    return subprocess.run(
        [sys.executable, "-S", str(MODEL / "1" / "model.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**environment, "XDG_CACHE_HOME": str(home)},
    )


def test_a_missing_package_is_named_with_the_way_to_get_it_and_the_other_engine(tmp_path: Path) -> None:
    result = run("What is AI?", home=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "python -m pip install xllamacpp" in result.stderr
    assert "--engine canned" in result.stderr
    assert "make setup" in result.stderr


def test_canned_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    result = run("What is AI?", "--engine", "canned", home=tmp_path)
    assert result.returncode == 1
    assert "python -m pip install tiktoken" in result.stderr
    assert "--engine canned" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "arguments are required: prompt"),
        ([""], "prompt must not be empty"),
        (["hi", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["hi", "--max-tokens", "ten"], "invalid int value"),
        (["hi", "--temperature", "nan"], "temperature must be between 0 and 2"),
        (["hi", "--engine", "gpt5"], "invalid choice: 'gpt5'"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    result = run(*arguments, home=tmp_path)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_the_options_and_an_example(tmp_path: Path) -> None:
    result = run("--help", home=tmp_path)
    assert result.returncode == 0
    for word in ("--engine", "--max-tokens", "--temperature", "What is AI?"):
        assert word in result.stdout
