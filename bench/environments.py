"""Environments of their own for what is measured beside promptbus, in the folder where `make setup` caches.

None of their packages ever reaches the project's `.venv`. Each is built from its locked requirements at first use.
"""

import ctypes.util
import platform
import shutil
import sys
from functools import cache
from pathlib import Path

from stack import compiled, contents, debian, downloads
from stack.cache import Entry, digest

LIBRARY = "libb64.so.0d"
COMPILED = "compiled"


def environment(name: str) -> Entry:
    """The cached environment of `requirements/<name>.txt` for this Python."""
    file = contents.REQUIREMENTS / f"{name}.txt"
    python = f"{platform.python_version()} {platform.machine()} {sys.base_prefix}"
    return Entry(f"bench-{name}", digest(file.read_bytes(), python))


@cache
def compiled_worker() -> dict[str, str]:
    """What makes a worker's process run compiled; nothing if it is not built.

    Asked once: a source that changes meanwhile must not change who is measured.
    """
    return compiled.environment()


def worker_state() -> str:
    """How the worker is measured: `COMPILED`, or not."""
    return COMPILED if compiled_worker() else f"not {COMPILED}"


def python_of(name: str) -> Path:
    """Its interpreter. Raises NotInstalled."""
    return environment(name).require() / "bin" / "python3"


def install(name: str, megabytes: int) -> None:
    """Build the environment unless it is there. Raises StackError."""
    entry = environment(name)
    if not entry.present:
        downloads.announce(f"the environment of {name}", megabytes)
        entry.ensure(lambda folder: _build(name, folder))


def _build(name: str, folder: Path) -> None:
    contents.create_environment(Path(sys.executable), name, name, folder)


def install_libb64() -> None:
    """The one library that perf_analyzer needs and no wheel has: the machine's, else Debian's. Raises StackError."""
    if not has_libb64() and not _libb64().present:
        downloads.announce("libb64, with Debian's package lists", 10)
        _libb64().ensure(_fetch_libb64)


def has_libb64() -> bool:
    """The machine's own loader finds it."""
    return ctypes.util.find_library("b64") is not None


def libb64_folder() -> Path | None:
    """The cached one; None if the machine has its own or it was not fetched."""
    return _libb64().path if _libb64().present else None


def _libb64() -> Entry:
    return Entry("bench-libb64", digest("Debian", platform.machine()))


def _fetch_libb64(folder: Path) -> None:
    unpacked = debian.unpack("libb64-0d", "libb64 with apt-get", folder)
    (library,) = unpacked.rglob(LIBRARY)
    shutil.copy2(library, folder / LIBRARY)
    shutil.rmtree(unpacked)
