"""promptbus: publish prompts to Kafka, read answers from Kafka.

from promptbus import PromptClient

with PromptClient("localhost:9092") as client:
    print(client.ask("What is Kafka?").response)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptbus.async_client import AsyncPromptClient
    from promptbus.client import PromptClient
    from promptbus.errors import (
        ClientClosed,
        DeliveryFailed,
        DuplicateRequestId,
        ForkedClient,
        KafkaUnavailable,
        MessageTooLarge,
        NotAllowed,
        PromptBusError,
        PromptError,
        ReplyTimeout,
        SettingsRefused,
        TopicMissing,
    )
    from promptbus.messages import ErrorCode, InvalidReply, InvalidRequest, Reply, Request
    from promptbus.pending import ReplyFuture

__all__ = [
    "AsyncPromptClient",
    "ClientClosed",
    "DeliveryFailed",
    "DuplicateRequestId",
    "ErrorCode",
    "ForkedClient",
    "InvalidReply",
    "InvalidRequest",
    "KafkaUnavailable",
    "MessageTooLarge",
    "NotAllowed",
    "PromptBusError",
    "PromptClient",
    "PromptError",
    "Reply",
    "ReplyFuture",
    "ReplyTimeout",
    "Request",
    "SettingsRefused",
    "TopicMissing",
]

_HOMES = {
    "AsyncPromptClient": "async_client",
    "PromptClient": "client",
    "ReplyFuture": "pending",
    **dict.fromkeys(("ErrorCode", "InvalidReply", "InvalidRequest", "Reply", "Request"), "messages"),
}


def __getattr__(name: str) -> object:
    # On first use: whoever imports only `promptbus.messages` or `promptbus.settings` shall not load a Kafka client.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"promptbus.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
