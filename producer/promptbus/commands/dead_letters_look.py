"""`promptbus dead-letters list` and `show`."""

from __future__ import annotations

import heapq
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count

import orjson

from promptbus.commands.outcome import OK, USAGE, say
from promptbus.dead_letter_reader import DeadLetterReader
from promptbus.dead_letters import DeadLetter, Place, Selection, by_code, iso_time
from promptbus.errors import PlaceMissing
from promptbus.printable import on_one_line, printable, write_bytes
from promptbus.progress import Progress
from promptbus.settings import KafkaSettings, load

SHOWN = 50
_TITLES = ("PLACE", "TIME", "CODE", "ORIGIN", "ATTEMPTS", "WORKER", "REQUEST ID", "BYTES", "REDRIVEN")
_TO_THE_RIGHT = frozenset({"ATTEMPTS", "BYTES", "REDRIVEN"})


def list_letters(selection: Selection, *, as_json: bool, limit: int | None) -> int:
    """Write them; returns the exit code."""
    most = limit if limit is not None else 0 if as_json else SHOWN
    reader = DeadLetterReader(load(KafkaSettings))
    progress = Progress()
    counts: Counter[str] = Counter()
    # Lines, not letters: a topic may hold more values than fit into memory.
    newest: list[tuple[int, Place, bytes, tuple[str, ...]]] = []
    try:
        for read, letter in zip(count(1), reader.letters(reader.spans(selection)), strict=False):
            progress.show(read, f"{read:,} read")
            if not selection.takes(letter):
                continue
            counts[letter.code] += 1
            line = as_json_line(letter) if as_json else b""
            if as_json and not most:
                write_bytes(line)
                continue
            heapq.heappush(newest, (letter.timestamp_ms, letter.place, line, as_row(letter)))
            if most and len(newest) > most:
                heapq.heappop(newest)
    finally:
        progress.clear()
        reader.close()
    rows = []
    for _, _, line, row in sorted(newest):
        if as_json:
            write_bytes(line)
        else:
            rows.append(row)
    for text in as_table(rows) if rows else []:
        write_bytes(text.encode(errors="replace"))
    part = f"; the newest {most:,} are shown (--limit)" if 0 < most < counts.total() else ""
    say(f"dead letters on {reader.topic!r}: {by_code(counts)}{part}")
    return OK


def show_letters(places: Sequence[Place], *, raw: bool) -> int:
    """Write one after the other. Raises PlaceMissing for the first that is not there."""
    if raw and len(places) > 1:
        say("--raw writes the value of one dead letter; several could not be told apart")
        return USAGE
    reader = DeadLetterReader(load(KafkaSettings))
    try:
        for place in places:
            letter = find(reader, place)
            if raw:
                sys.stdout.buffer.write(letter.value or b"")
            else:
                write_bytes(as_text(letter).encode(errors="replace"))
    finally:
        reader.close()
    return OK


def find(reader: DeadLetterReader, place: Place) -> DeadLetter:
    """The dead letter at this place. Raises PlaceMissing."""
    partition, offset = place
    spans = reader.spans(Selection(partitions=frozenset({partition}), from_offset=offset, to_offset=offset))
    for letter in reader.letters(spans):
        return letter
    there = reader.spans(Selection(partitions=frozenset({partition})))
    holds = f"{there[0].start:,} to {there[0].end - 1:,}" if there else "nothing"
    raise PlaceMissing(f"no dead letter at {place} of {reader.topic!r}: partition {partition} holds {holds}")


def as_json_line(letter: DeadLetter) -> bytes:
    """What `list --json` writes: no prompt, no header of the sender's but the id."""
    partition, offset = letter.origin or (None, None)
    return orjson.dumps(
        {
            "partition": letter.place.partition,
            "offset": letter.place.offset,
            "time": iso_time(letter.timestamp_ms),
            "code": letter.code or None,
            "origin": {
                "topic": letter.topic or None,
                "partition": partition,
                "offset": offset,
                "time": iso_time(letter.request_timestamp_ms),
            },
            "attempts": letter.attempts,
            "worker": letter.worker or None,
            "request_id": letter.request_id,
            "bytes": None if letter.value is None else len(letter.value),
            "truncated_from": letter.truncated_from,
            "redrive_count": letter.redrive_count,
        }
    )


def as_row(letter: DeadLetter) -> tuple[str, ...]:
    """The table's columns."""
    size = "null" if letter.value is None else f"{len(letter.value):,}"
    if letter.truncated_from is not None:
        size = f"{size} of {letter.truncated_from:,}"
    columns = (
        str(letter.place),
        local_time(letter.timestamp_ms),
        letter.code,
        f"{letter.topic} {letter.origin}" if letter.origin else letter.topic,
        "" if letter.attempts is None else f"{letter.attempts:,}",
        letter.worker,
        letter.request_id or "",
        size,
        f"{letter.redrive_count:,}",
    )
    return tuple(on_one_line(column, 48) or "-" for column in columns)


def as_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Titles and rows, aligned."""
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if title in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, _TITLES, strict=True)
        ).rstrip()
        for row in (_TITLES, *rows)
    ]


def as_text(letter: DeadLetter) -> str:
    """Everything in it, safe for a terminal."""
    size = "null" if letter.value is None else f"{len(letter.value):,} bytes"
    if letter.truncated_from is not None:
        size += f", cut from {letter.truncated_from:,}"
    lines = [
        f"dead letter {letter.place}, given up {local_time(letter.timestamp_ms)}, {_readable(letter.code.encode()) or 'no code'}",
        f"key: {_readable(letter.key)}",
        *(
            f"{_readable(name.encode(errors='replace'))}: {_readable(value)}"
            for name, value in letter.headers
        ),
        f"value: {size}",
    ]
    if letter.value is not None:
        lines.append(printable(letter.value.decode(errors="backslashreplace")))
    return "\n".join(lines) + "\n"


def local_time(timestamp_ms: int) -> str:
    """As --since and --until take it."""
    if timestamp_ms < 0:
        return "-"
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(timestamp_ms / 1000))
    except (ValueError, OverflowError, OSError):
        return "-"


def _readable(value: bytes | None) -> str:
    if value is None:
        return "null"
    return printable(value.decode(errors="backslashreplace").replace("\n", "\\n"))
