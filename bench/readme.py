"""Writes the benchmark's part of README.md from the latest results.

python -m bench.readme          write it
python -m bench.readme --check  exit 1 if it is not current
"""

import sys
from pathlib import Path

from bench import chart, tables
from bench.results import Results, load

PROJECT = Path(__file__).resolve().parent.parent
LATEST = PROJECT / "bench" / "results" / "latest.json"
CHART = PROJECT / "bench" / "results" / "latest.svg"
README = PROJECT / "README.md"
BEGIN, END = "<!-- benchmark: written by python -m bench.readme -->\n", "<!-- end of benchmark -->\n"
NOT_YET = "Not measured yet.\n"


def section(results: Results) -> str:
    """What stands between the marks."""
    cores, when = results.machine.get("cores", "?"), results.measured_at[:10]
    machine = results.machine
    worker = f", the worker {machine['worker']}" if "worker" in machine else ""
    python = f", Python {machine['python']} ({machine['python build']})" if "python build" in machine else ""
    return "\n".join(
        [
            f"![prompts per second beside a loop without Kafka]({CHART.relative_to(PROJECT)})\n",
            f"{cores} cores for Kafka, Triton, worker and load together{worker}{python}; medians of {results.rounds} interleaved "
            f"rounds, {when}.\n",
            tables.markdown(tables.aims(results)),
            "The instant model, everybody beside each other (CPU in µs per prompt):\n",
            tables.markdown(tables.throughput(results, "instant")),
            tables.markdown(tables.latency(results)),
        ]
    )


def readme(results: Results | None) -> str:
    """README with its part current; None: nothing was measured yet."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{NOT_YET if results is None else section(results)}{END}{after}"


def write() -> None:
    """README and chart, from the latest results."""
    for path, text in wanted().items():
        path.write_text(text)


def wanted() -> dict[Path, str]:
    """The texts that follow from the latest results."""
    if not LATEST.exists():
        return {README: readme(None)}
    results = load(LATEST)
    return {README: readme(results), CHART: chart.svg(results)}


def main(arguments: list[str]) -> int:
    """Write, or check."""
    if "--check" not in arguments:
        write()
        return 0
    stale = [path for path, text in wanted().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(PROJECT)} is not current: python -m bench.readme", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
