"""`promptbus dead-letters purge`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from promptbus.commands.outcome import NO_REPLY, OK, USAGE, say
from promptbus.dead_letter_reader import ASK_S, DeadLetterReader
from promptbus.dead_letters import Selection, Span, by_code
from promptbus.progress import Progress
from promptbus.settings import KafkaSettings, load


def purge(selection: Selection, arguments: argparse.Namespace) -> int:
    """Delete the beginning of partitions; returns the exit code."""
    problem = refusal(selection, everything=arguments.all)
    if problem is None and not (arguments.dry_run or arguments.yes or sys.stdin.isatty()):
        problem = "nobody can be asked here, as stdin is no terminal: add --yes (or --dry-run)"
    if problem is not None:
        say(problem)
        return USAGE
    settings = load(KafkaSettings)
    reader = DeadLetterReader(settings)
    topic = reader.topic
    counts: Counter[str] = Counter()
    progress = Progress()
    try:
        if selection.to_offset is not None and not selection.partitions:
            partitions = reader.partitions(topic, "KAFKA_DEAD_LETTER_TOPIC", ASK_S)
            if len(partitions) > 1:
                say(f"--to-offset needs --partition, for {topic!r} has {len(partitions)} of them")
                return USAGE
        spans = reader.prefixes(selection)
        for letter in reader.letters(spans):
            counts[letter.code] += 1
            progress.show(counts.total(), f"{counts.total():,} counted")
    finally:
        progress.clear()
        reader.close()
    if not spans:
        say(f"nothing to delete on {topic!r}")
        return OK
    what = f"{by_code(counts)} of {topic!r}, {where(spans)}"
    if arguments.dry_run:
        say(f"would delete {what}")
        return OK
    if not arguments.yes and not confirmed(f"Delete {what}, for good? Type yes: "):
        say("nothing was deleted")
        return USAGE
    from promptbus.delete_records import delete_before

    failures = delete_before(settings, topic, spans)
    for partition, error in failures.items():
        say(f"partition {partition}: {error}")
    done = [span for span in spans if span.partition not in failures]
    if done:
        say(f"deleted {what}" if not failures else f"deleted of {topic!r}: {where(done)}")
    return NO_REPLY if failures else OK


def refusal(selection: Selection, *, everything: bool) -> str | None:
    """Why this cannot be purged, if so."""
    middle = [
        option
        for option, given in (
            ("--code", selection.codes),
            ("--request-id", selection.request_ids),
            ("--since", selection.since_ms is not None),
            ("--from-offset", selection.from_offset is not None),
        )
        if given
    ]
    if middle:
        return (
            f"purge cannot take {' and '.join(middle)}: Kafka only deletes everything before an offset, "
            "whatever it is; say how far with --until TIME or --to-offset N"
        )
    if not everything and selection.until_ms is None and selection.to_offset is None:
        return "how far? name --until TIME, --to-offset N, or --all for everything that is there now"
    return None


def where(spans: Sequence[Span]) -> str:
    """The places that go."""
    return ", ".join(
        f"partition {span.partition} offsets {span.start:,} to {span.end - 1:,}" for span in spans
    )


def confirmed(question: str) -> bool:
    """Whether the answer is yes."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"
