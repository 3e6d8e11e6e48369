"""Offsets settled beyond the watermark, as text in the commit's metadata (DESIGN rule 2).

The text is `pb1:` and base64url without padding of unsigned LEB128 varints: gap, length, gap, length, …, counted from
the committed offset. A gap is a stretch of offsets that are not settled, a length a stretch of those that are. A
broker refuses metadata of 4,096 bytes and more, so the text is cut at 4,000 characters: the farthest runs go, and what
they tell is answered a second time after a crash.

Pure.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

Runs = list[tuple[int, int]]
"""Stretches of settled offsets, `(first, one past the last)`, in order, none touching another."""

PREFIX = "pb1:"
MAX_CHARS = 4_000
_MAX_BYTES = (MAX_CHARS - len(PREFIX)) * 3 // 4
_MAX_VARINT_BYTES = 9  # offsets are signed 64-bit numbers


def encode(watermark: int, runs: Iterable[tuple[int, int]]) -> str:
    """The metadata of a commit at offset `watermark`; "" when nothing above it is settled."""
    return encode_until(watermark, runs)[0]


def encode_until(watermark: int, runs: Iterable[tuple[int, int]]) -> tuple[str, int | None]:
    """The same, and the offset from which on it says nothing because it was cut; None: it says all."""
    data = bytearray()
    position = watermark
    cut_at = None
    for first, end in runs:
        run = _varint(first - position) + _varint(end - first)
        if len(data) + len(run) > _MAX_BYTES:
            cut_at = position
            break
        data += run
        position = end
    return PREFIX + urlsafe_b64encode(data).rstrip(b"=").decode() if data else "", cut_at


def decode(watermark: int, text: str | None) -> Runs:
    """What `encode` was given, as far as it fitted. Any other text says nothing: no runs, and never an exception."""
    if not text or not text.startswith(PREFIX):
        return []
    body = text[len(PREFIX) :]
    try:
        numbers = _numbers(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return []
    if numbers is None or len(numbers) % 2:
        return []
    runs: Runs = []
    position = watermark
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        if not length or (not gap and runs):
            return []
        runs.append((position + gap, position + gap + length))
        position = runs[-1][1]
    return runs


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _numbers(data: bytes) -> list[int] | None:
    """None if the last number is cut off, or one is no offset."""
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            if shift >= 7 * _MAX_VARINT_BYTES:
                return None
        else:
            numbers.append(number)
            number = shift = 0
    return None if shift else numbers
