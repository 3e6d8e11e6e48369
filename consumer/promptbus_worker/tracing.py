"""Traces: what the path tells of its work, and the nothing that hears it unless an OTLP endpoint is set.

A request's span `process` begins when it was polled and ends when its reply is acknowledged, as a child of the context
in its headers. From its first call on, or from the moment it is refused, `Pending.traceparent` is that span's: so the
reply carries it without knowing. A call's span links to the spans of all its requests.

Tracing is off unless the environment names an endpoint; then every method here is a call of nothing, once per batch.
What is on is in `spans.py`, which alone imports OpenTelemetry.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Protocol

from promptbus_worker.record import Pending

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class Tracing(Protocol):
    """What the path tells. Nothing here blocks or raises. All on the event loop, but `close`."""

    def begin(self, requests: Sequence[Pending]) -> None:
        """Their replies are about to be made; those that have a span already keep it."""
        ...

    def call(self, model: str, requests: Sequence[Pending]) -> AbstractContextManager[None]:
        """A call with these, as a block; what it raises is the call's failure. Begins their spans too."""
        ...

    def settled(self, requests: Sequence[Pending]) -> None:
        """Their replies are acknowledged."""
        ...

    def given_back(self, requests: Sequence[Pending]) -> None:
        """They are left to their partition's next owner."""
        ...

    def forget(self) -> None:
        """An epoch is over: what is open and not live any more is somebody else's."""
        ...

    def close(self, timeout_s: float) -> None:
        """Export what is left, for no longer than this. Blocks."""
        ...


class Off:
    """No traces: the context in a request's headers goes to its reply as it is."""

    _NO_CALL: AbstractContextManager[None] = nullcontext()

    def begin(self, requests: Sequence[Pending]) -> None: ...

    def call(self, model: str, requests: Sequence[Pending]) -> AbstractContextManager[None]:
        return self._NO_CALL

    def settled(self, requests: Sequence[Pending]) -> None: ...

    def given_back(self, requests: Sequence[Pending]) -> None: ...

    def forget(self) -> None: ...

    def close(self, timeout_s: float) -> None: ...


OFF: Tracing = Off()


def from_environment(environ: Mapping[str, str], *, name: str, group: str) -> Tracing:
    """As the OTEL_* variables say. `name`: this process's; `group`: the consumer group.

    What they ask for and cannot be done is told in one line of the log; traces are no reason not to answer prompts.
    """
    if not wanted(environ):
        return OFF
    refusal = _refusal(environ)
    if refusal is None:
        from promptbus_worker.spans import Spans

        try:
            return Spans.exporting(environ, name=name, group=group)
        except ValueError as error:
            refusal = str(error)
    log.error(f"traces are off: {refusal}")
    return OFF


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether an endpoint is set, and nothing switches traces off."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp")
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and exporter != "none" and any(environ.get(name) for name in _ENDPOINTS)


def _refusal(environ: Mapping[str, str]) -> str | None:
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter!r}, and only otlp (or none) is offered"
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        return f"the OTLP protocol is {protocol!r}, and only {_PROTOCOL} is offered (port 4318 of most collectors)"
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        return "an OTLP endpoint is set, but OpenTelemetry is not installed: pip install 'promptbus[tracing]'"
    return None
