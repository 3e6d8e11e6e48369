"""What a worker waits for before its first record: brokers, topics, models. It says so while it waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import tenacity
from confluent_kafka.admin import AdminClient

from promptbus_worker import kafka
from promptbus_worker.model import InferenceClient, ModelSpec
from promptbus_worker.outcomes import CallError, ModelUnusable
from promptbus_worker.settings import Settings

log = logging.getLogger(__name__)

SAY_EVERY_S = 5.0
_T = TypeVar("_T")


class Surroundings(NamedTuple):
    """What was found: each topic's `max.message.bytes`, and what each model takes and gives."""

    limits: dict[str, int]
    specs: dict[str, ModelSpec]


async def wait_for_surroundings(
    settings: Settings, client_id: str, triton: InferenceClient, waiting_for: Callable[[str], None]
) -> Surroundings:
    """Wait for Kafka and Triton for as long as it takes; `waiting_for` hears what is missing.

    Raises kafka.Unusable or ModelUnusable for what waiting does not mend.
    """
    admin = kafka.admin_client(settings, client_id)

    async def ask_kafka() -> dict[str, int]:
        return await asyncio.to_thread(_topics_and_limits, admin, settings)

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


def _topics_and_limits(admin: AdminClient, settings: Settings) -> dict[str, int]:
    kafka.ensure_topics(admin, settings)
    return kafka.size_limits(admin, kafka.topics_of(settings))


async def _wait(
    what: str,
    ask: Callable[[], Awaitable[_T]],
    not_yet: Callable[[BaseException], bool],
    waiting_for: Callable[[str], None],
) -> _T:
    said_at = float("-inf")

    def say(state: tenacity.RetryCallState) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            error = state.outcome.exception() if state.outcome else None
            log.warning("waiting for %s", what, extra={"error": str(error)})

    waiting_for(what)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(not_yet),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        before_sleep=say,
    )
    return await retrying(ask)
