"""The worker as its wheel has it, with the modules of a request's path compiled: `python -m stack.compiled` builds it.

Tests and the benchmark run it. It is one more folder of the cache; a changed source asks for another one, and until that
is built the sources run as they are. `--path` prints the folder, for PYTHONPATH, or an empty line.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

from stack.cache import PROJECT, Entry, cache_root, digest
from stack.checks import has_headers, headers_package, install_command, package_tool
from stack.errors import StackError

PACKAGES = ("producer/promptbus", "consumer/promptbus_worker")
BUILT_BY = ("pyproject.toml", "hatch_build.py")
NAME = "compiled"
KEPT = 3
"""So many remain; every change of a source makes one."""


class NoCompiler(StackError):
    """This machine cannot compile C for Python."""


def entry() -> Entry:
    """For the sources as they are now, and this Python."""
    files = [PROJECT / name for name in BUILT_BY]
    for package in PACKAGES:
        files += sorted(path for path in (PROJECT / package).rglob("*") if _is_source(path))
    parts = [part for file in files for part in (str(file.relative_to(PROJECT)), file.read_bytes())]
    return Entry(NAME, digest(*parts, f"{platform.python_version()} {platform.machine()} {sys.base_prefix}"))


def environment() -> dict[str, str]:
    """What a Python is started with that is to run it; nothing if it is not built."""
    built = entry()
    return {"PYTHONPATH": str(built.path)} if built.present else {}


def build(say: Callable[[str], None]) -> None:
    """Unless it is there. Raises NoCompiler, or StackError when compiling fails."""
    built = entry()
    if not built.present:
        lack = lacking()
        if lack:
            raise NoCompiler(lack)
        say("→ compiling the worker's hot modules, once for these sources (about half a minute)")
        built.ensure(_fill)
    os.utime(built.path)
    _forget_old()


def lacking() -> str:
    """What compiling needs and this machine has not, with the command that mends it; empty if it has all."""
    tool, version = package_tool(), "{}.{}".format(*sys.version_info)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    missing: dict[str, str] = {}
    if not shutil.which(compiler):
        missing["no C compiler"] = "gcc"
    if not has_headers():
        missing["no Python.h"] = headers_package(tool, version)
    if not missing:
        return ""
    apple = platform.system() == "Darwin"
    command = "xcode-select --install" if apple else install_command(tool, *missing.values())
    return f"there is {' and '.join(missing)} here ({command})"


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _fill(folder: Path) -> None:
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    switched_on = os.environ | {"HATCH_BUILD_HOOK_ENABLE_CUSTOM": "true"}
    done = subprocess.run(command, cwd=PROJECT, env=switched_on, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(f"The worker's modules could not be compiled:\n{done.stdout}{done.stderr}")
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    shutil.rmtree(wheels)


def _forget_old() -> None:
    """What was not asked for the longest."""
    found = sorted(cache_root().glob(f"{NAME}-*"), key=lambda path: path.stat().st_mtime)
    for old in found[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
        (cache_root() / f".{old.name}.lock").unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Exit codes: 0, also where there is no compiler; 1 when compiling fails."""
    if "--path" in arguments:
        print(environment().get("PYTHONPATH", ""))
        return 0
    try:
        build(lambda text: print(text, flush=True))
    except NoCompiler as error:
        print(f"The worker runs uncompiled, at about four fifths of the speed: {error}.")
    except StackError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
