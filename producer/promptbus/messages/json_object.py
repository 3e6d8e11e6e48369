"""Bytes to a JSON object and back: strict about what is JSON, exact about what is echoed.

orjson does the work. It is strict where a wire format should be (UTF-8 only, no byte order mark, no NaN, no lone
surrogates) but has three limits of its own that must not show on the wire:

- an integer beyond 64 bits is read as a float, so echoing it would change it;
- a number beyond the range of a double (1e400, 400 digits) is refused, although it is valid JSON;
- it writes at most 254 levels of nesting, while `MAX_DEPTH` levels are accepted.

All three concern objects that are handed back as they came (`metadata`). Such an object becomes a `VerbatimObject`,
which remembers its own text and is written as that text. Everything else takes orjson's way only.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import TypeAlias, Union, cast

import orjson

Json: TypeAlias = Union[bool, int, float, str, list["Json"], dict[str, "Json"], None]  # noqa: UP007
JsonObject: TypeAlias = dict[str, Json]

MAX_DEPTH = 512
"""Most containers open at once, the outermost object included."""

# orjson refuses to write more than 254 levels; the object stands some levels down in what is written.
_WRITABLE_DEPTH = 200
# From here on a float may have been an integer: orjson keeps what fits a signed or unsigned 64-bit integer.
_EXACT_BELOW = float(2**63)

# A string, or a character that opens, closes or separates. Possessive: no backtracking over long strings.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]:,]', re.DOTALL)
# A string (left alone) or the unsigned part of a number. Its optional groups are not possessive: in Python 3.11.2 such a one
# that fails half-way keeps what it has eaten; in 3.11.7 not any more.
_NUMBER = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|((?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)', re.DOTALL
)
# What every number beyond a double (about 1.8e308) has: a long row of digits, or an exponent of three.
_MAY_BE_HUGE = re.compile(rb"[0-9]{200}|[eE]\+?[0-9]{3}")


class NotAnObject(ValueError):
    """The bytes are not a JSON object; the text says why, in a sentence for the sender."""


class VerbatimObject(dict[str, Json]):
    """A JSON object that is written back as the text it was read from. Its parsed numbers may be approximations."""

    __slots__ = ("text",)

    def __init__(self, parsed: JsonObject, text: bytes) -> None:
        super().__init__(parsed)
        self.text = text


def read_object(value: bytes | None, echoed: str) -> JsonObject:
    """The JSON object in `value`, whose member `echoed` (if it is an object) can be written back exactly.

    Duplicate names: the last wins. Raises NotAnObject, and nothing else, for anything but a JSON object of at most
    MAX_DEPTH levels.
    """
    try:
        parsed = orjson.loads(value)  # type: ignore[arg-type]  # None is refused like any other malformed text
    except orjson.JSONDecodeError as error:
        parsed = _read_huge_numbers(value, echoed, error)
    if type(parsed) is not dict:
        raise NotAnObject("the message is JSON but not an object")
    # Each level takes two bytes at least, so short texts need no look.
    if len(value) > 2 * MAX_DEPTH and _too_deep(value, parsed):  # type: ignore[arg-type]  # None was refused above
        raise NotAnObject(f"the message is nested more than {MAX_DEPTH} levels deep")
    member = parsed.get(echoed)
    if member and type(member) is dict:
        for inner in member.values():
            # Nearly all of them are flat and hold text: those need no closer look.
            if type(inner) is not str:
                if not _writes_back(member):
                    _keep_text(parsed, echoed, value)  # type: ignore[arg-type]  # None was refused above
                break
    return parsed


def write_object(body: dict[str, object], echoed: str) -> bytes:
    """JSON of `body`, its member `echoed` as exactly as it was read. Raises TypeError or ValueError if it is no JSON."""
    member = body.get(echoed)
    if type(member) is VerbatimObject:
        body[echoed] = orjson.Fragment(member.text)
    try:
        return orjson.dumps(body)
    except TypeError:
        if type(member) is not dict:
            raise
    # Deep, or with large integers, but not read by read_object: built by a program.
    text = json.dumps(member, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body[echoed] = orjson.Fragment(text.encode())
    return orjson.dumps(body)


def read_exactly(value: bytes | None, exact: str) -> JsonObject:
    """The JSON object in `value`, in whose member `exact` integers of any size are integers.

    Raises NotAnObject, and nothing else.
    """
    try:
        parsed = read_object(value, exact)
        if type(parsed.get(exact)) is VerbatimObject and value is not None:
            # The standard library reads large integers. It is slower and recursive: for these rare objects only.
            parsed = json.loads(value.decode())
    except RecursionError:
        raise NotAnObject("the message is nested too deeply to be read from here") from None
    except NotAnObject:
        raise
    except ValueError:
        # Python refuses integers of more than sys.get_int_max_str_digits() digits.
        raise NotAnObject("the message holds an integer that is too long") from None
    return parsed


def require_json(body: dict[str, object]) -> None:
    """Refuse what would not come back from JSON as it went in. Raises ValueError with a sentence.

    orjson writes NaN and infinity as null; the standard library writes the key 1 as "1".
    """
    level: list[object] = [body]
    for _ in range(MAX_DEPTH):
        below: dict[
            int, object
        ] = {}  # by identity: a container that holds itself twice must not grow the list
        for container in level:
            if isinstance(container, dict):
                if not all(isinstance(key, str) for key in container):
                    raise ValueError("the keys of an object must be strings")
                members: Iterable[object] = container.values()
            else:
                members = cast(list[object], container)
            for member in members:
                if isinstance(member, (dict, list, tuple)):
                    below[id(member)] = member
                elif isinstance(member, float) and not math.isfinite(member):
                    raise ValueError("JSON has neither NaN nor infinity")
                elif member is not None and not isinstance(member, (str, int, float)):
                    raise ValueError(f"JSON cannot hold a {type(member).__name__}")
        if not below:
            return
        level = list(below.values())
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def depth_of(parsed: JsonObject, limit: int) -> int:
    """Levels of nesting, `parsed` itself being the first; counting stops above `limit`. Not recursive."""
    level: list[JsonObject | list[Json]] = [parsed]
    depth = 0
    while level and depth <= limit:
        depth += 1
        below: list[JsonObject | list[Json]] = []
        for container in level:
            members = container.values() if isinstance(container, dict) else container
            below.extend(member for member in members if isinstance(member, (dict, list)))
        level = below
    return depth


def _too_deep(value: bytes, parsed: JsonObject) -> bool:
    # Long prompts are long texts, seldom with metadata: counting brackets in 100 KB takes as long as reading the JSON.
    if not any(isinstance(member, (dict, list)) for member in parsed.values()):
        return False
    return value.count(b"{") + value.count(b"[") > MAX_DEPTH and depth_of(parsed, MAX_DEPTH) > MAX_DEPTH


def _writes_back(parsed: JsonObject) -> bool:
    """Whether orjson writes what it has read: no float that may have been an integer, not nested too deeply."""
    level: list[JsonObject | list[Json]] = [parsed]
    for _ in range(_WRITABLE_DEPTH):
        below: list[JsonObject | list[Json]] = []
        for container in level:
            for member in container.values() if isinstance(container, dict) else container:
                if isinstance(member, (dict, list)):
                    below.append(member)
                elif isinstance(member, float) and not -_EXACT_BELOW < member < _EXACT_BELOW:
                    return False
        if not below:
            return True
        level = below
    return False


def _keep_text(parsed: JsonObject, name: str, text: bytes) -> None:
    span, member = _find_member(text, name), parsed[name]
    if span is not None and isinstance(member, dict):
        parsed[name] = VerbatimObject(member, text[span[0] : span[1]])


def _find_member(text: bytes, name: str) -> tuple[int, int] | None:
    """Start and end of the last member called `name` of the object in `text`. Garbage gives any span or None."""
    depth = 0
    key: bytes | None = None  # the last string at the top level, until its colon
    start: int | None = None
    found: tuple[int, int] | None = None
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth == 0 and start is not None:
                found, start = (start, match.start()), None
        elif depth != 1:
            continue
        elif token == b":":
            if key is not None and _spells(key, name):
                start = match.end()
        elif token == b",":
            if start is not None:
                found, start = (start, match.start()), None
            key = None
        else:
            key = token
    return found


def _spells(quoted: bytes, name: str) -> bool:
    try:
        return bool(orjson.loads(quoted) == name)
    except orjson.JSONDecodeError:
        return False


def _read_huge_numbers(value: bytes | None, echoed: str, error: orjson.JSONDecodeError) -> object:
    """What orjson refused: read again with a stand-in for each number inside the echoed member, if that helps.

    The stand-in 0e0 takes the place of the unsigned part of a whole number token, so it makes valid JSON if and only
    if the original was: before it stands what stood there, and no digit, dot or exponent can follow it.
    """
    if value is None:
        raise NotAnObject("the message has no value")
    span = _find_member(value, echoed) if _MAY_BE_HUGE.search(value) else None
    if span is not None:
        stand_in = _NUMBER.sub(
            lambda match: match[0] if match[1] is None else b"0e0", value[span[0] : span[1]]
        )
        try:
            parsed = orjson.loads(value[: span[0]] + stand_in + value[span[1] :])
        except orjson.JSONDecodeError:
            pass
        else:
            if isinstance(parsed, dict) and echoed in parsed:
                _keep_text(parsed, echoed, value)
            return parsed
    raise NotAnObject(_why_not_json(value, error)) from None


def _why_not_json(value: bytes, error: orjson.JSONDecodeError) -> str:
    if not value:
        return "the message is empty"
    if value.startswith(b"\xef\xbb\xbf"):
        return "the message starts with a byte order mark; send plain UTF-8"
    if "depth" in error.msg:
        return f"the message is nested more than {MAX_DEPTH} levels deep"
    try:
        value.decode()
    except UnicodeDecodeError as undecodable:
        return f"the message is not UTF-8 (byte {undecodable.start})"
    return f"the message is not valid JSON (line {error.lineno}, column {error.colno})"
