"""What the metrics say of settled requests, written in bulk."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptbus_worker.record import Pending
from promptbus_worker.vocabulary import UNKNOWN_MODEL

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics


def count_settled(metrics: Metrics, settled: Sequence[Pending], *, now: float, wall_ms: float) -> None:
    """Count these. `now` is monotonic seconds, `wall_ms` Unix milliseconds."""
    by_model: defaultdict[str, list[Pending]] = defaultdict(list)
    for request in settled:
        by_model[request.model or UNKNOWN_MODEL].append(request)
    for model, requests in by_model.items():
        codes = [request.code for request in requests]
        # Nearly all are None, and a Counter of many takes longer than to count just those.
        answered = codes.count(None)
        if answered:
            metrics.requests_total[model, "ok"].inc(answered)
        if answered < len(codes):
            for code, count in Counter([code for code in codes if code is not None]).items():
                metrics.requests_total[model, code].inc(count)
        metrics.reply_duration_seconds[model].observe_many([now - r.answered_at for r in requests])
        metrics.queue_duration_seconds[model].observe_many(
            [r.dispatched_at - r.record.polled_at for r in requests if r.dispatched_at is not None]
        )
        stamps = [request.record.timestamp_ms for request in requests]
        metrics.response_duration_seconds[model].observe_many(
            [(wall_ms - stamp) / 1000 if stamp < wall_ms else 0.0 for stamp in stamps if stamp >= 0]
        )
        usages = [request.usage for request in requests if request.usage is not None]
        # By kind, and None where the model does not say.
        for kind, column in zip(("prompt", "completion", "total"), zip(*usages, strict=True), strict=False):
            counts = [count for count in column if count is not None]
            if counts:
                metrics.tokens_total[model, kind].inc(sum(counts))
                metrics.request_tokens[model, kind].observe_many(counts)
