"""`promptbus dead-letters redrive`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from promptbus.commands.ctrl_c import CtrlC
from promptbus.commands.outcome import INTERRUPTED, NO_REPLY, NOT_ALL, OK, USAGE, say
from promptbus.dead_letter_reader import DeadLetterReader
from promptbus.dead_letters import Obstacle, Selection, Span, by_code, some
from promptbus.progress import Progress
from promptbus.redrive import Redrive
from promptbus.request_writer import RequestWriter
from promptbus.settings import KafkaSettings, load

LINGER_MS = 20.0
DELIVERY_S = 30.0
CONNECT_S = 5.0


def redrive(selection: Selection, arguments: argparse.Namespace) -> int:
    """Send them again; returns the exit code."""
    if selection == Selection() and not arguments.all:
        say(
            "which? name a filter (--code, --since, …), or --all for everything; --dry-run shows what it would be"
        )
        return USAGE
    settings = load(KafkaSettings)
    target: str = arguments.to or settings.kafka_request_topic
    if target in (settings.kafka_dead_letter_topic, settings.kafka_reply_topic):
        say(f"--to {target}: no requests go to the topic of replies or of dead letters")
        return USAGE
    reader = DeadLetterReader(settings)
    writer: RequestWriter | None = None
    progress = Progress()
    try:
        spans = reader.spans(selection)
        reader.partitions(
            target, "--to" if arguments.to else "KAFKA_REQUEST_TOPIC", CONNECT_S, operation="WRITE"
        )
        if not arguments.dry_run:
            writer = RequestWriter(settings, target, linger_ms=LINGER_MS, delivery_timeout_s=DELIVERY_S)
            writer.open(CONNECT_S)
        with CtrlC() as ctrl_c:
            run = Redrive(
                writer,
                selection=selection,
                request_topic=settings.kafka_request_topic,
                to=arguments.to,
                keep_deadline=arguments.keep_deadline,
                rate=None if arguments.dry_run else arguments.rate,
                limit=arguments.limit,
                on_progress=lambda sent: progress.show(sent, f"{sent:,} redriven"),
                stop=ctrl_c.pressed,
            )
            run.run(ctrl_c.while_waiting(reader.letters(spans)))
    finally:
        progress.clear()
        if writer is not None:
            writer.close()
        reader.close()
    for sentence in report(run, spans, settings.kafka_request_topic):
        say(sentence)
    elapsed = "" if arguments.dry_run else f" in {progress.elapsed_s:,.1f} s"
    say(f"{'would redrive' if arguments.dry_run else 'redriven'} to {target!r}: {by_code(run.sent)}{elapsed}")
    if run.interrupted:
        return INTERRUPTED
    if run.failure is not None or run.unacknowledged:
        return NO_REPLY
    return NOT_ALL if run.too_large or any(kind is not Obstacle.NO_REQUEST for kind in run.obstacles) else OK


def report(run: Redrive, spans: Sequence[Span], request_topic: str) -> list[str]:
    """What was not sent and why, and how to go on."""
    sentences = []
    for kind, places in run.obstacles.items():
        sentence = f"not redriven, {kind}: {len(places):,} ({some(places)})"
        if kind is Obstacle.OTHER_TOPIC:
            names = ", ".join(f"{topic!r} {number:,}" for topic, number in run.other_topics.most_common())
            sentence += f"; {names}; KAFKA_REQUEST_TOPIC is {request_topic!r}; --to TOPIC sends them anywhere"
        elif kind is Obstacle.NO_REQUEST:
            sentence += "; it would only come back; --code invalid_request sends it nevertheless"
        sentences.append(sentence)
    sentences += [f"not redriven, {place}: {error}" for place, error in run.too_large.items()]
    if run.unacknowledged:
        sentences.append(
            f"not acknowledged, though perhaps written: {len(run.unacknowledged):,} ({some(sorted(run.unacknowledged))})"
        )
    if run.failure is not None:
        sentences.append(str(run.failure))
    # With its end: what is redriven and dies again comes after it, and is not to be sent a third time.
    parts = [
        f"--partition {span.partition} --from-offset {span.start} --to-offset {span.end - 1}"
        for span in run.remaining(spans)
    ]
    if parts:
        sentences.append(
            f"stopped before {run.stopped_at}; to go on, the same with {', then with '.join(parts)}"
        )
    return sentences
