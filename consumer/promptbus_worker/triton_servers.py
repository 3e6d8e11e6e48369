"""Several Triton servers as one: each call goes to the one that has the fewest in flight.

A server that cannot be reached, breaks a connection or stays silent is set aside, and comes back once it describes
its models as the others do and answers a prompt of ours. What surely did not run (refused, 503, 404) goes to the next
server within the same call. A single request that a model fails on is given to every server before the failure
counts: one whose model is broken must not make good prompts look bad. Nothing that may have run is repeated here.

The breaker, the limit and the retries stand above and see one Triton; they act on what every server has refused. Where
there is only one server, they stand above its client, without this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from promptbus_worker.deadline import Clock
from promptbus_worker.model import BadRow, InferenceClient, Inputs, ModelSpec, ModelStatistics, Row, canary
from promptbus_worker.outcomes import VERDICTS, Action, CallError, CallFailure, ModelUnusable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_ASIDE_S: Final = 0.5
LONGEST_ASIDE_S: Final = 30.0
"""How long a server is left alone after its first failure; doubled with each that follows, up to the second."""
OTHERS_S: Final = 1.0
"""Once one server has told of a model, the others have this long to do so as well."""
CHECK_S: Final = 10.0

_DID_NOT_RUN = frozenset(
    {
        CallFailure.OVERLOADED,
        CallFailure.REFUSED,
        CallFailure.FORBIDDEN,
        CallFailure.MODEL_UNHEALTHY,
        CallFailure.NOT_FOUND,
    }
)
_SETS_ASIDE = (_DID_NOT_RUN - {CallFailure.OVERLOADED}) | {CallFailure.CONNECTION}


@dataclass(eq=False, slots=True)
class _Server:
    """`aside_until`: not to be used before, None if it is in use. `answered_at`: its last answer of any kind."""

    url: str
    client: InferenceClient
    in_flight: int = 0
    failures: int = 0
    aside_until: float | None = None
    answered_at: float = float("-inf")
    check: asyncio.Task[None] | None = None


class TritonServers:
    """An `InferenceClient` over others, by their URLs. Belongs to the event loop; owns its clients."""

    def __init__(self, clients: Mapping[str, InferenceClient], clock: Clock) -> None:
        self._servers = [_Server(url, client) for url, client in clients.items()]
        self._clock = clock
        self._specs: dict[str, ModelSpec] = {}

    async def read_spec(self, model: str, version: str | None = None) -> ModelSpec:
        """What the servers that answer say; the smallest batch of theirs, and all their instances.

        Raises CallError if none answers, ModelUnusable if they disagree about the inputs.
        """
        found, errors = await self._ask(self._servers, lambda client: client.read_spec(model, version))
        if not found:
            raise next(iter(errors.values()))
        first = next(iter(found))
        for server, spec in found.items():
            if spec.inputs != found[first].inputs:
                raise ModelUnusable(
                    f"{model} takes other inputs at {server.url} ({', '.join(spec.inputs)}) than at {first.url} "
                    f"({', '.join(found[first].inputs)}). Load the same model on every server in TRITON_URL."
                )
        for server, error in errors.items():
            self._set_aside(server, error)
        specs = list(found.values())
        self._specs[model] = replace(
            specs[0],
            max_batch_size=min(spec.max_batch_size for spec in specs),
            instances=sum(spec.instances for spec in specs),
        )
        return self._specs[model]

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        """One answer from one of the servers; `timeout_s` is for all tries together. Raises CallError: the last."""
        ends = self._clock() + timeout_s
        failed: list[tuple[_Server, CallError]] = []
        for server in self._in_order():
            began = self._clock()
            if failed and began >= ends:
                break
            server.in_flight += 1
            try:
                answer = await server.client.infer(spec, batch, max(0.001, ends - began))
            except CallError as error:
                self._judge(server, error, began)
                failed.append((server, error))
                if not _next_may_do_it(error, len(batch)):
                    break
            else:
                server.failures, server.answered_at = 0, self._clock()
                for other, why in failed:
                    if why.failure is not CallFailure.OVERLOADED:
                        self._set_aside(other, why)  # it failed at what this one could do
                return answer
            finally:
                server.in_flight -= 1
        raise failed[-1][1]

    async def statistics(self, model: str, version: str | None = None) -> dict[str, ModelStatistics]:
        """Of the servers in use that tell. Raises CallError if none does."""
        used = [server for server in self._servers if server.aside_until is None] or self._servers
        found, errors = await self._ask(used, lambda client: client.statistics(model, version))
        if not found:
            raise next(iter(errors.values()))
        return {url: one for told in found.values() for url, one in told.items()}

    async def close(self) -> None:
        """Close every server's client."""
        checks = [server.check for server in self._servers if server.check is not None]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        for server in self._servers:
            await server.client.close()

    def _in_order(self) -> Iterator[_Server]:
        """Each server once: those in use first, of them the one with the fewest calls; it is looked at each time."""
        left = list(self._servers)
        self._check_those_due()
        while left:
            server = min(left, key=lambda one: (one.aside_until is not None, one.in_flight))
            left.remove(server)
            yield server

    def _judge(self, server: _Server, error: CallError, began: float) -> None:
        silent = error.failure is CallFailure.TIMEOUT and server.answered_at < began
        if error.status is not None:
            server.answered_at = self._clock()
        if silent or error.failure in _SETS_ASIDE:
            self._set_aside(server, error)

    def _set_aside(self, server: _Server, error: CallError) -> None:
        now = self._clock()
        if server.aside_until is not None and now < server.aside_until:
            return
        aside_s = min(LONGEST_ASIDE_S, FIRST_ASIDE_S * 2**server.failures)
        server.failures += 1
        if server.aside_until is None:
            log.warning(
                "a Triton server is set aside", extra={"url": server.url, "error": str(error.failure)}
            )
        server.aside_until = now + aside_s

    # -- coming back

    def _check_those_due(self) -> None:
        now = self._clock()
        for server in self._servers:
            if server.aside_until is not None and now >= server.aside_until and server.check is None:
                server.check = asyncio.get_running_loop().create_task(self._check(server))

    async def _check(self, server: _Server) -> None:
        try:
            for model, known in list(self._specs.items()):
                await self._check_model(server, model, known)
        except CallError as error:
            self._set_aside(server, error)
        except Exception:
            log.exception("checking a Triton server failed by a defect of the worker")
            self._set_aside(server, CallError(CallFailure.CONNECTION, "not checked"))
        else:
            server.aside_until = None
            log.info("a Triton server is used again", extra={"url": server.url})
        finally:
            server.check = None

    async def _check_model(self, server: _Server, model: str, known: ModelSpec) -> None:
        spec = await server.client.read_spec(model, known.version or None)
        if spec.inputs != known.inputs or spec.max_batch_size < known.max_batch_size:
            raise ModelUnusable(f"{server.url} has another {model} than the other servers")
        try:
            await server.client.infer(spec, [canary(spec)], CHECK_S)
        except CallError as error:
            # A model may refuse our prompt and take a user's: if it takes none, it is set aside for longer.
            if VERDICTS[error.failure].action is not Action.BISECT:
                raise

    @staticmethod
    async def _ask(
        servers: Sequence[_Server], ask: Callable[[InferenceClient], Awaitable[T]]
    ) -> tuple[dict[_Server, T], dict[_Server, CallError]]:
        """Of each server its answer or its error; once one has answered, the others have OTHERS_S left."""
        tasks = {server: asyncio.ensure_future(ask(server.client)) for server in servers}
        found: dict[_Server, T] = {}
        errors: dict[_Server, CallError] = {}
        try:
            pending = set(tasks.values())
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=OTHERS_S if found else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for server, task in tasks.items():
                    if task in done:
                        try:
                            found[server] = task.result()
                        except CallError as error:
                            errors[server] = error
                if not done:
                    break
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        for server in tasks:
            if server not in found and server not in errors:
                errors[server] = CallError(CallFailure.TIMEOUT, f"no answer within {OTHERS_S:g} s")
        # In the order of TRITON_URL, whoever was first.
        return {server: found[server] for server in servers if server in found}, errors


def _next_may_do_it(error: CallError, requests: int) -> bool:
    alone = requests == 1 and VERDICTS[error.failure].action is Action.BISECT
    return alone or error.failure in _DID_NOT_RUN
