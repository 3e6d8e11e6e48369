"""`python -m grafana` writes dashboards/*.json; `--check` says which are not current."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grafana.board import Board
from grafana.overview import OVERVIEW
from grafana.runbook import RUNBOOK
from grafana.triton import TRITON
from grafana.worker import WORKER

BOARDS = (OVERVIEW, WORKER, TRITON, RUNBOOK)


def main(arguments: Sequence[str], boards: Sequence[Board] = BOARDS) -> int:
    texts = {board.file: board.json() for board in boards}
    if "--check" in arguments:
        stale = [file.name for file, text in texts.items() if not file.exists() or file.read_text() != text]
        if stale:
            print(f"{', '.join(stale)}: not current, run `python -m grafana`", file=sys.stderr)
        return 1 if stale else 0
    for file, text in texts.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
