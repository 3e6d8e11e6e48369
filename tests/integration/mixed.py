"""Requests of every kind, and what each has to be answered: the mix of test_answers.py.

Every request carries a number in its prompt, so no two prompts of a run are the same.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from promptbus.messages import Headers
from tests.fingerprint import fingerprint
from tests.integration.system import Sending

MAX_BYTES = 160_000
MAX_PROMPT_CHARS = 102_400
LIMITS = {"REQUEST_MAX_BYTES": str(MAX_BYTES), "REQUEST_MAX_PROMPT_CHARS": str(MAX_PROMPT_CHARS)}

TEXTS = (
    "What is Kafka, and what is a batch? ({})",
    "Tell me about the weather in {}",
    "Grüße aus Zürich, naïve café №{}",
    "什么是人工智能 {}号问题 — 日本語も、한국어도",
    "ما هو الطقس اليوم؟ \u202b{}\u202c (من اليمين إلى اليسار) שלום",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e8\U0001f1ed {} \U0001f9d1\U0001f3fd\u200d\U0001f680",
    "\x00{}\x00 NUL at both ends and in the \x00 middle\x00",
    "all \x01\x08\x0b\x1b[31m\x7f\x85\u2028\u2029\ufeff controls {}\r\n\t",
    "e\u0301{} combining Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324",
    "\uffff\U0010ffff\ue000 last code points {} \ufffd",
    "\u200b {} \u3000",  # only spaces of all kinds around it
    'quotes " \\ \\u0000 {} </script> %s {{}} [[no word]] [[slow]]',
    "{}",
)
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BAD_TRACEPARENTS = (
    b"",
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
    b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"\xff\x00",
)
BIG = '{"id": 123456789012345678901234567890, "tiny": 1e-320, "huge": 1e400, "u64": 18446744073709551615, "x": -0.0}'
DEEP = '{"d":' * 480 + "[1]" + "}" * 480
METADATA = (
    '{"user": {"id": 7, "tags": ["a", "β", null, true, 1.5]}, "": {}, "list": [[], [[]], {}]}',
    BIG,
    DEEP,
    '{"text": "\\u0000\\ud83d\\ude00\\u2028", "nested": {"same": 1}}',
    "{}",
)


@dataclass(frozen=True)
class Expected:
    """What has to come back. `request_id` None: the derived one. `code` None: an answer."""

    prompt: str = ""
    request_id: str | None = None
    code: str | None = None
    dead_letter: bool = False
    max_tokens: int = 150
    metadata: str = "{}"
    echoed: dict[str, bytes] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """How the canned model's answer to this prompt begins."""
        return f"[{fingerprint(self.prompt)}]"


Case = tuple[Sending, Expected]


def cases(count: int, seed: int) -> list[Case]:
    """A mix of `count` cases, the same for the same seed but for the deadlines, which are relative to now."""
    chance = random.Random(seed)
    makers = [*_every_kind()]
    made = [maker(f"{seed}-{number}", chance) for number, maker in enumerate(makers)]
    made += [_ordinary(f"{seed}-{number}", chance) for number in range(len(made), count)]
    chance.shuffle(made)
    return made


def body(prompt: object, **fields: object) -> bytes:
    """A request's JSON, without escapes."""
    return json.dumps({"prompt": prompt, **fields}, ensure_ascii=False).encode()


def _ordinary(number: str, chance: random.Random) -> Case:
    """An answerable request with any of everything."""
    prompt = chance.choice(TEXTS).format(number)
    if chance.random() < 0.1:
        prompt += " and so on" * chance.choice((10, 200, 2000))
    fields: dict[str, object] = {"prompt": prompt}
    headers: list[tuple[str, bytes | None]] = []
    echoed: dict[str, bytes] = {}
    request_id = None
    match chance.randrange(4):
        case 0 | 1:
            request_id = chance.choice(("r-{}", "é{}", "{}\x00", "a b/{}?", "\U0001f600{}")).format(number)
            fields["request_id"] = request_id
        case 2:
            request_id = f"header {number} ü"
            headers.append(("request-id", request_id.encode()))
    if request_id and chance.random() < 0.2:  # the body's beats the header's
        headers.append(("request-id", request_id.encode() if "request_id" not in fields else b"not this"))
    max_tokens = chance.choice((150, 1, 2, 5, 12, 20, 40, 1000, 2**31 - 1))
    if max_tokens != 150:
        fields["max_tokens"] = max_tokens
    if chance.random() < 0.5:
        fields["temperature"] = chance.choice((0, 2, 0.0, 2.0, 0.7, 1, 1e-300))
    if chance.random() < 0.2:
        fields["parameters"] = chance.choice(({"top_p": 0.5}, {"top_p": 1}, {}))
    if chance.random() < 0.2:
        fields["model"] = chance.choice(("gpt4_nano", None))
    if chance.random() < 0.2:
        echoed["correlation-id"] = chance.choice((b"c-" + number.encode(), bytes(range(256)), b""))
    if chance.random() < 0.2:
        echoed["traceparent"] = TRACEPARENT
        if chance.random() < 0.5:
            echoed["tracestate"] = b"vendor=" + number.replace("-", "_").encode()
    headers += echoed.items()
    if "traceparent" not in echoed and chance.random() < 0.2:
        headers.append(("traceparent", chance.choice(BAD_TRACEPARENTS)))
    if chance.random() < 0.1:
        headers += [
            ("deadline", b"%d" % ((time.time() + 3600) * 1000)),
            ("x-other", None),
            ("x-other", b"\xff"),
        ]
    metadata = chance.choice(METADATA) if chance.random() < 0.3 else "{}"
    text = json.dumps(fields, ensure_ascii=chance.random() < 0.5)
    if metadata != "{}":
        text = text[:-1] + f', "metadata": {metadata}}}'
    key = chance.choice((None, None, b"k-" + number.encode(), b"shared", b"", b"\xff\x00\xfe", b"k" * 300))
    expected = Expected(prompt, request_id, max_tokens=max_tokens, metadata=metadata, echoed=echoed)
    return Sending(text.encode(), key, headers), expected


Maker = Callable[[str, random.Random], Case]


def _every_kind() -> Iterator[Maker]:
    """Each limit at its edge and just above, each refusal, each record that is no request."""
    for _ in range(3):
        yield from _sizes()
        yield from _ids()
        yield from _fields()
        yield from _no_requests()
        yield from _header_problems()


def _sizes() -> Iterator[Maker]:
    def prompt_of(chars: int, code: str | None, letter: str = "x") -> Maker:
        def make(number: str, _: random.Random) -> Case:
            prompt = number + " " + letter * (chars - len(number) - 1)
            sending = Sending(body(prompt, request_id=number), number.encode())
            return sending, Expected(prompt, number, code)

        return make

    def value_of(size: int, code: str | None) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            empty = len(body(number, metadata={"pad": ""}))
            metadata = {"pad": "p" * (size - empty)}
            # Above the limit nothing is read of the value, so the id has to come with a header.
            headers = [("request-id", number.encode())]
            sending = Sending(body(number, metadata=metadata), None, headers)
            echoed = json.dumps(metadata) if code is None else "{}"
            return sending, Expected(number, number, code, metadata=echoed)

        return make

    yield prompt_of(MAX_PROMPT_CHARS, None)
    yield prompt_of(MAX_PROMPT_CHARS + 1, "too_large")
    yield prompt_of(50_000, None, "я")  # 100 KB
    yield prompt_of(39_000, None, "\U0001f600")  # 156 KB, in a quarter of the characters
    yield value_of(MAX_BYTES, None)
    yield value_of(MAX_BYTES + 1, "too_large")


def _ids() -> Iterator[Maker]:
    def body_id(fill: str, size: int, code: str | None) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            request_id = number + fill * ((size - len(number)) // len(fill.encode()))
            request_id += "." * (size - len(request_id.encode()))
            sending = Sending(body(number, request_id=request_id))
            # An id that cannot be accepted is not echoed: the reply goes to the derived one.
            return sending, Expected(number, request_id if code is None else None, code)

        return make

    def header_id(size: int, code: str | None) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            request_id = number + "h" * (size - len(number))
            sending = Sending(body(number), b"k", [("request-id", request_id.encode())])
            return sending, Expected(number, request_id if code is None else None, code)

        return make

    def no_text(number: str, _: random.Random) -> Case:
        return Sending(body(number), None, [("request-id", b"\xff")]), Expected(code="invalid_request")

    def last_wins(number: str, _: random.Random) -> Case:
        text = f'{{"request_id": "first", "prompt": "first", "request_id": "{number}", "prompt": "last {number}"}}'
        return Sending(text.encode()), Expected(f"last {number}", number)

    def last_header_wins(number: str, _: random.Random) -> Case:
        headers = [("request-id", b"first"), ("correlation-id", b"1"), ("request-id", number.encode())]
        sending = Sending(body(number), None, [*headers, ("correlation-id", b"2")])
        return sending, Expected(number, number, echoed={"correlation-id": b"2"})

    yield from (body_id("a", 256, None), body_id("a", 257, "invalid_request"))
    yield from (body_id("é", 256, None), body_id("é", 258, "invalid_request"))
    yield from (header_id(256, None), header_id(257, "invalid_request"))
    yield from (no_text, last_wins, last_header_wins)


def _fields() -> Iterator[Maker]:
    def taken(fields: dict[str, object]) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            max_tokens = fields.get("max_tokens")
            limit = max_tokens if isinstance(max_tokens, int) else 150
            sending = Sending(body(number, request_id=number, **fields))
            return sending, Expected(number, number, max_tokens=limit)

        return make

    def refused(code: str, fields: dict[str, object]) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            whole = {"prompt": number, "request_id": number, "metadata": {"kept": number}, **fields}
            kept = json.dumps(whole["metadata"]) if isinstance(whole["metadata"], dict) else "{}"
            request_id = number if whole["request_id"] == number else None
            sending = Sending(json.dumps(whole).encode(), number.encode())
            return sending, Expected(number, request_id, code, metadata=kept)

        return make

    def each(name: str, *values: object) -> list[dict[str, object]]:
        return [{name: value} for value in values]

    accepted = [
        *each("max_tokens", 1, 2**31 - 1, None),
        *each("temperature", 0, 2, 2.0, 0.7, None),
        *each("parameters", {"top_p": 0.9}, {"top_p": 1}, {}, None),
        *each("model", None, "gpt4_nano"),
    ]
    rejected: list[dict[str, object]] = [
        *each("max_tokens", 0, -1, 2**31, 2**63, 2**65, 1.0, True, "5", [5]),
        *each("temperature", 2.0001, -0.0001, 3, "0.7", True, {}),
        *each("parameters", {"top_k": 3}, {"top_p": "0.9"}, {"top_p": True}, {"prompt": "x"}, [], 1),
        *each("prompt", "", None, 5, ["x"], {}),
        *each("metadata", [], "x", 1, True),
        *each("request_id", "", 5, {}),
        *each("model", "", 5),
        *(field for name in ("stream", "Prompt", "", "\n", "n" * 1000) for field in each(name, 1)),
    ]
    yield from (taken(fields) for fields in accepted)
    yield from (refused("invalid_request", fields) for fields in rejected)
    for model in ("gpt5", "GPT4_NANO", "gpt4_nano/1"):
        yield refused("model_not_found", {"model": model})


def _no_requests() -> Iterator[Maker]:
    def garbage(value: bytes | None) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            # A header's id names a reply even then.
            named = int(number.rsplit("-", 1)[1]) % 2 == 0
            headers = [("request-id", number.encode()), ("x-kept", None)] if named else []
            expected = Expected(
                request_id=number if named else None, code="invalid_request", dead_letter=True
            )
            return Sending(value, b"k-" + number.encode() if named else None, headers), expected

        return make

    yield from (
        garbage(value) for value in (None, b"", b" ", b"hello", b"[]", b'"text"', b"1", b"null", b"\x00")
    )
    yield garbage(b"\xef\xbb\xbf" + body("a byte order mark"))
    yield garbage(body("x").decode().encode("utf-16"))
    yield garbage(b'{"prompt": "\xff\xfe"}')
    yield garbage(b'{"prompt": "lone \\ud800 surrogate"}')
    yield garbage(b'{"prompt": "\xed\xa0\x80"}')
    yield garbage(b'{"prompt": "x", "temperature": NaN}')
    yield garbage(b'{"prompt": "x", "temperature": Infinity}')
    yield garbage(b'{"prompt": "x"')
    yield garbage(b'{"prompt": "x"} {}')
    yield garbage(b"{'prompt': 'x'}")
    yield garbage(b'{"prompt": "x", "metadata": ' + b'{"d":' * 512 + b"1" + b"}" * 512 + b"}")


def _header_problems() -> Iterator[Maker]:
    def headed(headers: Headers, code: str | None) -> Maker:
        def make(number: str, _: random.Random) -> Case:
            sending = Sending(body(number, request_id=number), None, headers)
            return sending, Expected(number, number, code)

        return make

    for deadline in (b"", b"soon", b"1.5", b"-1", b" 1", b"9" * 20, b"\xff"):
        yield headed([("deadline", deadline)], "invalid_request")
    for passed in (b"0", b"1", b"1700000000000"):
        yield headed([("deadline", passed)], "expired")
    yield headed([("deadline", b"9" * 19)], None)
    yield headed([("deadline", None)], None)
    for topic in (b"elsewhere", b"\xff", b""):
        yield headed([("reply-topic", topic)], "invalid_request")
    yield headed([("reply-topic", None), ("correlation-id", None), ("traceparent", None)], None)
    for traceparent in BAD_TRACEPARENTS:
        yield headed([("traceparent", traceparent), ("tracestate", b"a=b")], None)
