"""What every failure of a call to Triton means and what is to be done about it: one table, no I/O.

(Kafka's failures have their tables in kafka_outcomes.py.)

The question behind every row is whether the call ran, and whose fault the failure is.

    failure           ran?      fault          answer
    OVERLOADED        no        nobody's       put back, no attempt counted
    REFUSED           no        Triton's       put back, no attempt counted, breaker
    FORBIDDEN         no        operator's     put back, no attempt counted, breaker (and the log says so)
    MODEL_UNHEALTHY   no        Triton's       put back, no attempt counted, breaker
    NOT_FOUND         no        Triton's       read the metadata again, put back, no attempt counted
    TIMEOUT           maybe     unknown        put back, attempt counted
    CONNECTION        maybe     unknown        put back, attempt counted
    BAD_REQUEST       no        ours, or one   read the metadata again, split in halves
    MODEL_ERROR       yes       one request's  bisect
    BAD_OUTPUT        yes       one request's  bisect
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from promptbus.messages import ErrorCode

DETAIL_CHARS = 500
"""Longest detail kept of what a server said. It is for the log: it can hold tracebacks, paths and prompts."""


class CallFailure(StrEnum):
    """Why a call to Triton gave no usable answer for the whole batch."""

    OVERLOADED = "overloaded"
    """Triton would not take the call now: 503 (queue full, time in the queue over, not ready) or 429."""
    REFUSED = "refused"
    """No connection came about: refused, unknown name, unreachable."""
    CONNECTION = "connection"
    """The connection broke, or what came back is no answer of an inference server."""
    TIMEOUT = "timeout"
    """No complete answer within the call's deadline. Triton finishes such calls all the same."""
    MODEL_ERROR = "model_error"
    """The model raised (500)."""
    MODEL_UNHEALTHY = "model_unhealthy"
    """The model's process is dead (a 500 that says so): every call fails until Triton is restarted."""
    NOT_FOUND = "not_found"
    """Triton does not know the model or the version (404)."""
    BAD_REQUEST = "bad_request"
    """Triton refused these tensors (400): batch too large, wrong shape, unknown input, body too large."""
    FORBIDDEN = "forbidden"
    """Triton, or a proxy before it, wants other credentials (401, 403, 407), or TLS does not come about."""
    BAD_OUTPUT = "bad_output"
    """Triton said 200, but an output is missing, has the wrong rows, or cannot be decoded."""


class CallError(Exception):
    """A call to Triton failed as a whole.

    `status` is the HTTP status, None where there was none. `detail` is at most 500 characters, for the log
    only: a reply never carries it. `retry_after_s`: how long the server asked to be left alone, 0 if it did not.
    """

    def __init__(
        self, failure: CallFailure, detail: str, *, status: int | None = None, retry_after_s: float = 0.0
    ) -> None:
        self.failure = failure
        self.status = status
        self.retry_after_s = retry_after_s
        if failure is CallFailure.FORBIDDEN and status is not None:
            detail = f"check TRITON_API_KEY and TRITON_HEADERS__<NAME>; the server says: {detail}"
        self.detail = detail[:DETAIL_CHARS]
        super().__init__(
            f"{failure} (HTTP {status}): {self.detail}" if status else f"{failure}: {self.detail}"
        )


class ModelUnusable(CallError):
    """Triton serves the model, but not as prompts and answers need it.

    `sentence` says what is missing and what to change. At start it is a reason to stop. Afterwards it is the
    same as a model that is not there: the next reload can mend it.
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        super().__init__(CallFailure.NOT_FOUND, sentence)


class Action(StrEnum):
    """What the dispatcher does with the requests of a call that failed as a whole."""

    PUT_BACK = "put_back"
    """Back to waiting, after a back-off."""
    REREAD = "reread"
    """Read the model's metadata again, then as PUT_BACK."""
    SPLIT = "split"
    """Read the model's metadata again, then call with each half; a single request is final."""
    BISECT = "bisect"
    """Call with each half until the guilty request is alone; a single request is final."""


RetryReason = Literal["overloaded", "timeout", "connection", "bisect"]
"""Label of `retries_total`."""
CallResult = Literal["model_error", "timeout", "overloaded", "connection", "bad_output"]
"""Label of `inference_calls_total`, beside "ok"."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table.

    `counts_attempt`: the call may have run and cost something, so it counts towards the limit of attempts.
    `final_code`: the code of the reply once it is final: after the last attempt, at the request's own deadline,
    or when the request failed alone. `trips_breaker`: calling on is of no use until Triton has changed; one
    such failure is evidence enough. `lowers_limit`: fewer calls at once may help, so the limiter hears of it.
    """

    action: Action
    counts_attempt: bool
    retry_reason: RetryReason | None
    call_result: CallResult
    final_code: ErrorCode
    trips_breaker: bool
    lowers_limit: bool = False


# The result label tells what the operator looks at: `overloaded` = Triton answered that it will not run this
# now, `connection` = no usable answer, `model_error` = the model, `bad_output` = what the model returned.
VERDICTS: Mapping[CallFailure, Verdict] = {
    CallFailure.OVERLOADED: Verdict(
        Action.PUT_BACK,
        False,
        "overloaded",
        "overloaded",
        ErrorCode.UNAVAILABLE,
        trips_breaker=False,
        lowers_limit=True,
    ),
    CallFailure.REFUSED: Verdict(
        Action.PUT_BACK,
        False,
        "connection",
        "connection",
        ErrorCode.UNAVAILABLE,
        trips_breaker=True,
        lowers_limit=True,
    ),
    CallFailure.FORBIDDEN: Verdict(
        Action.PUT_BACK, False, "connection", "connection", ErrorCode.UNAVAILABLE, trips_breaker=True
    ),
    CallFailure.MODEL_UNHEALTHY: Verdict(
        Action.PUT_BACK, False, "overloaded", "model_error", ErrorCode.UNAVAILABLE, trips_breaker=True
    ),
    CallFailure.NOT_FOUND: Verdict(
        Action.REREAD, False, "overloaded", "overloaded", ErrorCode.UNAVAILABLE, trips_breaker=False
    ),
    CallFailure.TIMEOUT: Verdict(
        Action.PUT_BACK,
        True,
        "timeout",
        "timeout",
        ErrorCode.INFERENCE_TIMEOUT,
        trips_breaker=False,
        lowers_limit=True,
    ),
    CallFailure.CONNECTION: Verdict(
        Action.PUT_BACK,
        True,
        "connection",
        "connection",
        ErrorCode.INFERENCE_TIMEOUT,
        trips_breaker=False,
        lowers_limit=True,
    ),
    CallFailure.BAD_REQUEST: Verdict(
        Action.SPLIT, False, "bisect", "model_error", ErrorCode.MODEL_ERROR, trips_breaker=False
    ),
    CallFailure.MODEL_ERROR: Verdict(
        Action.BISECT, True, "bisect", "model_error", ErrorCode.MODEL_ERROR, trips_breaker=False
    ),
    CallFailure.BAD_OUTPUT: Verdict(
        Action.BISECT, True, "bisect", "bad_output", ErrorCode.BAD_MODEL_OUTPUT, trips_breaker=False
    ),
}


# How Triton's Python backend says that a model's process is gone: "Stub process 'm_0_0' is not healthy." when
# the instance is asked, the same without a name when a message to it fails, "... unhealthy and it will be
# restarted" before 23.10, and the lock that a killed process took with it. In front of it there can be a request
# id, an ensemble's name and the instance's. The whole text has to match: a model that quotes a prompt in its
# exception must not be able to make one prompt look like a dead process, which is never charged to it.
_DEAD_STUB = re.compile(
    r"(?:\[request id: [^\]]*\] )?"
    r"(?:\[500\] )?"
    r"(?:in ensemble '[^']*', )*"
    r"(?:Failed to process the request\(s\) for model (?:instance )?'[^']*', message: )?"
    r"(?:Stub process(?: '[^']*')? is (?:not healthy|unhealthy)(?: and it will be restarted)?"
    r"|Failed to obtain the health mutex)\.?"
)

_STATUS: Mapping[int, CallFailure] = {
    401: CallFailure.FORBIDDEN,
    403: CallFailure.FORBIDDEN,
    404: CallFailure.NOT_FOUND,
    407: CallFailure.FORBIDDEN,
    408: CallFailure.CONNECTION,  # a proxy gave up reading our body: nothing is wrong with the body
    429: CallFailure.OVERLOADED,
    499: CallFailure.CONNECTION,  # Triton's word for a cancelled call
    500: CallFailure.MODEL_ERROR,
    501: CallFailure.BAD_REQUEST,  # Triton's word for "this model cannot be asked like that"
    502: CallFailure.CONNECTION,  # a proxy lost Triton: it may have run
    503: CallFailure.OVERLOADED,
    504: CallFailure.TIMEOUT,  # a proxy did not wait as long as we would have
}


def failure_of_status(status: int, text: str) -> CallFailure:
    """What an HTTP status other than 200 means; `text` is the server's own error text, whole."""
    # Some versions say 400 where others say 500, so both are read.
    if status in (400, 500) and _DEAD_STUB.fullmatch(text.strip()):
        return CallFailure.MODEL_UNHEALTHY
    known = _STATUS.get(status)
    if known is not None:
        return known
    return CallFailure.BAD_REQUEST if 400 <= status < 500 else CallFailure.CONNECTION


_SENTENCES: Mapping[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "The request is not valid.",
    ErrorCode.TOO_LARGE: "The request is larger than this service accepts.",
    ErrorCode.MODEL_NOT_FOUND: "The model named in the request is not served here.",
    ErrorCode.EXPIRED: "The request's deadline passed before the model was asked.",
    ErrorCode.UNAVAILABLE: "The request's deadline passed while the inference server could not be reached.",
    ErrorCode.INFERENCE_TIMEOUT: "The inference server gave no answer in time; the request may be sent again.",
    ErrorCode.MODEL_ERROR: "The model failed on this request.",
    ErrorCode.BAD_MODEL_OUTPUT: "The model's output for this request cannot be read.",
    ErrorCode.REPLY_TOO_LARGE: "The answer is larger than the reply topic accepts.",
    ErrorCode.INTERNAL: "The worker failed on this request; the request may be sent again.",
}


def sentence(code: ErrorCode) -> str:
    """Our own sentence for a reply with this code, where nothing more exact is known.

    Never the inference server's text, which holds tracebacks, paths and other people's prompts.
    """
    return _SENTENCES[code]
