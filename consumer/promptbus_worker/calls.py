"""Inference calls, one at a time: what they may take, what they took, which of them run now, how the last one failed.

What a failed call means for its requests is the runner's business.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from promptbus_worker.breaker import Breaker
from promptbus_worker.deadline import Clock
from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.model import BadRow, InferenceClient, Inputs, ModelSpec, Row, canary
from promptbus_worker.outcomes import VERDICTS, CallError, CallFailure, ModelUnusable
from promptbus_worker.record import Pending
from promptbus_worker.tracing import OFF, Tracing

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics

log = logging.getLogger(__name__)

RECENT_CALLS = 64
"""The second slowest of so many says how long a call takes as a rule: one in 32 takes longer. A little too long costs the
requests that are passed over for others nothing but their place. A little too short spends calls on nobody: under overload
the requests that leave are those with just enough time."""


class Call:
    """One call's circumstances: when it began, how long it may take, and whether deadlines have cut that short."""

    __slots__ = ("began", "cut", "timeout_s")

    def __init__(self, began: float, timeout_s: float, cut: bool) -> None:
        self.began = began
        self.timeout_s = timeout_s
        self.cut = cut


class Calls:
    """The way to the models. Counts and times every call."""

    def __init__(
        self,
        *,
        client: InferenceClient,
        specs: dict[str, ModelSpec],
        model_version: str | None,
        breakers: Mapping[str, Breaker],
        freeze: FreezeGuard,
        metrics: Metrics,
        on_stop: Callable[[str], None],
        timeout_s: float,
        tracing: Tracing = OFF,
        clock: Clock,
    ) -> None:
        """`specs` is written here when a model was read again; `on_stop` hears why only a restart helps; `timeout_s`:
        the longest a call may take."""
        self._client = client
        self._specs = specs
        self._model_version = model_version
        self._breakers = breakers
        self._freeze = freeze
        self._metrics = metrics
        self._on_stop = on_stop
        self._timeout_s = timeout_s
        self._tracing = tracing
        self._clock = clock
        self.last_failure: dict[str, str] = {}
        """By model, how its last call failed. In words of ours: a server's may quote prompts."""
        self._running: dict[object, float] = {}  # calls, the one that began first in front
        self._took_s = {model: deque[float](maxlen=RECENT_CALLS) for model in specs}

    @property
    def oldest_began(self) -> float | None:
        """When the call that has run longest began; None if none runs."""
        return next(iter(self._running.values()), None)

    def usual_s(self, model: str) -> float:
        """No longer than that a call took of late, as a rule; 0 before the first ones."""
        took_s = sorted(self._took_s[model])
        return took_s[-2] if len(took_s) > 1 else 0.0

    def begin(self, part: Sequence[Pending]) -> Call:
        """A call with these requests begins now."""
        now, timeout_s = self._clock(), self._timeout_s
        for request in part:
            request.dispatched_at = now
        left_s = time_left_s(part, now)
        return Call(now, left_s, True) if left_s < timeout_s else Call(now, timeout_s, False)

    async def run(self, model: str, part: list[Pending], call: Call) -> tuple[str, list[Row | BadRow]]:
        """The model's version, and a row for each request. Raises CallError."""
        with self._tracing.call(model, part):
            answer = await self._infer(model, [request.inputs for request in part], call.timeout_s)
        elapsed = self._clock() - call.began
        for request in part:
            request.inference_s = elapsed
        return answer

    async def ask_canary(self, model: str) -> None:
        """A call with a prompt of our own. Raises CallError."""
        await self._infer(model, [canary(self._specs[model])], self._timeout_s)

    async def reread(self, model: str) -> bool:
        """Read the model's metadata again: it may have been restarted with another configuration.

        False: it cannot be read, or is another one now.
        """
        try:
            spec = await self._client.read_spec(model, self._model_version)
        except (CallError, ModelUnusable) as error:
            log.debug("metadata cannot be read", extra={"model": model, "error": str(error)})
            self._note_failure(model, error)
            return False
        if spec.inputs != self._specs[model].inputs:
            # What waits was admitted for the old inputs. A restart admits it anew; nothing else is as simple.
            self._on_stop(f"The inputs of {model} have changed: starting again.")
            return False
        self._specs[model] = spec
        return True

    async def _infer(
        self, model: str, inputs: list[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        began = self._clock()
        result = ""  # broken off. Not None: mypy takes it for set in the `finally`, and compiled code believes that
        self._running[call := object()] = began
        try:
            answer = await self._client.infer(self._specs[model], inputs, timeout_s)
            result = "ok"
        except CallError as error:
            result = VERDICTS[error.failure].call_result
            self._note_failure(model, error)
            if error.failure is CallFailure.OVERLOADED:
                self._breakers[model].told_to_wait(self._clock(), error.retry_after_s)
            raise
        finally:
            now = self._clock()
            del self._running[call]
            self._freeze.tick(now)
            self._metrics.later.calls.append((model, result, now - began))
        if self._freeze.woke_at < began:
            self._took_s[model].append(now - began)
        return answer

    def _note_failure(self, model: str, error: CallError) -> None:
        status = f" (HTTP {error.status})" if error.status else ""
        self.last_failure[model] = f"{error.failure}{status}"


def time_left_s(part: Sequence[Pending], now: float) -> float:
    """Until the largest deadline; for ever if one of them has none (DESIGN rule 7)."""
    left_s = 0.001
    for request in part:
        if request.expires_at is None:
            return float("inf")
        left_s = max(left_s, request.expires_at - now)
    return left_s
