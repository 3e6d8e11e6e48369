"""The command line: `promptbus <command>`. One file per command in `promptbus.commands`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

COMMANDS = ("ask", "send", "tail", "dead-letters", "top", "worker", "doctor")

EXAMPLES = """\
examples:
  promptbus ask "What is Kafka?"                  one prompt, its answer on stdout
  promptbus send prompts.jsonl --wait             many prompts, their replies as JSON Lines
  promptbus tail --from-beginning                 every reply there is
  promptbus dead-letters list --since 2h          what the workers gave up, and why
  promptbus worker                                answer prompts
  promptbus top                                   watch them do it

Where Kafka is, and everything else, comes from the environment (KAFKA_BOOTSTRAP, …) and from .env.
`promptbus <command> --help` says more.
"""


class Command(Protocol):
    """What a module in `promptbus.commands` offers. Its imports are light; what it needs to run it imports in `run`."""

    SUMMARY: str

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Ctrl-C is 130 and a closed pipe 141, both without a word."""
    arguments = make_parser().parse_args(argv)
    command: Command = arguments.command
    try:
        code = command.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop_stdout()
        return 141
    except Exception as error:
        from promptbus.commands.outcome import explain

        code = explain(error)
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command's options."""
    parser = argparse.ArgumentParser(
        prog="promptbus",
        description="Answers prompts that arrive on Kafka with batched Triton inference.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"promptbus {version('promptbus')}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name in COMMANDS:
        command: Command = importlib.import_module(f"promptbus.commands.{name.replace('-', '_')}")
        sub = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(command=command)
    return parser


def drop_stdout() -> None:
    """Nobody reads on: the interpreter's own flush at exit shall not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
