"""What the workers gave up: look at it, send it again, delete it.

A dead letter is a request that got an error reply and lies on KAFKA_DEAD_LETTER_TOPIC as it came, with headers that
say why. `promptbus dead-letters <command> --help` says more.

examples:
  promptbus dead-letters list --since 2h
  promptbus dead-letters show 0:41
  promptbus dead-letters redrive --code model_error --since 2h --rate 50
  promptbus dead-letters purge --until 7d --dry-run
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from promptbus.commands.outcome import USAGE, say
from promptbus.dead_letters import CODES, Selection, parse_place, parse_time

SUMMARY = "list, show, send again or delete what was given up"

LIST = """\
One line for each dead letter, oldest first: the newest --limit of them, or with --json (JSON Lines) all, unless --limit
is given. How many there are of each code comes last, on stderr. PLACE is the partition and offset on the dead letter
topic, ORIGIN those of the request.
"""
SHOW = """\
All headers and the value of dead letters, with control characters replaced; bytes that are no UTF-8 as \\xNN.
"""
REDRIVE = """\
Publish requests again: key, value and headers as they were, to the topic they came from, if that is
KAFKA_REQUEST_TOPIC; --to sends them to TOPIC, wherever they came from. Each gets a second reply, under the request id
of the first, and stays on the dead letter topic until `purge`: the same command again sends it again.

Headers: dlq-* go; deadline goes, for it has passed (--keep-deadline leaves it); request-id becomes the id that the
request was answered under; redrive-count goes up by one.

Every code is sent, also those that clients should not repeat: after the model was mended, model_error is what one
redrives. Left out are dead letters that were cut to fit, and those that are no JSON object, as they would only come
back (--code invalid_request sends them nevertheless).

Ctrl-C stops: what was sent is waited for, and the last line says with which offsets to go on.

exit codes: 0 all sent · 1 some could not be (cut, from another topic, too large) · 2 usage
            3 Kafka did not take all · 130 Ctrl-C
"""
PURGE = """\
Delete dead letters for good. Kafka deletes the beginning of a partition, never records out of the middle: everything
before --until, or to --to-offset, whatever its code. Both: whichever comes first. Asks first, on a terminal.

exit codes: 0 deleted, or nothing to delete · 2 usage, not confirmed · 3 Kafka did not delete
"""

T = TypeVar("T")


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    listing = _command(commands, "list", "one line for each, and how many of each code", LIST)
    _add_filters(listing)
    listing.add_argument("--json", action="store_true", help="JSON Lines")
    listing.add_argument(
        "--limit", type=_whole(0), metavar="N", help="the newest N; 0: all (default: 50, with --json all)"
    )
    listing.set_defaults(act=_list)

    show = _command(commands, "show", "headers and value", SHOW)
    show.add_argument(
        "places",
        nargs="+",
        type=_checked(parse_place),
        metavar="PARTITION:OFFSET",
        help="as `list` prints it",
    )
    show.add_argument("--raw", action="store_true", help="only the value's bytes (of one dead letter)")
    show.set_defaults(act=_show)

    redrive = _command(commands, "redrive", "publish the requests again", REDRIVE)
    _add_filters(redrive)
    redrive.add_argument("--all", action="store_true", help="needed if there is no filter")
    redrive.add_argument("--to", metavar="TOPIC", help="send them to this topic instead")
    redrive.add_argument("--keep-deadline", action="store_true", help="leave the header deadline as it is")
    redrive.add_argument("--rate", type=_rate, metavar="N", help="at most N a second")
    redrive.add_argument("--limit", type=_whole(1), metavar="N", help="the first N only")
    redrive.add_argument("--dry-run", action="store_true", help="send nothing, say what would be sent")
    redrive.set_defaults(act=_redrive)

    purge = _command(commands, "purge", "delete the oldest", PURGE)
    _add_filters(purge, hidden=("--code", "--since", "--from-offset", "--request-id"))
    purge.add_argument("--all", action="store_true", help="everything that is there now")
    purge.add_argument("--dry-run", action="store_true", help="delete nothing, say what would go")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    purge.set_defaults(act=_purge)


def run(arguments: argparse.Namespace) -> int:
    since, until = getattr(arguments, "since", None), getattr(arguments, "until", None)
    if since is not None and until is not None and until <= since:
        say("--until is not after --since")
        return USAGE
    act: Callable[[argparse.Namespace], int] = arguments.act
    return act(arguments)


def selection(arguments: argparse.Namespace) -> Selection:
    """What the filters say."""
    return Selection(
        codes=frozenset(arguments.code),
        since_ms=arguments.since,
        until_ms=arguments.until,
        partitions=frozenset(arguments.partition),
        from_offset=arguments.from_offset,
        to_offset=arguments.to_offset,
        request_ids=frozenset(arguments.request_id),
    )


def _list(arguments: argparse.Namespace) -> int:
    from promptbus.commands.dead_letters_look import list_letters

    return list_letters(selection(arguments), as_json=arguments.json, limit=arguments.limit)


def _show(arguments: argparse.Namespace) -> int:
    from promptbus.commands.dead_letters_look import show_letters

    return show_letters(arguments.places, raw=arguments.raw)


def _redrive(arguments: argparse.Namespace) -> int:
    from promptbus.commands.dead_letters_redrive import redrive

    return redrive(selection(arguments), arguments)


def _purge(arguments: argparse.Namespace) -> int:
    from promptbus.commands.dead_letters_purge import purge

    return purge(selection(arguments), arguments)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_filters(parser: argparse.ArgumentParser, *, hidden: Collection[str] = ()) -> None:
    """`hidden` ones are understood, so that the command can say why it does not take them."""
    form = "30m, 2h or 7d before now, or an ISO time (local unless it names its zone)"
    texts = {
        "--code": f"{', '.join(CODES)}; repeatable",
        "--since": f"given up at this time or later: {form}",
        "--until": f"given up before this time: {form}",
        "--partition": "of the dead letter topic; repeatable",
        "--from-offset": "the first offset",
        "--to-offset": "the last offset, included",
        "--request-id": "the id that it was answered under; repeatable",
    } | dict.fromkeys(hidden, argparse.SUPPRESS)
    which = parser.add_argument_group("which", "all that are named must hold")
    for option in ("--code", "--request-id"):
        which.add_argument(
            option,
            action="append",
            default=[],
            choices=CODES if option == "--code" else None,
            metavar=option.rpartition("-")[2].upper(),
            help=texts[option],
        )
    for option in ("--since", "--until"):
        which.add_argument(option, type=_checked(_time), metavar="TIME", help=texts[option])
    for option in ("--from-offset", "--to-offset"):
        which.add_argument(option, type=_whole(0), metavar="N", help=texts[option])
    which.add_argument(
        "--partition", action="append", default=[], type=_whole(0), metavar="P", help=texts["--partition"]
    )


def _time(text: str) -> int:
    return parse_time(text, time.time())


def _checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """argparse shows its own sentence for a ValueError, and ours for this."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return parsed


def _whole(least: int) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return parsed


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return rate
