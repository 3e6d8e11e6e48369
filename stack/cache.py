"""What `make setup` installed, in one folder shared by all clones: `${XDG_CACHE_HOME:-~/.cache}/promptbus`.

Every entry is a folder whose name ends in a hash of what decides its content (its requirements file, the Python that
runs it). It is built under a temporary name and renamed when it is complete: an entry that exists is whole.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stack.errors import NotInstalled

PROJECT = Path(__file__).resolve().parent.parent


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG base directory specification: a relative path is to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "promptbus"


def digest(*parts: str | bytes) -> str:
    """12 hex digits that change when any part changes."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached folder."""

    name: str
    key: str

    @property
    def path(self) -> Path:
        return cache_root() / f"{self.name}-{self.key}"

    @property
    def present(self) -> bool:
        return self.path.is_dir()

    def require(self) -> Path:
        """Its path. Raises NotInstalled."""
        if not self.present:
            raise NotInstalled(f"{self.name} is not installed (expected in {self.path}). Run `make setup`.")
        return self.path

    def ensure(self, build: Callable[[Path], None]) -> Path:
        """Its path; built first if it is missing. A second clone that wants it too waits for the first."""
        if self.present:
            return self.path
        cache_root().mkdir(parents=True, exist_ok=True)
        with _locked(cache_root() / f".{self.name}-{self.key}.lock"):
            if self.present:
                return self.path
            _remove_abandoned(self)
            building = Path(tempfile.mkdtemp(prefix=f".{self.name}-{self.key}.", dir=cache_root()))
            try:
                content = building / "content"
                content.mkdir()
                build(content)
                content.rename(self.path)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return self.path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_abandoned(entry: Entry) -> None:
    """Whoever holds the lock is the only builder: other folders of this entry are left of a killed one."""
    for old in cache_root().glob(f".{entry.name}-{entry.key}.*"):
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
