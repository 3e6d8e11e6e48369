"""What this machine must have, looked at before anything is downloaded.

`gather` collects facts, `problems` judges them (pure): one Problem per failure, all at once, each with the command that
mends it.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from stack.cache import cache_root
from stack.contents import python_executable, shared_python

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_GLIBC = (2, 35)
MEMORY_MB = 1500
CACHE_DISK_MB = 1500
PROJECT_DISK_MB = 600
SHM_MB = 64


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes in MB; None where the machine does not say."""

    system: str  # Linux, Darwin, …
    machine: str  # x86_64, aarch64, arm64, …
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    python_path: str
    libpython: bool
    venv: bool
    make: bool
    memory_mb: int | None
    cache_disk_mb: int
    project_disk_mb: int
    shm_mb: int | None
    docker: bool
    package_tool: str  # apt-get, dnf, zypper, pacman, brew, or empty
    everything_cached: bool
    compiler: bool = True  # g++ and Python.h
    optimised: bool = True  # the Python


@dataclass(frozen=True, slots=True)
class Problem:
    sentence: str
    command: str

    def __str__(self) -> str:
        return f"✗ {self.sentence}\n    {self.command}"


def problems(facts: Facts) -> list[Problem]:
    """Everything that stands in the way of `make setup`, in the order in which one would mend it."""
    found = []
    if facts.system not in ("Linux", "Darwin"):
        return [
            Problem(
                f"promptbus runs on Linux (and in part on macOS), not on {facts.system}.", "wsl --install"
            )
        ]
    if facts.machine not in ("x86_64", "aarch64", "arm64"):
        found.append(
            Problem(
                f"There is no Triton for a {facts.machine} processor, only for x86-64 and arm64.",
                "# use another machine",
            )
        )
    if not OLDEST_PYTHON <= facts.python <= NEWEST_PYTHON:
        found.append(
            Problem(
                f"Python 3.11, 3.12 or 3.13 is needed; {facts.python_path} is {facts.python[0]}.{facts.python[1]}.",
                f"{install_command(facts.package_tool, 'python3.12', 'python3.12-venv')} && make setup PYTHON=python3.12",
            )
        )
    if not facts.venv:
        package = "python{}.{}-venv".format(*facts.python)
        found.append(
            Problem(
                f"{facts.python_path} cannot make virtual environments (no ensurepip).",
                install_command(facts.package_tool, package),
            )
        )
    if not facts.make:
        found.append(Problem("GNU make is missing.", install_command(facts.package_tool, "make")))
    if facts.system == "Linux":
        found += _linux_problems(facts)
    if facts.memory_mb is not None and facts.memory_mb < MEMORY_MB:
        found.append(
            Problem(
                f"Kafka and Triton need {MEMORY_MB} MB of free memory together; {facts.memory_mb} MB are free.",
                "ps aux --sort=-rss | head    # see what to end",
            )
        )
    if facts.project_disk_mb < PROJECT_DISK_MB:
        found.append(
            Problem(
                f"This folder's disk has {facts.project_disk_mb} MB free; {PROJECT_DISK_MB} MB are needed.",
                "df -h .    # see what is full",
            )
        )
    if not facts.everything_cached and facts.cache_disk_mb < CACHE_DISK_MB:
        found.append(
            Problem(
                f"The disk of {cache_root()} has {facts.cache_disk_mb} MB free; {CACHE_DISK_MB} MB are needed.",
                "make setup XDG_CACHE_HOME=/a/folder/with/room",
            )
        )
    return found


def _linux_problems(facts: Facts) -> list[Problem]:
    found = []
    if facts.glibc is None or facts.glibc < OLDEST_GLIBC:
        have = (
            "this system has another C library"
            if facts.glibc is None
            else "it is {}.{} here".format(*facts.glibc)
        )
        found.append(
            Problem(
                f"Triton's binary needs glibc 2.35 or newer; {have}.",
                "# use Debian 12, Ubuntu 22.04, Fedora 36 or newer",
            )
        )
    if not facts.libpython:
        found.append(_libpython_problem(facts))
    if facts.python >= (3, 13) and not facts.compiler and not facts.everything_cached:
        version = "{}.{}".format(*facts.python)
        found.append(
            Problem(
                f"On Python {version} a part of Triton's models' environment (numpy below 2) has to be compiled, and "
                "there is no C++ compiler or no Python.h. Python 3.11 or 3.12 (PYTHON=…) needs neither.",
                install_command(
                    facts.package_tool,
                    "g++" if facts.package_tool == "apt-get" else "gcc-c++",
                    headers_package(facts.package_tool, version),
                ),
            )
        )
    if facts.shm_mb is not None and facts.shm_mb < SHM_MB:
        found.append(
            Problem(
                f"Triton needs {SHM_MB} MB of shared memory; /dev/shm has {facts.shm_mb} MB free.",
                "sudo mount -o remount,size=512M /dev/shm    # in Docker: docker run --shm-size=512m",
            )
        )
    return found


def _libpython_problem(facts: Facts) -> Problem:
    version = "{}.{}".format(*facts.python)
    sentence = f"{facts.python_path} has no shared library libpython{version}.so, which Triton's Python backend loads."
    if "/.pyenv/" in facts.python_path:
        return Problem(sentence, f"PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force {version}")
    if facts.package_tool == "apt-get":
        return Problem(sentence, f"sudo apt-get install libpython{version}")
    if facts.package_tool == "dnf":
        return Problem(sentence, f"sudo dnf install python{version}-libs")
    return Problem(sentence, "make setup PYTHON=/path/to/a/python3 # one that was built with --enable-shared")


def install_command(tool: str, *packages: str) -> str:
    """What installs these packages with the machine's `tool`."""
    names = " ".join(packages)
    if tool in ("dnf", "zypper", "pacman"):
        # There venv is a part of Python, and Arch has one Python only.
        names = " ".join(p for p in packages if not p.endswith("-venv")) or names.removesuffix("-venv")
        return f"sudo {tool} {'-S' if tool == 'pacman' else 'install'} {names}"
    if tool == "brew":
        return f"brew install {names.split()[0].replace('python', 'python@').removesuffix('-venv')}"
    return f"sudo apt-get install {names}"


def headers_package(tool: str, version: str) -> str:
    """What has Python.h for Python `version`, as `tool` calls it."""
    if tool == "pacman":
        return "python"
    return f"python{version}-{'devel' if tool in ('dnf', 'zypper') else 'dev'}"


def has_headers() -> bool:
    """Whether this Python's are here."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def is_optimised() -> bool:
    """Whether this Python was built with profile-guided optimisation.

    A distribution's was, whatever its options say: Debian's are those of a build beside it.
    """
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return sys.base_prefix == "/usr" or "--enable-optimizations" in options


def package_tool() -> str:
    """The machine's; empty if it has none of those known here."""
    tools = ("apt-get", "dnf", "zypper", "pacman", "brew")
    return next((tool for tool in tools if shutil.which(tool)), "")


def triton_here(facts: Facts) -> str:
    """How Triton can run: `native`, `docker`, or empty (a Mac without Docker)."""
    if facts.system == "Linux":
        return "native"
    return "docker" if facts.docker else ""


NO_TRITON_SENTENCE = (
    "Triton does not run on macOS by itself: install Docker for `make up` and `make demo`, "
    "or name a Triton elsewhere with TRITON_URL and EXISTING=1. The client and Kafka work without it."
)


def hint(facts: Facts) -> str:
    """What works, and would work better otherwise; empty if there is nothing."""
    if facts.optimised:
        return ""
    return (
        f"{facts.python_path} was built without --enable-optimizations: the worker takes a quarter more CPU on it. "
        "To measure, use one that is optimised, as a distribution's: make setup PYTHON=/usr/bin/python3"
    )


def gather(everything_cached: bool) -> Facts:
    project = Path(__file__).resolve().parent.parent
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        glibc=_glibc(),
        python=sys.version_info[:2],
        python_path=str(python_executable()),
        libpython=shared_python() is not None,
        venv=_has_ensurepip(),
        make=shutil.which("make") is not None,
        memory_mb=_memory_mb(),
        cache_disk_mb=_disk_mb(cache_root()),
        project_disk_mb=_disk_mb(project),
        shm_mb=_disk_mb(Path("/dev/shm")) if platform.system() == "Linux" else None,  # noqa: S108
        docker=_docker_answers() if platform.system() == "Darwin" else False,
        package_tool=package_tool(),
        everything_cached=everything_cached,
        compiler=shutil.which("g++") is not None and has_headers(),
        optimised=is_optimised(),
    )


def _glibc() -> tuple[int, int] | None:
    try:
        version = re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return None
    return (int(version[1]), int(version[2])) if version else None


def _has_ensurepip() -> bool:
    # Debian takes ensurepip out of Python; and it may be there without the wheels it installs.
    code = "import venv, ensurepip; ensurepip.version()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def _memory_mb() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = [int(available[1]) // 1024] if available else []
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        pass  # no control group, or no limit ("max")
    else:
        free.append((limit - used) // 1_000_000)
    return min(free, default=None)


def _disk_mb(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 1_000_000


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return (
            subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False
