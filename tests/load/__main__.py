"""`make overload` and `make soak`: more than Triton can do for minutes, and half of it for half an hour.

    python -m tests.load overload --minutes 5
    python -m tests.load soak --minutes 30

Exit 0: every bound is kept. Exit 1: one is not, or the run could not be made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time

from stack.cache import PROJECT
from stack.errors import StackError
from stack.process import end_like_an_interrupt
from tests.load.overload import Bounds, Overload, Phases, overload
from tests.load.soak import Soak, soak
from tests.load.stand import running, servers

FOLDER = PROJECT / ".stack" / "load"
CAPACITY_S = 20.0
CALM_S, AFTER_S = 30.0, 60.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Load a whole system.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, minutes, what in (
        ("overload", 5.0, "three times the capacity"),
        ("soak", 30.0, "half of the capacity: nothing grows"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--minutes", type=float, default=minutes, help=f"for how long ({minutes:g})")
    arguments = parser.parse_args()
    end_like_an_interrupt()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    folder = FOLDER / arguments.command
    seconds = arguments.minutes * 60
    found: Overload | Soak
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say("starting Kafka and Triton")
        with servers(folder) as (kafka, triton), running(kafka, triton, folder, say) as stand:
            if arguments.command == "overload":
                found = overload(stand, Phases(CAPACITY_S, CALM_S, seconds, AFTER_S), say, Bounds())
            else:
                found = soak(stand, seconds, CAPACITY_S, say)
    except KeyboardInterrupt:
        print("interrupted; everything that was started has ended")
        return 130
    except (StackError, AssertionError) as error:
        print(f"the run could not be made: {error}")
        return 1
    file = folder / "found.json"
    file.write_text(json.dumps(found.as_json(), indent=1) + "\n")
    print(found.sentence())
    for violation in found.violations:
        print(f"  violated: {violation}")
    print(f"figures: {file}, the workers' log beside it")
    return 1 if found.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
