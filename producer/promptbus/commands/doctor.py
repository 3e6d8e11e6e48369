"""Check brokers, topics, sizes, rights, Triton, its model and tensors; say what is wrong and how to mend it.

Settings come from the environment and from .env, as for `promptbus worker` (`promptbus worker --settings` lists them).
"""

from __future__ import annotations

import argparse

from promptbus.commands.outcome import USAGE
from promptbus.commands.worker_extra import add_show_settings, missing_extra, show_settings

SUMMARY = "check what the workers need (settings: environment)"


def configure(parser: argparse.ArgumentParser) -> None:
    add_show_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.show_settings:
        return show_settings()
    if missing_extra("doctor"):
        return USAGE
    from promptbus.settings import load
    from promptbus_worker import doctor
    from promptbus_worker.settings import Settings

    return doctor.run(load(Settings))
