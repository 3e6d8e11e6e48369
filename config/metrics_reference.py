"""Writes docs/metrics.md, the reference of every metric, from their declaration.

python -m config.metrics_reference          write it
python -m config.metrics_reference --check  exit 1 if it is not current
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from config.settings_reference import PROJECT
from promptbus_worker.vocabulary import (
    BUILD_INFO,
    EVERY_SERIES,
    FLEET_SERIES,
    LAG_SERIES,
    SLOT_MEMORY,
    WORKER_SERIES,
    Label,
    Series,
)

REFERENCE = PROJECT / "docs" / "metrics.md"


class Question(NamedTuple):
    """What somebody wants to know, and the PromQL that tells."""

    question: str
    query: str


QUESTIONS = (
    Question(
        "How many answers a second, and how many of them errors?",
        "sum by (code) (rate(promptbus_requests_total[5m]))",
    ),
    Question(
        "What share of requests ends in an error?",
        'sum(rate(promptbus_requests_total{code!="ok"}[5m])) / sum(rate(promptbus_requests_total[5m]))',
    ),
    Question(
        "How long does an answer take, from the request's timestamp until it is written (p99)?",
        "histogram_quantile(0.99, sum by (le) (rate(promptbus_response_duration_seconds_bucket[5m])))",
    ),
    Question(
        "How long does a call to Triton take (p99)?",
        "histogram_quantile(0.99, sum by (le) (rate(promptbus_inference_duration_seconds_bucket[5m])))",
    ),
    Question(
        "Or is it the waiting before the call (p99)?",
        "histogram_quantile(0.99, sum by (le) (rate(promptbus_queue_duration_seconds_bucket[5m])))",
    ),
    Question(
        "Or is it Kafka, which acknowledges replies late (p99)?",
        "histogram_quantile(0.99, sum by (le) (rate(promptbus_reply_duration_seconds_bucket[5m])))",
    ),
    Question(
        "How many requests wait, in the worker and at the broker?", "sum by (topic) (promptbus_lag_records)"
    ),
    Question("How old is the oldest request without an answer?", "max by (topic) (promptbus_lag_seconds)"),
    Question("Is it catching up, and when will it be done?", "max(promptbus_time_to_drain_seconds)"),
    Question("Is one partition stuck while the others go on?", "topk(5, promptbus_lag_seconds)"),
    Question(
        "Does Triton refuse, fail or not answer?",
        "sum by (result) (rate(promptbus_inference_calls_total[5m]))",
    ),
    Question("Are calls held back?", "max(promptbus_breaker_open)"),
    Question(
        "Is every call slot in use?", "sum(promptbus_in_flight_batches) / sum(promptbus_concurrency_limit)"
    ),
    Question(
        "How full are batches?",
        "sum(rate(promptbus_batch_size_sum[5m])) / sum(rate(promptbus_batch_size_count[5m]))",
    ),
    Question("Why do batches leave?", "sum by (closed_by) (rate(promptbus_batches_total[5m]))"),
    Question("How many tokens a second?", "sum by (kind) (rate(promptbus_tokens_total[5m]))"),
    Question("Is a call or a reply hanging?", "max(promptbus_oldest_in_flight_seconds)"),
    Question("Do workers crash?", "increase(promptbus_worker_restarts_total[1h])"),
    Question("Does a worker's memory grow?", "promptbus_worker_resident_memory_bytes"),
)

_INTRODUCTION = """\
# Metrics

Written by `python -m config.metrics_reference` from `consumer/promptbus_worker/vocabulary.py`. Scrape
`http://METRICS_HOST:METRICS_PORT/metrics`; one scrape covers the supervisor and all its workers.

- Labels have closed sets of values, and every combination is there at zero from the start, so a rate is right from the
  first event on. What is only known at run time (slots, topics, partitions, versions) has a series while it exists.
- Counters go on when a worker process is started again; they begin at zero with the supervisor.
- Gauges of several worker processes are added up, or the largest is shown, as the table says. Those of a process that
  has ended are gone.
- A record's timestamp is its producer's, or the broker's, as the topic says; ages are of the worker's clock.

## Questions and queries

| question | query |
|---|---|
"""

_OF_LAG = """\
Only of partitions that a running worker of this supervisor owns: one that is taken away has no series, and so has one
whose worker is silent for 10 s. The lag counts offsets from the first request that is not answered on: what is answered
above it counts until that one is, and what transaction markers and compaction take up at the end of a
partition counts, although there is nothing to answer. While partitions are paused, the brokers are asked about every
5 s. A record that waits at the broker, unseen, is taken to be as old as it can be: younger than the last one polled and
than the last moment without lag.
"""


def unit(series: Series) -> str:
    """What the value counts."""
    for suffix, name in (("_seconds", "seconds"), ("_bytes", "bytes")):
        if series.name.endswith(suffix):
            return name
    if series.help.startswith("1 while"):
        return "0 or 1"
    return "always 1" if series is BUILD_INFO else "count"


def label(label: Label) -> str:
    """Its name and its values."""
    if label.values is None:
        also = "".join(f", `{value}`" for value in label.also)
        return f"`{label.name}`: the served models{also}"
    values = ", ".join(f"`{value}`" for value in label.values)
    return f"`{label.name}`: {values}" if values else f"`{label.name}`"


def table(every: Iterable[Series]) -> str:
    """One row per metric."""
    rows = ["| name | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    for series in every:
        labels = "; ".join(map(label, series.labels)) or "-"
        mode = {"livesum": " (added up)", "livemax": " (the largest)", None: ""}[series.mode]
        rows.append(
            f"| `{series.full_name}` | {series.kind}{mode} | {unit(series)} | {labels} | {series.help} |"
        )
    return "\n".join(rows) + "\n"


def buckets(every: Iterable[Series]) -> str:
    """The buckets of every histogram, those with the same ones together."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for series in every:
        if series.buckets:
            groups.setdefault(series.buckets, []).append(f"`{series.name}`")
    return "".join(
        f"- {', '.join(names)}: {', '.join(f'{bound:g}' for bound in bounds)}\n"
        for bounds, names in groups.items()
    )


def reference() -> str:
    """The text of docs/metrics.md."""
    questions = "".join(f"| {question} | `{query}` |\n" for question, query in QUESTIONS)
    sections: Sequence[tuple[str, str]] = (
        ("Of the workers", table((*WORKER_SERIES, BUILD_INFO))),
        ("Of the supervisor", table((*FLEET_SERIES, SLOT_MEMORY))),
        ("Of partitions", table(LAG_SERIES) + "\n" + _OF_LAG),
        ("Buckets", buckets(EVERY_SERIES)),
    )
    return _INTRODUCTION + questions + "".join(f"\n## {title}\n\n{text}" for title, text in sections)


def main(arguments: list[str]) -> int:
    """Write, or check."""
    if "--check" in arguments:
        if REFERENCE.exists() and REFERENCE.read_text() == reference():
            return 0
        print(
            f"{REFERENCE.relative_to(PROJECT)} is not current: python -m config.metrics_reference",
            file=sys.stderr,
        )
        return 1
    REFERENCE.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
