"""Dead letters: the record as it came, and headers that say why it is here and where it came from."""

from typing import Final

from .codes import ErrorCode
from .headers import Headers

PREFIX: Final = "dlq-"
REASON: Final = "dlq-reason"
TOPIC: Final = "dlq-topic"
PARTITION: Final = "dlq-partition"
OFFSET: Final = "dlq-offset"
TIMESTAMP: Final = "dlq-timestamp"
ATTEMPTS: Final = "dlq-attempts"
WORKER: Final = "dlq-worker"
TRUNCATED: Final = "dlq-truncated"
HEADERS_DROPPED: Final = "dlq-headers-dropped"

REDRIVE_COUNT: Final = "redrive-count"
"""How often a request was sent again after it had been a dead letter. No header of ours: it stays on for good."""

OUR_HEADERS: Final = frozenset(
    {REASON, TOPIC, PARTITION, OFFSET, TIMESTAMP, ATTEMPTS, WORKER, TRUNCATED, HEADERS_DROPPED}
)

# https://kafka.apache.org/documentation/#recordbatch: 61 bytes before the first record.
_BATCH_OVERHEAD = 61
# A record's attributes, timestamp delta (varlong, at most 10) and offset delta (varint, at most 5).
_RECORD_OVERHEAD = 1 + 10 + 5


def dead_letter_headers(
    original: Headers | None,
    *,
    code: ErrorCode,
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    attempts: int,
    worker: str,
) -> list[tuple[str, bytes | None]]:
    """The original headers, duplicates and None values included, then ours. Ours of an earlier death are replaced."""
    headers = [header for header in original or () if header[0] not in OUR_HEADERS]
    ours = {
        REASON: code.value,
        TOPIC: topic,
        PARTITION: str(partition),
        OFFSET: str(offset),
        TIMESTAMP: str(timestamp_ms),
        ATTEMPTS: str(attempts),
        WORKER: worker,
    }
    headers.extend((name, text.encode(errors="replace")) for name, text in ours.items())
    return headers


def fit_dead_letter(
    value: bytes | None, headers: Headers, *, key: bytes | None, max_bytes: int
) -> tuple[bytes | None, list[tuple[str, bytes | None]]]:
    """Cut a dead letter so that the batch that holds it alone takes at most `max_bytes`.

    The end of the value goes first, and `dlq-truncated` tells how many bytes it had. If the headers alone are too
    much, original ones go too, the largest first, and `dlq-headers-dropped` tells how many. The key and our own
    headers stay whatever they take: a limit below that is a configuration to be mended, not to be met.
    """
    fitted = list(headers)
    if message_bytes(key, value, fitted) <= max_bytes:
        return value, fitted
    if value is not None:
        fitted.append((TRUNCATED, str(len(value)).encode()))
    if message_bytes(key, value and b"", fitted) > max_bytes:
        fitted = _drop_largest(fitted, max_bytes - message_bytes(key, value and b"", ()))
    if value is None:
        return None, fitted
    # The lengths of the value and of the record may each take up to four bytes more than without a value.
    room = max_bytes - message_bytes(key, b"", fitted) - 8
    return value[: max(room, 0)], fitted


def message_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """Upper bound, in bytes, of an uncompressed record batch (version 2) that holds this record alone.

    This is what a topic's `max.message.bytes` is compared with. Exact but for at most 14 bytes of deltas.
    """
    record = _RECORD_OVERHEAD + _bytes(key) + _bytes(value) + _headers_bytes(headers or ())
    return _BATCH_OVERHEAD + _varint(record) + record


def _drop_largest(headers: list[tuple[str, bytes | None]], room: int) -> list[tuple[str, bytes | None]]:
    originals = [index for index, header in enumerate(headers) if header[0] not in OUR_HEADERS]
    originals.sort(key=lambda index: _header_bytes(*headers[index]), reverse=True)
    # Room for saying so, and for the count of headers and the record's length.
    room -= _header_bytes(HEADERS_DROPPED, str(len(originals)).encode()) + 4
    taken = _headers_bytes(headers)
    dropped: set[int] = set()
    for index in originals:
        if taken <= room:
            break
        taken -= _header_bytes(*headers[index])
        dropped.add(index)
    if not dropped:
        return headers
    kept = [header for index, header in enumerate(headers) if index not in dropped]
    return [*kept, (HEADERS_DROPPED, str(len(dropped)).encode())]


def _headers_bytes(headers: Headers) -> int:
    return _varint(len(headers)) + sum([_header_bytes(name, value) for name, value in headers])


def _header_bytes(name: str, value: bytes | None) -> int:
    length = len(name) if name.isascii() else len(name.encode(errors="replace"))
    return _varint(length) + length + _bytes(value)


def _bytes(data: bytes | None) -> int:
    if data is None:
        return 1
    length = len(data)
    return (1 if length < 64 else _varint(length)) + length


def _varint(length: int) -> int:
    """Bytes of a zigzag varint that holds a length (not negative)."""
    return 1 if length < 64 else ((length << 1).bit_length() + 6) // 7
