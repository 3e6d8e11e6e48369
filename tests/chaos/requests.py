"""The requests of a chaos run: every kind, each with its own id and prompt, and what may be answered to each. Pure."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from promptbus.messages import reply_id
from tests.fingerprint import fingerprint

OK = "ok"
NUMBER = "chaos-number"
"""Header by which a record on the request topic is known again."""
DEADLINE_CODES = (OK, "expired", "unavailable")


@dataclass
class Sent:
    """One request. `codes`: what it may be answered; `dead_letter`: whether one has to come (None: as the code says).

    `place` (partition, offset) and `timestamp_ms` are known once it was read back from the topic. (What a delivery
    report says is not enough: after a broker's death it may know that a record was written, but not where.)
    """

    number: int
    kind: str
    value: bytes | None
    key: bytes | None
    codes: frozenset[str]
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    given_id: str | None = None
    prompt: str = ""
    dead_letter: bool | None = None
    deadline_ms: int | None = None
    published_at: float = 0.0
    place: tuple[int, int] | None = None
    timestamp_ms: int = -1

    @property
    def fingerprint(self) -> str:
        """With which the canned model's answer begins."""
        return f"[{fingerprint(self.prompt)}]"

    def request_id(self, topic: str) -> str:
        """What replies call it. Only of one that has its place."""
        assert self.place is not None
        return self.given_id or f"{topic}-{self.place[0]}-{self.place[1]}"

    def reply_id(self, topic: str) -> str:
        """What every reply to it has to carry. Only of one that has its place."""
        assert self.place is not None
        return reply_id(topic, *self.place, self.timestamp_ms)


SHARES = {
    "ordinary": 76,
    "slow": 1,
    "long": 2,
    "far deadline": 4,
    "near deadline": 4,
    "passed deadline": 1,
    "failing": 3,
    "unreadable output": 1,
    "refused": 3,
    "unknown model": 1,
    "garbage": 3,
    "tombstone": 1,
}
GARBAGE = (b"", b"hello", b"[]", b"\xff\xfe", b'{"prompt": "x"', b'{"prompt": "lone \\ud800 surrogate"}')


class Requests:
    """Makes them, one after the other; the same for the same seed, but for deadlines, which are relative to now."""

    def __init__(self, seed: int, slow_ms: int, shared_keys: int = 1) -> None:
        """`slow_ms`: how long a batch with an ordinary prompt takes, so that work piles up. `shared_keys`: how many."""
        self._seed = seed
        self._chance = random.Random(f"requests {seed}")
        self._slow = f"[[slow:{slow_ms}]]"
        self._shared = [b"shared %d" % number for number in range(shared_keys)]
        self._count = 0

    def next(self, now_s: float) -> Sent:
        """`now_s`: Unix seconds."""
        chance = self._chance
        self._count += 1
        number = self._count
        name = f"c{self._seed}-{number}"
        (kind,) = chance.choices(list(SHARES), list(SHARES.values()))
        shared = chance.choice(self._shared)
        key = chance.choice((None, None, name.encode(), shared, b"\xff\x00" + shared))
        prompt = f"{self._slow} tell me about {name}, {chance.getrandbits(64):x}"
        codes, dead_letter, deadline_ms = {OK}, None, None
        fields: dict[str, object] = {}
        headers: list[tuple[str, bytes | None]] = [(NUMBER, b"%d" % number)]
        match kind:
            case "slow":
                prompt = f"[[slow:400]] {prompt}"
            case "long":
                prompt += " and so on" * 2000
            case "far deadline":
                deadline_ms = int((now_s + 3600) * 1000)
            case "near deadline":
                deadline_ms, codes = int((now_s + chance.uniform(0.5, 8)) * 1000), set(DEADLINE_CODES)
            case "passed deadline":
                deadline_ms, codes = int((now_s - 1) * 1000), {"expired"}
            case "failing":
                prompt, codes = f"[[fail]] {prompt}", {"model_error"}
            case "unreadable output":
                prompt, codes = f"[[bad-utf8]] {prompt}", {"bad_model_output"}
            case "refused":
                fields["max_tokens"], codes = 0, {"invalid_request"}
            case "unknown model":
                fields["model"], codes = "gpt5", {"model_not_found"}
            case "garbage" | "tombstone":
                codes, dead_letter = {"invalid_request"}, True
        if deadline_ms is not None:
            headers.append(("deadline", str(deadline_ms).encode()))
        value: bytes | None = None
        given_id: str | None = None
        if kind == "garbage":
            value = chance.choice(GARBAGE)
        elif kind != "tombstone":
            if chance.random() < 0.8:
                fields["request_id"] = given_id = name
            value = json.dumps({"prompt": prompt, **fields}).encode()
        if given_id is None and chance.random() < 0.5:
            headers.append(("request-id", name.encode()))
            given_id = name
        return Sent(
            number, kind, value, key, frozenset(codes), headers, given_id, prompt, dead_letter, deadline_ms
        )
