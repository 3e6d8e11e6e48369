"""What a run of the benchmark found, as it is kept in JSON."""

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from bench import environments
from bench.measuring.figures import Figures
from stack import checks

PACKAGES = ("confluent-kafka", "tritonclient", "aiohttp", "uvloop", "numpy")


@dataclass(slots=True)
class Results:
    """`rows`: workload → contender → its figures, one for each round.

    `sweeps`: workload → contender → concurrency → prompts per second. `missing`: contender → why it is not there.
    """

    measured_at: str = ""
    rounds: int = 0
    quick: bool = False
    machine: dict[str, str] = field(default_factory=dict)
    sweeps: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, contender: str, figures: Figures) -> None:
        """One round's."""
        self.rows.setdefault(row, {}).setdefault(contender, []).append(figures)

    def of(self, row: str, contender: str) -> list[Figures]:
        """Of all rounds; empty if it was not measured."""
        return self.rows.get(row, {}).get(contender, [])


_ADAPTER = TypeAdapter(Results)


def here(rounds: int, *, quick: bool) -> Results:
    """Empty results of this machine."""
    return Results(datetime.now(UTC).isoformat(timespec="seconds"), rounds, quick, _machine())


def load(path: Path) -> Results:
    """Raises OSError or ValueError."""
    return _ADAPTER.validate_json(path.read_bytes())


def save(results: Results, path: Path) -> None:
    """As JSON, one line for each figure, with no more digits than mean something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _ADAPTER.dump_json(results)
    path.write_text(json.dumps(json.loads(text, parse_float=_rounded), indent=1, ensure_ascii=False) + "\n")


def _rounded(text: str) -> float:
    return round(float(text), 3)


def _machine() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "cores": str(cores),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "python build": "optimised" if checks.is_optimised() else "not optimised",
        "worker": environments.worker_state(),
    }
    return facts | {name: version(name) for name in PACKAGES}
