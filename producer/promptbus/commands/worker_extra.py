"""What `worker` and `doctor` share: is the extra installed, and which settings are there."""

from __future__ import annotations

import argparse
import textwrap
from importlib.util import find_spec

from promptbus.commands.outcome import OK, say

# of the extra `worker`; the client never imports any of them
REQUIRED = (
    "promptbus_worker",
    "tritonclient",
    "aiohttp",
    "geventhttpclient",
    "numpy",
    "prometheus_client",
    "uvloop",
)


def missing_extra(command: str) -> bool:
    """Whether the worker's libraries are absent; if so, says how to get them."""
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        say(f"`promptbus {command}` needs {', '.join(missing)}: pip install 'promptbus[worker]'")
    return bool(missing)


def add_show_settings(parser: argparse.ArgumentParser) -> None:
    """`--show-settings`, for which `show_settings` is the answer."""
    parser.add_argument(
        "--show-settings",
        action="store_true",
        help="print the settings as they are now, secrets masked, and end",
    )


def show_settings() -> int:
    """Every setting as it is now, from the environment and `.env`, as lines of an `.env`; secrets are masked."""
    from promptbus.masking import shown
    from promptbus.settings import load
    from promptbus_worker.settings import Settings

    for variable, value in shown(load(Settings)):
        print(f"{variable}={value}")
    return OK


def print_settings() -> int:
    """Every setting: its variable, its default, what it means."""
    from promptbus_worker.settings import Settings

    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        shown = "-" if default in (None, "", {}) else str(default)
        print(f"{name.upper()}={shown}")
        print(textwrap.indent(textwrap.fill(field.description or "", 100), "    "))
    return OK
