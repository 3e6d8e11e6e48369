"""Facts in, sentences out."""

import sys
import sysconfig
from dataclasses import replace

import pytest

from stack.checks import Facts, hint, is_optimised, problems, triton_here

GOOD = Facts(
    system="Linux",
    machine="x86_64",
    glibc=(2, 36),
    python=(3, 11),
    python_path="/usr/bin/python3.11",
    libpython=True,
    venv=True,
    make=True,
    memory_mb=8000,
    cache_disk_mb=50_000,
    project_disk_mb=50_000,
    shm_mb=4000,
    docker=False,
    package_tool="apt-get",
    everything_cached=False,
    compiler=True,
)


def test_a_good_machine_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "says", "command"),
    [
        ({"machine": "riscv64"}, "riscv64", "#"),
        ({"glibc": (2, 31)}, "glibc 2.35 or newer; it is 2.31", "#"),
        ({"glibc": None}, "another C library", "#"),
        ({"python": (3, 10)}, "is 3.10", "sudo apt-get install python3.12 python3.12-venv"),
        ({"python": (3, 14)}, "is 3.14", "make setup PYTHON=python3.12"),
        ({"libpython": False}, "libpython3.11", "sudo apt-get install libpython3.11"),
        (
            {"libpython": False, "python_path": "/home/a/.pyenv/versions/3.11.9/bin/python3.11"},
            "libpython3.11",
            "PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force 3.11",
        ),
        ({"libpython": False, "package_tool": "dnf"}, "libpython3.11", "sudo dnf install python3.11-libs"),
        ({"venv": False}, "virtual environments", "sudo apt-get install python3.11-venv"),
        ({"make": False}, "make", "sudo apt-get install make"),
        ({"make": False, "package_tool": "pacman"}, "make", "sudo pacman -S make"),
        ({"memory_mb": 700}, "700 MB are free", "ps aux"),
        ({"cache_disk_mb": 100}, "100 MB free", "XDG_CACHE_HOME="),
        ({"project_disk_mb": 100}, "100 MB free", "df -h ."),
        ({"shm_mb": 10}, "/dev/shm has 10 MB free", "remount"),
        ({"python": (3, 13), "compiler": False}, "compiled", "sudo apt-get install g++ python3.13-dev"),
    ],
)
def test_each_lack_is_one_sentence_and_one_command(
    change: dict[str, object], says: str, command: str
) -> None:
    (problem,) = problems(replace(GOOD, **change))  # type: ignore[arg-type]  # the table names only fields
    assert says in problem.sentence
    assert command in problem.command


def test_every_lack_is_told_at_once() -> None:
    lacking = replace(GOOD, glibc=(2, 31), libpython=False, venv=False, memory_mb=10, cache_disk_mb=1)
    assert len(problems(lacking)) == 5


def test_a_full_cache_needs_no_room() -> None:
    assert problems(replace(GOOD, cache_disk_mb=1, everything_cached=True)) == []


def test_nothing_but_the_system_is_told_on_a_system_that_cannot_do() -> None:
    (problem,) = problems(replace(GOOD, system="Windows", glibc=None, libpython=False))
    assert "Windows" in problem.sentence


def test_macos_needs_neither_glibc_nor_libpython() -> None:
    mac = replace(
        GOOD, system="Darwin", machine="arm64", glibc=None, libpython=False, shm_mb=None, memory_mb=None
    )
    assert problems(mac) == []


def test_triton_is_native_on_linux_and_in_docker_on_macos_if_there_is_one() -> None:
    mac = replace(GOOD, system="Darwin")
    assert triton_here(GOOD) == "native"
    assert triton_here(replace(mac, docker=True)) == "docker"
    assert triton_here(mac) == ""


def test_a_slow_build_of_python_is_told_and_hinders_nothing() -> None:
    slow = replace(GOOD, optimised=False, python_path="/home/a/.pyenv/versions/3.11.9/bin/python3.11")
    assert problems(slow) == []
    assert slow.python_path in hint(slow)
    assert "make setup PYTHON=/usr/bin/python3" in hint(slow)
    assert hint(GOOD) == ""


@pytest.mark.parametrize(
    ("prefix", "options", "optimised"),
    [
        ("/usr", "'--enable-shared' '--with-dtrace'", True),  # Debian's
        ("/usr/local", "'--enable-optimizations' '--with-lto' '--enable-shared'", True),  # Docker's
        ("/home/a/.pyenv/versions/3.11.9", "'--enable-shared'", False),
        ("/home/a/somewhere", None, False),
    ],
)
def test_how_python_was_built(
    prefix: str, options: str | None, optimised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "base_prefix", prefix)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: options)
    assert is_optimised() is optimised
