"""`python -m promptbus.messages.schemas [--check]`: write the JSON Schema files, or say which are out of date.

Exit 0: written, or all current. 1: some differ (`--check` only). 2: usage.
"""

import argparse
import sys

from . import FOLDER, out_of_date, schemas, text_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m promptbus.messages.schemas", description="JSON Schema files"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    if parser.parse_args(arguments).check:
        stale = out_of_date()
        for name in stale:
            print(
                f"{FOLDER / name} is out of date; run: python -m promptbus.messages.schemas", file=sys.stderr
            )
        return 1 if stale else 0
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text_of(schema), encoding="utf-8")
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
