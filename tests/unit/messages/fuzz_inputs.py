"""Inputs that nobody would send on purpose, from a seed: the same seed gives the same ones on every machine.

Three families: real messages with bytes changed, bytes without any grammar, and JSON that is well-formed or nearly so
with wrong types, repeated names, numbers and text that parsers disagree about.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from promptbus.messages import Headers

SECRET = "sh0wn-t0-n0b0dy"
"""Stands in prompts; no sentence of ours may hold it."""

_DEEP_REQUEST = b'{"prompt":"%b","metadata":' % SECRET.encode() + b'{"a":[' * 200 + b"]}" * 200 + b"}"
REQUESTS = [
    b'{"request_id":"r-1","prompt":"What is %b?","max_tokens":150,"temperature":0.7,"model":"gpt4_nano",'
    b'"parameters":{"top_p":0.9},"metadata":{"any":["object",1,-2.5e3,null,true]}}' % SECRET.encode(),
    b'{"prompt":"\xc3\xa9\xf0\x9f\x98\x80 %b","metadata":{"n":1e400,"m":123456789012345678901234567890,"s":"\\"}{"}}'
    % SECRET.encode(),
    b'{"prompt":"%b"}' % SECRET.encode(),
] * 10 + [_DEEP_REQUEST]
REPLIES = [
    b'{"request_id":"r","reply_id":"i","status":"ok","response":"x","usage":{"total_tokens":1},"metadata":{},'
    b'"timings":{"queue_ms":1.5,"inference_ms":2,"total_ms":3},"attempts":1}',
    b'{"request_id":"r","reply_id":"i","status":"error","error":{"code":"expired","message":"m","retryable":true}}',
]
REQUEST_FIELDS = ["request_id", "prompt", "max_tokens", "temperature", "model", "parameters", "metadata"]
REPLY_FIELDS = [
    "request_id", "reply_id", "status", "response", "error", "finish_reason", "usage", "model", "model_version",
    "metadata", "timings", "attempts",
]  # fmt: skip
_INNER = ["prompt", "top_p", "stop", "max_tokens", "code", "message", "retryable", "total_tokens", "queue_ms"]
_STRANGE_NAMES = ["", "Prompt", "\\u0000", "é", "x" * 300, "__proto__", "\\ud800", "promp\\u0074", "\\n"]

_PIECES = [
    *(bytes([byte]) for byte in b'"\\{}[]:,-+.eE0 \n\0\x7f\x80\xff'),
    b"1e400", b"9" * 25, b"9" * 400, b"NaN", b"-Infinity", b"null", b"true", b"-0", b"01", b"0x1",
    b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x", b"]" * 30, b"}" * 30,
    b'"metadata":', b'"prompt":', b'"request_id":', b'"', b'{"prompt":"', b'"parameters":{"top_p":',
]  # fmt: skip
_DEEP = [b'{"a":' * 600, b"[" * 600, b'{"metadata":' + b'{"a":[' * 260]

_ATOMS = [
    "null", "true", "false", "0", "-0", "1", "-1", "150", "1.0", "1.5", "2", "2.0000001", "1e0", "1e400", "-1e400",
    "1e-400", "2147483647", "2147483648", "-2147483649", "9223372036854775808", "18446744073709551616", "9" * 30,
    "9" * 400, "9" * 5000, "0.1" + "0" * 400, "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "0x10", "'a'",
    '""', '"a"', '"ok"', '"error"', '"gpt4_nano"', '"other"', '"é😀"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\udc00x"',
    '"\\u0000"', '"\u2028"', '"\x7f"', '"\x01"', '"\\x"', '"unterminated', '"' + "é" * 200 + '"', '"' + "x" * 257 + '"',
    "[]", "{}", "[1,[2,[3]]]", '{"a":1,"a":2}', '{"":{}}', "undefined", "", "/* c */ 1",
]  # fmt: skip

_HEADER_NAMES = [
    "request-id", "deadline", "reply-topic", "correlation-id", "traceparent", "tracestate", "dlq-reason", "x", "",
    "Request-Id", "déjà", "😀", "request-id ",
]  # fmt: skip
_HEADER_VALUES: list[bytes | None] = [
    None, b"", b"r-7", b"\xff", "é".encode(), b"\0", b"0", b"1", b"-1", b"+5", b" 5", b"1e3", b"9" * 19, b"9" * 20,
    "٣".encode(), b"results", b"other", b"secret-topic", b"a" * 256, b"a" * 257, "é".encode() * 128, b"x" * 5000,
    b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"2" * 16 + b"-01",
    b"01-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01-more", b"a=1,b=2", b"a=1," * 40,
]  # fmt: skip


def mutated(chance: Random, messages: list[bytes]) -> bytes:
    """One of these messages with one to four changes in it."""
    value = bytearray(chance.choice(messages))
    for _ in range(chance.randint(1, 4)):
        at = int(chance.random() * (len(value) + 1))
        kind = chance.random()
        if kind < 0.35:
            value[at : at + 1] = chance.randbytes(1)
        elif kind < 0.55:
            del value[at : at + chance.randint(1, 20)]
        elif kind < 0.85:
            value[at:at] = _piece(chance)
        elif kind < 0.95:
            value[at:at] = value[: chance.randrange(len(value) + 1)]
        else:
            del value[at:]
    return bytes(value)


def without_grammar(chance: Random) -> bytes:
    """Any bytes: noise, or pieces of JSON in any order."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(60))
    return b"".join(_piece(chance) for _ in range(chance.randrange(12)))


def _piece(chance: Random) -> bytes:
    # Deep nesting takes as long as hundreds of others.
    return chance.choice(_PIECES if chance.random() < 0.998 else _DEEP)


def nearly_json(chance: Random, fields: list[str]) -> bytes:
    """An object that has these fields with whatever values, some of them twice, wrapped and encoded as it comes."""
    members = []
    for name in chance.sample(fields, chance.randint(0, 4)):
        members.append(f'"{name}":{_value(chance, 0)}')
    if chance.random() < 0.8:
        members.append(f'"prompt":"{SECRET}"')
    if chance.random() < 0.1:
        members.append(f'"{chance.choice(_STRANGE_NAMES)}":{_value(chance, 0)}')
    if members and chance.random() < 0.2:
        members.append(chance.choice(members))
    chance.shuffle(members)
    text = "{" + ",".join(members) + "}"
    how = chance.random()
    if how < 0.9:
        return text.encode(errors="replace")
    return chance.choice(_WRAPPINGS)(text)


def _value(chance: Random, depth: int) -> str:
    kind = chance.random()
    if kind < 0.75 or depth > 3:
        return chance.choice(_ATOMS)
    if kind < 0.753:
        levels = chance.choice([100, 250, 254, 255, 510, 511, 512, 513, 600, 2000])
        return '{"a":[' * (levels // 2) + chance.choice(_ATOMS) + "]}" * (levels // 2)
    if kind < 0.85:
        return "[" + ",".join(_value(chance, depth + 1) for _ in range(chance.randrange(4))) + "]"
    names = chance.choices(_INNER + _STRANGE_NAMES, k=chance.randrange(4))
    return "{" + ",".join(f'"{name}":{_value(chance, depth + 1)}' for name in names) + "}"


_WRAPPINGS: list[Callable[[str], bytes]] = [
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("latin-1", errors="replace"),
    lambda text: text.encode()[:-1],
    lambda text: text.encode() + b"\0",
    lambda text: text.encode() * 2,
    lambda text: b"\n\t \r" + text.encode() + b" \n",
    lambda text: b"\x0c" + text.encode(),
    lambda text: f"[{text}]".encode(),
    lambda text: text.encode().replace(b"prompt", b"prompt\xf0\x9f\x98"),
]


def headers(chance: Random) -> Headers | None:
    """None half of the time; else up to six, names repeated, values None, neither of them as they should be."""
    if chance.random() < 0.5:
        return None
    return [
        (chance.choice(_HEADER_NAMES), chance.choice(_HEADER_VALUES)) for _ in range(chance.randrange(1, 7))
    ]
