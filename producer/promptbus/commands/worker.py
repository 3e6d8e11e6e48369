"""Run the workers: read prompts from Kafka, batch them into Triton calls, write replies.

Settings come from the environment and from .env, which the environment beats. `promptbus worker --settings` lists
them all with their defaults; README.md explains them, and config/worker.env.example is a file to start from.

exit codes: 0 drained · 1 gave up · 2 configuration · 3 drain ran out of time
"""

from __future__ import annotations

import argparse

from promptbus.commands.outcome import USAGE
from promptbus.commands.worker_extra import add_show_settings, missing_extra, print_settings, show_settings

SUMMARY = "run the workers (settings: environment)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settings", action="store_true", help="list the settings and their defaults, and end"
    )
    add_show_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.settings:
        return print_settings()
    if arguments.show_settings:
        return show_settings()
    if missing_extra("worker"):
        return USAGE
    from promptbus.settings import load
    from promptbus_worker import supervisor
    from promptbus_worker.settings import Settings

    return supervisor.run(load(Settings))
