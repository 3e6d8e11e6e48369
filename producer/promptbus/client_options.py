"""What both clients are made from."""

from __future__ import annotations

from typing import TypeVar

from pydantic_settings import BaseSettings

from promptbus.exchange import Exchange
from promptbus.settings import KafkaSettings

S = TypeVar("S", bound=BaseSettings)


def from_environment(settings: type[S]) -> S:
    """Read `settings` from the environment and `.env`. Raises pydantic's ValidationError, a ValueError."""
    return settings()


def make_exchange(
    bootstrap: str | None,
    settings: KafkaSettings | None,
    *,
    request_topic: str | None,
    reply_topic: str | None,
    linger_ms: float,
    connect_timeout_s: float,
    delivery_timeout_s: float,
    refresh_s: float,
) -> Exchange:
    """An exchange that is not yet connected; whatever is not given comes from the environment."""
    found = settings if settings is not None else from_environment(KafkaSettings)
    if bootstrap is not None:
        found = found.model_copy(update={"kafka_bootstrap": bootstrap})
    requests, replies = request_topic or found.kafka_request_topic, reply_topic or found.kafka_reply_topic
    if requests == replies:
        raise ValueError(f"requests and replies are both on {requests!r}; the topics must differ")
    return Exchange(
        found,
        request_topic=requests,
        reply_topic=replies,
        linger_ms=linger_ms,
        connect_timeout_s=connect_timeout_s,
        delivery_timeout_s=delivery_timeout_s,
        refresh_s=refresh_s,
    )
