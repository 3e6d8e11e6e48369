"""The two wheels: of sources alone, and with the modules of a request's path compiled."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hatch_build import CompiledModules
from stack import compiled
from stack.cache import PROJECT

WHEEL = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
HOOK = WHEEL["hooks"]["custom"]
MODULES: list[str] = HOOK["modules"]


def hook(root: Path, modules: list[str]) -> CompiledModules:
    unused: Any = None
    return CompiledModules(str(root), {"modules": modules}, unused, unused, "", "wheel")


def test_every_module_that_is_compiled_exists_and_is_in_the_wheel() -> None:
    assert MODULES
    assert len(set(MODULES)) == len(MODULES)
    for name in MODULES:
        assert (PROJECT / name).is_file(), name
        assert any(name.startswith(f"{package}/") for package in WHEEL["packages"]), name


def test_all_of_them_run_compiled_or_none_does() -> None:
    """`make test` runs all of this against the compiled ones."""
    names = [name.split("/", 1)[1].removesuffix(".py").replace("/", ".") for name in MODULES]
    sources = [str(importlib.import_module(name).__file__).endswith(".py") for name in names]
    assert set(sources) == {str(compiled.entry().path) not in sys.path}


def waits_while_handling(source: str) -> list[int]:
    """Lines that wait inside an `except` or a `finally`, or in an `async with` that may itself wait when it is left."""
    lines = set[int]()
    waits = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            handling = [*node.finalbody, *(line for handler in node.handlers for line in handler.body)]
            lines.update(
                each.lineno for line in handling for each in ast.walk(line) if isinstance(each, waits)
            )
        elif isinstance(node, ast.AsyncWith):
            entered = {ast.unparse(item.context_expr).partition("(")[0] for item in node.items}
            lines.update([node.lineno] if entered - {"asyncio.timeout"} else [])
    return sorted(lines)


def test_nothing_compiled_waits_while_it_handles_an_exception() -> None:
    """Until it goes on, mypyc's code leaves that exception to whatever runs meanwhile (`Runner._call`)."""
    assert waits_while_handling("try:\n f()\nexcept E:\n await g()\nfinally:\n yield") == [4, 6]
    assert waits_while_handling("async with lock:\n pass\nasync with asyncio.timeout(1):\n await f()") == [1]
    found = {name: waits_while_handling((PROJECT / name).read_text()) for name in MODULES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_what_compiles_is_what_is_locked() -> None:
    locked = (PROJECT / "requirements" / "dev.txt").read_text()
    mypy, setuptools = HOOK["dependencies"]
    assert f"\n{mypy} \\\n" in locked
    assert re.search(rf"^{setuptools}==", locked, re.MULTILINE)


def test_a_wheel_is_made_of_the_sources_unless_it_is_asked_for_more(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HATCH_")}
    subprocess.run(build, cwd=PROJECT, env=plain, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {name.split("/", 1)[1] for name in MODULES} <= held
    assert not [name for name in held if name.endswith((".so", ".c"))]


def test_an_editable_install_is_never_compiled(tmp_path: Path) -> None:
    data: dict[str, Any] = {"force_include": {}}
    hook(tmp_path, ["no/such/module.py"]).initialize("editable", data)
    assert data == {"force_include": {}}


def test_modules_that_cannot_be_compiled_end_the_build_with_what_the_compiler_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("number: int = 'text'\n")
    with pytest.raises(SystemExit, match="1"):
        hook(tmp_path, ["bad.py"]).initialize("standard", {"force_include": {}})
    said = "".join(capsys.readouterr())
    assert "bad.py:1: error: Incompatible types in assignment" in said
    assert "The modules could not be compiled, see above." in said
