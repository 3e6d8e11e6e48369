"""Follow the reply topic: a line for each reply as it arrives, until Ctrl-C.

On a terminal: time, status, request, tokens, latency, and as much of the answer as fits. Elsewhere, or with --json:
the replies as JSON Lines.

exit codes: 0 ended by Ctrl-C, by --count or by its reader · 2 usage · 3 Kafka cannot be read

examples:
  promptbus tail
  promptbus tail --from-beginning --count 10
  promptbus tail --json | jq -r .response
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING

from promptbus.commands.outcome import OK, USAGE, say

if TYPE_CHECKING:
    from confluent_kafka import Message

    from promptbus.messages import Reply

SUMMARY = "follow the replies"

READ_S = 0.2
REFRESH_S = 30.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from-beginning", action="store_true", help="every reply that the topic still holds, first"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N replies")
    parser.add_argument("--json", action="store_true", help="JSON Lines on a terminal too")


def run(arguments: argparse.Namespace) -> int:
    from promptbus.cli import drop_stdout

    if arguments.count is not None and arguments.count < 1:
        say("--count must be at least 1")
        return USAGE
    try:
        follow(
            from_beginning=arguments.from_beginning,
            count=arguments.count,
            as_json=arguments.json or not sys.stdout.isatty(),
        )
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        drop_stdout()
    return OK


def follow(*, from_beginning: bool, count: int | None, as_json: bool) -> None:
    """Print replies until `count` were printed, if it is given."""
    from promptbus.kafka_errors import describe, refused
    from promptbus.reply_reader import ReplyReader
    from promptbus.rights import Right
    from promptbus.settings import KafkaSettings, load

    settings = load(KafkaSettings)
    reader = ReplyReader(settings, settings.kafka_reply_topic)
    try:
        reader.open(5.0, start="beginning" if from_beginning else "end")
        if sys.stderr.isatty():
            say(f"following {settings.kafka_reply_topic!r} on {settings.kafka_bootstrap}; Ctrl-C ends")
        refresh_at = time.monotonic() + REFRESH_S
        printed = 0
        while True:
            for message in reader.read(READ_S):
                error = message.error()
                if error is not None:
                    forbidden = refused(error, settings, Right("READ", "topic", settings.kafka_reply_topic))
                    if forbidden is not None:
                        raise forbidden
                    say(describe(error))
                    continue
                printed += show(message, as_json=as_json)
                if printed == count:
                    return
            if time.monotonic() > refresh_at:
                reader.assign_new_partitions(1.0)
                refresh_at = time.monotonic() + REFRESH_S
    finally:
        reader.close()


def show(message: Message, *, as_json: bool) -> bool:
    """Print one reply; False if the record is none."""
    from promptbus.messages import InvalidReply, decode_reply
    from promptbus.printable import write_bytes

    value = message.value() or b""
    try:
        reply = decode_reply(value)
    except InvalidReply as problem:
        say(f"partition {message.partition()} offset {message.offset()} is no reply: {problem}")
        return False
    if as_json:
        write_bytes(value.replace(b"\n", b" "))
    else:
        width = shutil.get_terminal_size().columns
        write_bytes(as_line(reply, message.timestamp()[1], width).encode(errors="replace"))
    return True


def as_line(reply: Reply, timestamp_ms: int, width: int) -> str:
    """A reply for people, at most `width` characters."""
    from promptbus.printable import on_one_line

    clock = time.strftime("%H:%M:%S", time.localtime(timestamp_ms / 1000))
    tokens = "-" if reply.usage.total_tokens is None else str(reply.usage.total_tokens)
    text = reply.response if reply.error is None else f"{reply.error.code}: {reply.error.message}"
    start = f"{clock} {reply.status:<5} {on_one_line(reply.request_id, 32)} {tokens:>5} tok {reply.timings.total_ms:>7,.0f} ms "
    return start + on_one_line(text or "", max(10, width - len(start)))
