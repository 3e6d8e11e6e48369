"""The prompts that every contender gets, and the records that carry them. Each prompt begins with its number."""

import json
import re
from collections.abc import Callable

DIGITS = 8
_TEXT = (
    " what is it? Say in one short sentence what a partition of a topic is for, and who decides which record goes"
    " where. "
)
_LONGEST = 200_000
_FILLER = (_TEXT * (_LONGEST // len(_TEXT) + 1))[:_LONGEST]

Record = tuple[bytes, bytes]
"""Key and value."""


def prompt(number: int, size: int) -> str:
    """A prompt of `size` bytes (at least 8, at most 200,000), all ASCII."""
    return f"{number:0{DIGITS}d}{_FILLER[: size - DIGITS]}"


def key(number: int) -> bytes:
    """The record key, which is the request's id too."""
    return b"r-%08d" % number


def request(number: int, size: int, max_tokens: int) -> Record:
    """A request as promptbus takes it; the loops and the peers read the same."""
    text = prompt(number, size)
    name = key(number)
    value = f'{{"request_id":"{name.decode()}","prompt":"{text}","max_tokens":{max_tokens}}}'
    return name, value.encode()


def for_model(model: str, record: Record) -> Record:
    """The same request, to another model than the first that is served."""
    name, value = record
    return name, json.dumps({**json.loads(value), "model": model}).encode()


def tensor_request(number: int, size: int, max_tokens: int) -> Record:
    """The same in the v2 inference protocol, which is what MLServer reads from Kafka."""
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": [prompt(number, size)]},
        {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [max_tokens]},
    ]
    return key(number), json.dumps({"inputs": inputs}).encode()


Make = Callable[[int, int, int], Record]
"""Number, bytes of the prompt, max_tokens → record."""

_ANSWERED = re.compile(rb"answer to (\d{8})")


def answers(record_key: bytes | None, value: bytes | None) -> bool:
    """True if this reply of a bench model belongs to the request of the same key."""
    found = _ANSWERED.search(value or b"")
    return found is not None and record_key == b"r-" + found[1]
