"""Publish many requests: each line of FILE is one request object, as in {"prompt": "What is Kafka?"}.

Lines are checked before they are sent; the first that is no request ends the run, with its number and the reason
(--skip-invalid goes on, --raw checks nothing). What was sent before it stays sent.

With --wait the replies are written to stdout as JSON Lines, in the order in which they arrive; each carries its
request_id. A line whose request_id is that of a request not yet answered is held back until that one is.

exit codes: 0 all sent (--wait: all answered) · 1 an error reply · 2 usage, a line that is no request
            3 Kafka did not take all, or no reply for --timeout seconds

examples:
  promptbus send prompts.jsonl
  promptbus send prompts.jsonl --wait > replies.jsonl
  generate-prompts | promptbus send -
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from promptbus.commands.ctrl_c import CtrlC
from promptbus.commands.outcome import INTERRUPTED, NO_REPLY, OK, USAGE, say
from promptbus.errors import MessageTooLarge, PromptBusError
from promptbus.flush import flush
from promptbus.progress import Progress
from promptbus.request_lines import BadLine, RequestLine, read_requests

SUMMARY = "publish many prompts from a JSON Lines file"

LINGER_MS = 20.0  # for throughput
POLL_EVERY = 200  # records


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.jsonl", help="requests, one object a line; `-` reads stdin")
    parser.add_argument("--wait", action="store_true", help="write the replies to stdout as JSON Lines")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="with --wait: give up when no reply came for S seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=10_000,
        metavar="N",
        help="with --wait: most requests that wait at a time (default: %(default)d)",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="report lines that are no request, and go on"
    )
    parser.add_argument("--raw", action="store_true", help="send every line as it is, unchecked")


def run(arguments: argparse.Namespace) -> int:
    if arguments.in_flight < 1 or arguments.timeout <= 0:
        say("--in-flight and --timeout must be above 0")
        return USAGE
    skipped = Skipped(arguments.skip_invalid)
    try:
        with opened(arguments.file) as (file, name):
            lines = read_requests(file, name, raw=arguments.raw, on_invalid=skipped.add)
            if arguments.wait:
                from promptbus.commands.send_waiting import send_and_wait

                return send_and_wait(lines, name, skipped, arguments.timeout, arguments.in_flight)
            return send(lines, name, skipped)
    except OSError as problem:
        if problem.filename is None:
            raise
        say(f"{arguments.file} cannot be read: {problem.strerror}")
        return USAGE


class Skipped:
    """Lines that are no requests: counted and told, or the end of the run."""

    def __init__(self, go_on: bool) -> None:
        self.count = 0
        self._go_on = go_on

    def add(self, bad: BadLine) -> None:
        """Raises `bad` unless lines may be skipped."""
        if not self._go_on:
            raise bad
        self.count += 1
        say(f"{bad}; skipped")

    def __str__(self) -> str:
        return f", skipped {self.count:,} that are no requests" if self.count else ""


def send(lines: Iterator[RequestLine], name: str, skipped: Skipped) -> int:
    """Publish without waiting for replies."""
    from promptbus.request_writer import RequestWriter
    from promptbus.settings import KafkaSettings, load
    from promptbus.topic_reader import TopicReader

    settings = load(KafkaSettings)
    topic = settings.kafka_request_topic
    check = TopicReader(settings, topic)
    try:
        check.partitions(topic, "KAFKA_REQUEST_TOPIC", 5.0, operation="WRITE")
    finally:
        check.close()
    writer = RequestWriter(settings, topic, linger_ms=LINGER_MS, delivery_timeout_s=30.0)
    writer.open(5.0)
    progress = Progress()
    taken, queued = 0, 0
    failure: PromptBusError | None = None

    def delivered(error: PromptBusError | None) -> None:
        nonlocal taken, failure
        if error is None:
            taken += 1
        else:
            failure = failure or error

    stopped: BadLine | None = None
    interrupted = False
    with CtrlC() as ctrl_c:
        try:
            for line in ctrl_c.while_waiting(lines):
                try:
                    writer.publish_waiting(line.value, delivered=delivered)
                    queued += 1
                except MessageTooLarge as refusal:
                    skipped.add(BadLine(name, line.number, str(refusal)))
                if queued % POLL_EVERY == 0:
                    writer.poll()
                    progress.show(taken, f"{taken:,} sent")
                if failure is not None or ctrl_c.pressed():
                    break
        except BadLine as bad:
            stopped = bad
        except PromptBusError as error:
            failure = failure or error
        except KeyboardInterrupt:
            interrupted = True
        left = flush(writer, lambda: failure is None and not interrupted and not ctrl_c.pressed(), 1.0)
        interrupted = interrupted or ctrl_c.pressed()
        writer.close()
    progress.clear()
    if stopped is not None:
        say(str(stopped))
    if failure is not None or left:
        say(f"{queued - taken:,} requests were not acknowledged" + (f": {failure}" if failure else ""))
    rate = taken / progress.elapsed_s
    say(
        f"sent {taken:,} request{'s' if taken != 1 else ''} to {topic!r} in {progress.elapsed_s:,.1f} s ({rate:,.0f}/s){skipped}"
    )
    if interrupted:
        return INTERRUPTED
    if failure is not None or left:
        return NO_REPLY
    return OK if stopped is None else USAGE


@contextmanager
def opened(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """The file and what to call it; `-` is stdin."""
    if path == "-":
        yield sys.stdin.buffer, "stdin"
    else:
        with open(path, "rb") as file:
            yield file, path
