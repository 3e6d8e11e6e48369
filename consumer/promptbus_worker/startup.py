"""What a worker waits for before its first record: brokers, topics, models. It says so while it waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import tenacity
from confluent_kafka.admin import AdminClient

from promptbus.kafka_errors import ConnectionNotes
from promptbus_worker import kafka
from promptbus_worker.model import InferenceClient, ModelSpec
from promptbus_worker.outcomes import CallError, CallFailure, ModelUnusable
from promptbus_worker.settings import Settings

log = logging.getLogger(__name__)

SAY_EVERY_S = 5.0
REFUSED_S = 10.0
"""Credentials and certificates that are refused for this long will be refused tomorrow; a moment's refusal is a
service that has just been started."""
_T = TypeVar("_T")


class Refused(Exception):
    """Kafka or Triton does not let us in; the text says what to do."""


class Surroundings(NamedTuple):
    """What was found: each topic's `max.message.bytes`, and what each model takes and gives."""

    limits: dict[str, int]
    specs: dict[str, ModelSpec]


async def wait_for_surroundings(
    settings: Settings, client_id: str, triton: InferenceClient, waiting_for: Callable[[str], None]
) -> Surroundings:
    """Wait for Kafka and Triton for as long as it takes; `waiting_for` hears what is missing.

    Raises kafka.Unusable, ModelUnusable or Refused for what waiting does not mend.
    """
    notes = ConnectionNotes()
    admin = kafka.admin_client(settings, client_id, notes)

    async def ask_kafka() -> dict[str, int]:
        return await asyncio.to_thread(_topics_and_limits, admin, settings, notes)

    limits = await _wait(
        f"Kafka at {settings.kafka_bootstrap}",
        ask_kafka,
        lambda error: isinstance(error, kafka.NotYet),
        waiting_for,
    )
    specs = {}
    for model in settings.models:

        async def ask_triton(model: str = model) -> ModelSpec:
            return await triton.read_spec(model, settings.triton_model_version)

        what = f"Triton at {settings.triton_url} to serve {model}"
        specs[model] = await _wait(what, ask_triton, _may_come, waiting_for)
    return Surroundings(limits, specs)


def _may_come(error: BaseException) -> bool:
    return isinstance(error, CallError) and not isinstance(error, ModelUnusable)


def _is_refusal(error: BaseException | None) -> bool:
    """A service is there and does not let us in: wrong credentials, a certificate that nobody trusts."""
    if isinstance(error, CallError):
        return error.failure is CallFailure.FORBIDDEN
    return isinstance(error, kafka.NotYet) and error.refused


def _topics_and_limits(admin: AdminClient, settings: Settings, notes: ConnectionNotes) -> dict[str, int]:
    kafka.ensure_topics(admin, settings, notes)
    return kafka.size_limits(admin, kafka.topics_of(settings))


async def _wait(
    what: str,
    ask: Callable[[], Awaitable[_T]],
    not_yet: Callable[[BaseException], bool],
    waiting_for: Callable[[str], None],
) -> _T:
    said_at = float("-inf")
    refused_since: float | None = None

    def say(state: tenacity.RetryCallState) -> None:
        nonlocal said_at, refused_since
        now = time.monotonic()
        error = state.outcome.exception() if state.outcome else None
        if now - said_at >= SAY_EVERY_S:
            said_at = now
            log.warning("waiting for %s", what, extra={"error": str(error)})
        if not _is_refusal(error):
            refused_since = None
        elif refused_since is None:
            refused_since = now
        elif now - refused_since >= REFUSED_S:
            raise Refused(str(error)) from error

    waiting_for(what)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(not_yet),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        before_sleep=say,
    )
    return await retrying(ask)
