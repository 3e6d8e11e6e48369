"""The compiled worker in the cache, without compiling anything."""

import os
import platform
import sysconfig
from pathlib import Path

import pytest

from stack import compiled
from stack.cache import cache_root
from stack.errors import StackError


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a source in each package, and a cache of its own."""
    root = tmp_path / "clone"
    for name in (*compiled.BUILT_BY, *(f"{package}/a.py" for package in compiled.PACKAGES)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr(compiled, "PROJECT", root)
    monkeypatch.setattr(compiled, "package_tool", lambda: "apt-get")
    monkeypatch.setattr(compiled, "_fill", lambda folder: (folder / "library.so").write_text(""))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "true")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    (tmp_path / "Python.h").write_text("")
    return root


@pytest.mark.parametrize("name", [*compiled.BUILT_BY, *(f"{package}/a.py" for package in compiled.PACKAGES)])
def test_a_changed_source_asks_for_another_build(project: Path, name: str) -> None:
    before = compiled.entry().key
    (project / name).write_text("changed")
    assert compiled.entry().key != before


def test_a_new_source_does_too_and_what_python_caches_does_not(project: Path) -> None:
    before = compiled.entry().key
    folder = project / compiled.PACKAGES[0]
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("")
    assert compiled.entry().key == before
    (folder / "b.json").write_text("")
    assert compiled.entry().key != before


def test_it_is_built_once_and_then_found_until_a_source_changes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiled.environment() == {}
    assert compiled.main(["--path"]) == 0
    assert capsys.readouterr().out == "\n"
    assert compiled.main([]) == 0
    assert capsys.readouterr().out.startswith("→ compiling ")
    assert compiled.main([]) == 0
    assert capsys.readouterr().out == ""
    assert compiled.environment() == {"PYTHONPATH": str(compiled.entry().path)}
    assert compiled.main(["--path"]) == 0
    assert capsys.readouterr().out == f"{compiled.entry().path}\n"
    (project / compiled.PACKAGES[0] / "a.py").write_text("changed")
    assert compiled.environment() == {}


@pytest.mark.parametrize(
    ("compiler", "header", "says"),
    [
        (False, True, "there is no C compiler here (sudo apt-get install gcc)."),
        (True, False, "there is no Python.h here (sudo apt-get install python3."),
        (False, False, "there is no C compiler and no Python.h here (sudo apt-get install gcc python3."),
    ],
)
def test_without_a_compiler_the_sources_run_and_the_command_that_mends_it_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiler: bool,
    header: bool,
    says: str,
) -> None:
    if not compiler:
        monkeypatch.setenv("CC", "no-such-compiler -m64")
    if not header:
        (tmp_path / "Python.h").unlink()
    assert compiled.main([]) == 0
    (sentence,) = capsys.readouterr().out.splitlines()
    assert sentence.startswith("The worker runs uncompiled, at about four fifths of the speed: ")
    assert says in sentence
    assert compiled.environment() == {}


def test_compiling_that_fails_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise StackError("a.py:1: error")

    monkeypatch.setattr(compiled, "_fill", fail)
    assert compiled.main([]) == 1
    assert "✗ a.py:1: error" in capsys.readouterr().err
    assert compiled.environment() == {}


def test_what_was_not_asked_for_the_longest_is_removed(project: Path) -> None:
    built = []
    for number in range(compiled.KEPT + 1):
        (project / compiled.PACKAGES[0] / "a.py").write_text(str(number))
        assert compiled.main([]) == 0
        os.utime(compiled.entry().path, (number, number))
        built.append(compiled.entry().path)
        if number == 1:
            (project / compiled.PACKAGES[0] / "a.py").write_text("0")
            assert compiled.main([]) == 0, "asked for again"
    left = {path for path in cache_root().iterdir() if path.is_dir()}
    assert left == {built[0], *built[2:]}
    assert len(list(cache_root().glob(".*.lock"))) == len(left)
