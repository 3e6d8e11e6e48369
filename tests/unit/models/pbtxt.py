"""Reads protobuf's text format, as much of it as config.pbtxt uses. Repeated fields become lists."""

import re
from collections.abc import Iterator
from typing import TypeAlias

Value: TypeAlias = str | int | bool | list["Value"] | dict[str, list["Value"]]

_TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("[^"]*"|[\w.+-]+|[\[\]{}:,])')


def read(text: str) -> dict[str, list[Value]]:
    """Raises ValueError for what it cannot read."""
    tokens = _tokens(text)
    return _fields(tokens, end="")


def _tokens(text: str) -> Iterator[str]:
    at, end = 0, len(re.sub(r"\s*(?:#[^\n]*\s*)*\Z", "", text))
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot read {text[at : at + 30]!r}")
        yield match[1]
        at = match.end()
    yield ""


def _fields(tokens: Iterator[str], end: str) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for name in tokens:
        if name == end:
            return found
        if name == ",":
            continue
        token = next(tokens)
        value = _value(next(tokens) if token == ":" else token, tokens)
        found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    raise ValueError("a brace is not closed")


def _value(token: str, tokens: Iterator[str]) -> Value:
    if token == "{":
        return _fields(tokens, end="}")
    if token == "[":
        items: list[Value] = []
        for item in tokens:
            if item == "]":
                return items
            if item != ",":
                items.append(_value(item, tokens))
        raise ValueError("a bracket is not closed")
    if token.startswith('"'):
        return token[1:-1]
    if token in ("true", "false"):
        return token == "true"
    return int(token) if token.lstrip("-").isdecimal() else token
