"""Hands ended spans to OpenTelemetry's background exporter, bounded: too many or not accepted, they are lost.

Losing spans never holds a request up. How many were lost is in the log, at most every half minute and at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

log = logging.getLogger(__name__)

REPORT_S = 30.0


class BoundedExport(SpanProcessor):
    """At most `capacity` spans wait; what comes beyond that is counted and dropped."""

    def __init__(self, exporter: SpanExporter, *, capacity: int) -> None:
        """Raises ValueError if OTEL_BSP_* contradict each other."""
        self._capacity = capacity
        self._exporter = exporter
        self._handed_over = 0
        self._taken = 0
        self.too_many = 0
        """Dropped because as many waited already."""
        self.not_accepted = 0
        """Lost because the endpoint was not there or refused them."""
        self._reported = 0
        self._report_at = 0.0
        self._closed = False
        self._queue = BatchSpanProcessor(_Counting(self), max_queue_size=capacity)

    @property
    def lost(self) -> int:
        """Spans, since the start."""
        return self.too_many + self.not_accepted

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: only ended spans matter."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it. Never blocks, never raises."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._handed_over - self._taken >= self._capacity or self._closed:
            self.too_many += 1
            return
        self._handed_over += 1
        self._queue.on_end(span)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On the background thread."""
        self._taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:
            log.exception("spans could not be exported")
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self.not_accepted += len(spans)
        self._report(time.monotonic())
        return result

    def close_exporter(self) -> None:
        """On whatever thread shuts the queue down."""
        self._exporter.shutdown()

    def close(self, timeout_s: float) -> None:
        """Export what waits, within this time; what is left then is lost."""
        self._closed = True
        # Its own shutdown may wait as long as an export and its repetitions take.
        ending = threading.Thread(target=self._queue.shutdown, name="span-flush", daemon=True)
        ending.start()
        ending.join(timeout_s)
        if ending.is_alive():
            self.not_accepted += max(0, self._handed_over - self._taken)
        self._report(float("inf"))

    def shutdown(self) -> None:
        """As the provider asks for it."""
        self.close(REPORT_S)

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        """Export what waits now."""
        return self._queue.force_flush(timeout_millis)

    def _report(self, now: float) -> None:
        if self.lost == self._reported or now < self._report_at:
            return
        self._reported, self._report_at = self.lost, now + REPORT_S
        extra = {"too_many": self.too_many, "not_accepted": self.not_accepted}
        log.warning("spans were lost; requests are not affected", extra=extra)


class _Counting(SpanExporter):
    def __init__(self, owner: BoundedExport) -> None:
        self._owner = owner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._owner.export(spans)

    def shutdown(self) -> None:
        self._owner.close_exporter()
