"""The ledger's judgement: every request held against its replies and dead letters. Pure.

lost         its offset is settled, and there is no reply; or the reply's code asks for a dead letter that is not there
unanswered   no reply, and its offset is not settled
wrong        a reply to nobody, another prompt's answer, another key, another reply id, two different outcomes, a code
             that this request cannot have, `expired` before the deadline, a dead letter that no code asks for
duplicates   further replies with the same reply id, which at-least-once delivery allows around faults. Each is laid to
             a fault between its answers, and to each fault at most as many as were in hand while it lasted. What no
             fault explains is wrong
out of order (WORKER_ORDERING=key) of two requests with one key and no deadline, the later one was answered first

A good prompt may be given up with `inference_timeout` after three broken calls, as the contract says; so that is
wrong only if fewer than three faults that break calls lay between its record and its reply. A request with a deadline
may be answered `ok` and, redelivered after a crash and after its deadline, `expired`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from promptbus.messages import ErrorCode, InvalidReply, Reply, decode_reply
from tests.chaos.requests import OK, Sent
from tests.integration.system import Read

GIVEN_UP = str(ErrorCode.INFERENCE_TIMEOUT)
ATTEMPTS = 3
CLOCK_MS = 5
"""Deadlines are compared by wall clock once and monotonic from then on."""
AFTERMATH_S = 30.0
"""For how long after its end a fault may still cost a worker its partitions: time-outs of connections and sessions."""
_DEADLINE_OVER = frozenset({"expired", "unavailable"})
_RUNS = {OK, "model_error", "bad_model_output"}


@dataclass(frozen=True)
class Fired:
    """A fault as it was seen to fire. Times are Unix seconds.

    `in_hand`: requests in flight or waiting in the workers then; `most_in_hand`: the most of each worker together, from
    then to the end of its aftermath. `breaks`: how often one and the same call to Triton can have been broken by it, one
    attempt each.
    """

    at: float
    until: float
    fault: str
    target: str
    in_hand: int
    seen: str
    breaks: int = 0
    most_in_hand: int = 0

    @property
    def explains(self) -> int:
        """How many duplicates it can have caused."""
        return max(self.in_hand, self.most_in_hand)


@dataclass
class Verdict:
    """What was found. Every violation is a sentence that begins with the request's id."""

    requests: int = 0
    replies: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    given_up: int = 0
    duplicates: int = 0
    duplicates_by_fault: list[int] = field(default_factory=list)
    in_order: int = 0
    """Requests whose place behind another one of their key was checked."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not (self.lost or self.unanswered or self.wrong)


def judge(
    topic: str,
    sent: Sequence[Sent],
    replies: Sequence[Read],
    dead_letters: Sequence[Read],
    settled: Collection[tuple[int, int]],
    fired: Sequence[Fired],
    *,
    ordered: bool = False,
    exactly_once: bool = False,
    read_meanwhile: Collection[str] = (),
) -> Verdict:
    """Hold all that came back against all that was sent.

    `settled`: places (partition, offset) that the group's commits say are settled. `fired`: in the order of time.
    `ordered`: replies of a key have to stand in the order of its requests, as far as these have no deadline.
    `exactly_once`: nothing may be there twice, no dead letter either. `read_meanwhile`: requests whose reply somebody
    has read during the run: whether one that is lost was never written, or was there and is gone.
    """
    verdict = Verdict(requests=len(sent), replies=len(replies))
    verdict.duplicates_by_fault = [0] * len(fired)
    by_id = _by_request(replies, verdict)
    died = _places(topic, dead_letters, verdict)
    if ordered:
        _judge_order(topic, sent, by_id, verdict)
    if exactly_once:
        twice = ((request_id, len(several)) for request_id, several in by_id.items())
        verdict.wrong += [
            f"{request_id}: {count} replies are seen" for request_id, count in twice if count > 1
        ]
        verdict.wrong += [
            f"{place}: {count} dead letters are seen" for place, count in died.items() if count > 1
        ]
    for request in sent:
        request_id = request.request_id(topic)
        several = by_id.pop(request_id, [])
        assert request.place is not None
        if not several:
            seen = (
                "but one was read during the run"
                if request_id in read_meanwhile
                else "and none was ever read"
            )
            (verdict.lost if request.place in settled else verdict.unanswered).append(
                f"{request_id}: {request.kind}, {request.place}, no reply, {seen}"
            )
        else:
            _judge_one(topic, request, request_id, several, fired, verdict)
        _judge_dead_letter(request, request_id, several, died.pop(request.place, 0), verdict)
    verdict.wrong += [f"{request_id}: {len(found)} replies to nobody" for request_id, found in by_id.items()]
    verdict.wrong += [f"{place}: a dead letter of nobody" for place in died]
    return verdict


def code_of(reply: Reply) -> str:
    """`ok`, or the error's code."""
    return OK if reply.error is None else reply.error.code


Several = list[tuple[Read, Reply]]


def _by_request(replies: Sequence[Read], verdict: Verdict) -> dict[str, Several]:
    by_id = defaultdict[str, Several](list)
    for record in replies:
        try:
            reply = decode_reply(record.value)
        except InvalidReply as error:
            verdict.wrong.append(f"{record.key!r}: no reply at all, {error}")
        else:
            by_id[reply.request_id].append((record, reply))
    for several in by_id.values():
        several.sort(key=lambda pair: pair[0].timestamp_ms)
    return by_id


def _places(topic: str, dead_letters: Sequence[Read], verdict: Verdict) -> Counter[tuple[int, int]]:
    places = Counter[tuple[int, int]]()
    for record in dead_letters:
        headers = record.headers
        if headers.get("dlq-topic") != topic.encode():
            verdict.wrong.append(f"{record.key!r}: a dead letter of another topic")
        places[int(headers["dlq-partition"] or b""), int(headers["dlq-offset"] or b"")] += 1
    return places


def _judge_one(
    topic: str, request: Sent, request_id: str, several: Several, fired: Sequence[Fired], verdict: Verdict
) -> None:
    wrong = [
        f"{request_id}: {request.kind}, {why}"
        for record, reply in several
        for why in _why_wrong(topic, request, request_id, record, reply, fired)
    ]
    outcomes = {(code_of(reply), reply.response) for _, reply in several}
    if len(outcomes) > 1 and not _may_differ(request, {code for code, _ in outcomes}):
        wrong.append(f"{request_id}: {request.kind}, two different replies: {sorted(c for c, _ in outcomes)}")
    verdict.wrong += wrong
    first = code_of(several[0][1])
    verdict.codes[first] += 1
    verdict.given_up += first == GIVEN_UP and not wrong
    for record, _ in several[1:]:
        verdict.duplicates += 1
        causes = _causes(several[0][0].timestamp_ms, record.timestamp_ms, fired)
        counts = verdict.duplicates_by_fault
        cause = next((i for i in causes if counts[i] < fired[i].explains), None)
        if cause is None:
            among = ", ".join(f"{fired[i].fault} ({counts[i]} of {fired[i].explains})" for i in causes)
            verdict.wrong.append(
                f"{request_id}: {request.kind}, repeated without a fault; around it: {among}"
            )
        else:
            counts[cause] += 1


def _causes(first_ms: int, again_ms: int, fired: Sequence[Fired]) -> list[int]:
    """Which faults can have made a worker answer again, the likeliest first: those that ended after the first answer in
    the order in which they struck, then those before it, the last one first."""
    possible = [
        index
        for index, fault in enumerate(fired)
        if fault.at * 1000 <= again_ms and (fault.until + AFTERMATH_S) * 1000 >= first_ms
    ]
    outlasted = [index for index in possible if fired[index].until * 1000 >= first_ms]
    return outlasted + [index for index in reversed(possible) if index not in outlasted]


def _judge_order(topic: str, sent: Sequence[Sent], by_id: Mapping[str, Several], verdict: Verdict) -> None:
    """Of each reply id the first one counts, which is the one that a reader keeps."""
    last: dict[tuple[bytes, int], tuple[str, tuple[int, int]]] = {}
    for request in sorted(sent, key=lambda request: request.place or (-1, -1)):
        several = by_id.get(request_id := request.request_id(topic), [])
        if request.key is None or request.deadline_ms is not None or not several:
            continue
        assert request.place is not None
        stands = min((record.partition, record.offset) for record, _ in several)
        line = request.key, request.place[0]
        if line in last:
            verdict.in_order += 1
            before, stood = last[line]
            if stands < stood:
                verdict.wrong.append(f"{request_id}: out of order, {stands} is before {before}'s {stood}")
        last[line] = request_id, stands


def _may_differ(request: Sent, codes: set[str]) -> bool:
    """After a crash a request is run anew: it may then be too late for its deadline, or be luckier than before."""
    allowed = set(request.codes) | {GIVEN_UP}
    return len(codes) > 1 and codes <= allowed


def _why_wrong(
    topic: str, request: Sent, request_id: str, record: Read, reply: Reply, fired: Sequence[Fired]
) -> list[str]:
    code = code_of(reply)
    why = []
    if reply.reply_id != request.reply_id(topic):
        why.append("another record's reply id")
    if record.key != (request_id.encode() if request.key is None else request.key):
        why.append(f"the key {record.key!r}")
    if code == OK and (reply.response is None or not reply.response.startswith(request.fingerprint)):
        why.append(f"another prompt's answer: {(reply.response or '')[:30]!r}")
    if code not in request.codes and not _may_be_given_up(request, record, reply, fired):
        why.append(f"answered {code} (attempts {reply.attempts})")
    early_ms = (request.deadline_ms or 0) - record.timestamp_ms
    if code in _DEADLINE_OVER and early_ms > CLOCK_MS:
        why.append(f"{code} {early_ms} ms before its deadline")
    return why


def _may_be_given_up(request: Sent, record: Read, reply: Reply, fired: Sequence[Fired]) -> bool:
    if code_of(reply) != GIVEN_UP or not request.codes & _RUNS or reply.attempts < ATTEMPTS:
        return False
    breaks = sum(
        fault.breaks
        for fault in fired
        if fault.at * 1000 <= record.timestamp_ms and fault.until >= request.published_at
    )
    return breaks >= ATTEMPTS


def _judge_dead_letter(
    request: Sent, request_id: str, several: Several, letters: int, verdict: Verdict
) -> None:
    codes = {code_of(reply) for _, reply in several}
    wanted = request.dead_letter or any(code != OK and ErrorCode(code).dead_lettered for code in codes)
    # A worker that is killed between the two writes leaves a dead letter, and the next one may be luckier.
    if several and wanted and not letters:
        verdict.lost.append(f"{request_id}: {request.kind}, {sorted(codes)}, its dead letter")
    if letters and not wanted and several:
        verdict.wrong.append(f"{request_id}: {request.kind}, {sorted(codes)}, a dead letter")
