"""What a client may raise.

    PromptBusError
    ├── PromptError          the reply is an error reply; carries it
    ├── ReplyTimeout         no reply in time (also a TimeoutError)
    ├── KafkaUnavailable     no broker answered, or it refused the login (also a ConnectionError)
    ├── SettingsRefused      librdkafka does not accept a setting (also a ValueError)
    ├── TopicMissing         the request or reply topic does not exist
    ├── PlaceMissing         a partition or an offset is not there, or not any more
    ├── NotAllowed           Kafka's access rules forbid it (also a PermissionError)
    ├── DeliveryFailed       Kafka did not take the request
    │   └── MessageTooLarge  … because of its size
    ├── DuplicateRequestId   this request id already waits for its reply
    ├── ClientClosed         used after `close()`, or closed before the reply came
    └── ForkedClient         used in another process than the one that made it

A request that is wrong in itself raises `promptbus.messages.InvalidRequest`; a reply for us that cannot be read
raises `promptbus.messages.InvalidReply`.
"""

from __future__ import annotations

from promptbus.messages import Reply


class PromptBusError(Exception):
    """Anything that a client raises about its own work."""


class PromptError(PromptBusError):
    """The request was answered with an error reply."""

    def __init__(self, reply: Reply) -> None:
        if reply.error is None:
            raise ValueError("an answer is no error")
        super().__init__(f"request {reply.request_id}: {reply.error.message} ({reply.error.code})")
        self.reply = reply
        self.code = reply.error.code
        self.retryable = reply.error.retryable


class ReplyTimeout(PromptBusError, TimeoutError):
    """No reply within the time-out. The request may still be answered later, on the reply topic."""

    def __init__(
        self,
        request_id: str,
        timeout_s: float,
        *,
        acknowledged: bool,
        hint: str | None = None,
        consumers: int | None = None,
    ) -> None:
        sentence = f"no reply to request {request_id} within {timeout_s:g} s"
        if not acknowledged:
            sentence += "; Kafka has not acknowledged the request either"
        super().__init__(f"{sentence}: {hint}" if hint else sentence)
        self.request_id = request_id
        self.timeout_s = timeout_s
        self.acknowledged = acknowledged
        """Whether Kafka took the request."""
        self.hint = hint
        """Why nobody answered, as far as Kafka knows."""
        self.consumers = consumers
        """How many consumers of the workers' group had the request topic; None: not known."""


class KafkaUnavailable(PromptBusError, ConnectionError):
    """No broker could be talked to."""


class SettingsRefused(PromptBusError, ValueError):
    """A setting that librdkafka does not accept."""


class TopicMissing(PromptBusError):
    """A topic does not exist."""

    def __init__(self, topic: str, variable: str, bootstrap: str) -> None:
        super().__init__(f"topic {topic!r} does not exist on {bootstrap}: create it, or set {variable}")
        self.topic = topic


class PlaceMissing(PromptBusError, LookupError):
    """A topic has no such partition, or no record at that offset."""


class NotAllowed(PromptBusError, PermissionError):
    """Kafka's access rules forbid what the client needs."""


class DeliveryFailed(PromptBusError):
    """Kafka did not acknowledge the request; after a time-out it may have been written nevertheless."""


class MessageTooLarge(DeliveryFailed):
    """The request is larger than its topic takes. Sizes are bytes, headers and key included."""

    def __init__(self, size: int, limit: int | None, topic: str) -> None:
        takes = f"{limit:,} bytes" if limit is not None else "less"
        super().__init__(
            f"the request is {size:,} bytes, topic {topic!r} takes {takes} (max.message.bytes): "
            "shorten it, or raise the topic's limit"
        )
        self.size = size
        self.limit = limit


class DuplicateRequestId(PromptBusError):
    """Two requests that wait at the same time may not share an id: their replies could not be told apart."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request id {request_id!r} already waits for its reply: choose another, or leave it out"
        )
        self.request_id = request_id


class ClientClosed(PromptBusError):
    """The client was closed."""


class ForkedClient(PromptBusError):
    """Kafka clients do not survive a fork: their threads stay in the parent."""

    def __init__(self, made_in: int) -> None:
        super().__init__(
            f"this client was made in process {made_in}, which was forked: make a client in each process that uses one"
        )
