"""prometheus_client's value files, looked at before they are trusted.

A file that a crash, a full disk or somebody's hand has damaged would make the library fail the whole scrape, loop for
ever on a negative length, or keep the slot's next worker from starting. So the supervisor merges sound files only,
and a worker begins with sound ones: a damaged one of its slot is set aside, under one name, so that none pile up.

The format: int32 bytes used, 4 bytes of padding, then entries of int32 key length, the key (JSON of metric, sample,
labels, help) padded to a multiple of 8 together with its length, and two float64, value and time.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from pathlib import Path

import orjson

_NAME = re.compile(r"(?:counter|histogram|gauge_live(?:sum|max))_\d+\.db")
_INT = struct.Struct("i")
_FIRST_ENTRY = 8
_NUMBERS_BYTES = 16
_ASIDE = ".corrupt"


def sound(directory: Path) -> tuple[list[Path], list[Path]]:
    """The value files that can be read, and all that cannot, with those that were set aside."""
    good: list[Path] = []
    bad = list(directory.glob("*" + _ASIDE))
    for path in sorted(directory.glob("*.db")):
        try:
            (good if is_sound(path) else bad).append(path)
        except FileNotFoundError:
            continue  # a gauge's, of a process that has just ended
    return good, bad


def is_sound(path: Path) -> bool:
    """Whether every entry can be read. Raises FileNotFoundError."""
    if not _NAME.fullmatch(path.name):
        return False
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError:
        return False
    if len(data) < _FIRST_ENTRY:
        return False
    (used,) = _INT.unpack_from(data)
    if not _FIRST_ENTRY <= used <= len(data):
        return False
    at = _FIRST_ENTRY
    while at < used:
        if at + _INT.size > used:
            return False
        (length,) = _INT.unpack_from(data, at)
        key = at + _INT.size
        at = key + length + 8 - (length + _INT.size) % 8 + _NUMBERS_BYTES
        if length <= 0 or at > used or not _is_key(data[key : key + length]):
            return False
    return True


def set_damaged_aside(directory: Path, slot: int) -> list[str]:
    """Before a worker opens its slot's files: the names of those that it will begin anew."""
    aside = []
    for path in directory.glob(f"*_{slot}.db"):
        if not is_sound(path):
            path.replace(path.with_suffix(_ASIDE))
            aside.append(path.name)
    return aside


@lru_cache(maxsize=16384)  # the same in every slot, at every scrape
def _is_key(key: bytes) -> bool:
    try:
        match orjson.loads(key):
            case [str(), str(), dict(), str()]:
                return True
            case _:
                return False
    except orjson.JSONDecodeError:
        return False
