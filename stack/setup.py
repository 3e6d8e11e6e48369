"""`make setup`: check this machine, make `.venv`, fill the cache. Needs nothing but a Python.

Run again when nothing changed, it only compares a stamp. Every other target of the Makefile depends on it.
"""

import fcntl
import platform
import shutil
import subprocess
import sys
import tomllib
import venv

from stack import checks, contents, docker, downloads, warm
from stack.cache import PROJECT, Entry, digest
from stack.errors import StackError

VENV = PROJECT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
BEFORE = PROJECT / ".stack" / "venv-before"
STAMP = VENV / ".promptbus-setup"
DEV = PROJECT / "requirements" / "dev.txt"


def stamp() -> str:
    """What decides the content of `.venv`: its requirements, what an editable install writes, the Python, the place.

    And the java on PATH, which decides whether one is cached.
    """
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    installed = {name: project.get(name) for name in ("project", "build-system")}
    build = project.get("tool", {}).get("hatch")
    python = f"{platform.python_version()} {sys.base_prefix}"
    return digest(
        DEV.read_bytes(), repr(installed), repr(build), python, str(PROJECT), shutil.which("java") or ""
    )


def needed() -> list[Entry]:
    entries = [contents.kafka_jars()]
    if platform.system() == "Linux":
        entries += [contents.triton_server(), contents.triton_environment(), contents.model_files()]
    return entries


def up_to_date() -> bool:
    try:
        written = STAMP.read_text()
    except OSError:
        return False
    return written == stamp() and all(entry.present for entry in needed())


def main(arguments: list[str]) -> int:
    quiet = "--quiet" in arguments
    try:
        if not up_to_date():
            _install()
            quiet = False
    except StackError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. `make setup` goes on where it was.", file=sys.stderr)
        return 130
    if not quiet:
        print("✓ Everything is installed. Next: make demo")
    return 0


def _install() -> None:
    facts = checks.gather(all(entry.present for entry in needed()))
    found = checks.problems(facts)
    if found:
        listed = "\n".join(str(problem) for problem in found)
        raise StackError(
            f"This machine is not ready. Nothing was downloaded.\n\n{listed}\n\nThen run `make setup` again."
        )
    if hint := checks.hint(facts):
        print(f"! {hint}")
    lock = PROJECT / ".stack" / "setup.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _venv_is_right():
            _make_venv()
        contents.install_kafka(VENV_PYTHON)
        warm.install()
        match checks.triton_here(facts):
            case "native":
                contents.install_triton(VENV_PYTHON)
            case "docker":
                docker.build()
            case _:
                print(f"! {checks.NO_TRITON_SENTENCE}")


def _venv_is_right() -> bool:
    return STAMP.exists() and STAMP.read_text() == stamp()


def _make_venv() -> None:
    """Fill `.venv`, made anew if it is another Python's or broken. If that fails, all is as it was before."""
    downloads.announce("the project's Python packages into .venv", 110)
    fresh = not _usable()
    try:
        if fresh:
            shutil.rmtree(BEFORE, ignore_errors=True)
            if VENV.exists():
                VENV.rename(BEFORE)
            venv.EnvBuilder(with_pip=True, symlinks=True).create(VENV)
        STAMP.unlink(missing_ok=True)
        downloads.pip_install(
            VENV_PYTHON, DEV, "the project's packages", VENV, into=VENV_PYTHON, target=False
        )
        _install_project()
        STAMP.write_text(stamp())
    except BaseException:
        if fresh:
            shutil.rmtree(VENV, ignore_errors=True)
            if BEFORE.exists():
                BEFORE.rename(VENV)
        raise
    shutil.rmtree(BEFORE, ignore_errors=True)


def _install_project() -> None:
    """promptbus itself, editable; its requirements are there already."""
    command = downloads.pip(
        VENV_PYTHON, "install", "--no-deps", "--no-build-isolation", "--editable", PROJECT
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(
            f"promptbus could not be installed into .venv:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def _usable() -> bool:
    """`.venv` is of the Python that runs this, works, and has pip."""
    question = "import sys, pip; print(sys.version_info[:3], sys.base_prefix, sys.prefix)"
    try:
        answer = subprocess.run(
            [VENV_PYTHON, "-c", question], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.strip() == f"{sys.version_info[:3]} {sys.base_prefix} {VENV}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
