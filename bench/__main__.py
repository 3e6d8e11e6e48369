"""Measures promptbus beside what else one could do: the same prompts, the same Kafka, the same Triton.

Tables go to the terminal, figures to a JSON file, bars to an SVG file. Exit codes: 0; 1 when something did not work; 2 for
options that contradict each other; 3 when a ratio fell beyond the tolerance below what bench/recorded.json holds.

A run of everything replaces bench/results/latest.json, its chart and README's table; any other goes to .stack/bench/.
"""

import argparse
import platform
import sys
import time
from dataclasses import replace

from confluent_kafka import KafkaException

from bench import chart, readme, recorded, rounds, tables, workloads
from bench.contenders.known import CONTENDERS
from bench.environments import COMPILED
from bench.results import Results, here, save
from bench.services import Services
from bench.workloads import BY_NAME, DEFAULT, REAL, Workload
from stack.cache import PROJECT
from stack.errors import StackError
from stack.process import end_like_an_interrupt

SCRATCH = PROJECT / ".stack" / "bench"
ROUNDS, QUICK_ROUNDS = 5, 3


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="less than three minutes: the ratios that matter most"
    )
    made.add_argument(
        "--peers", action="store_true", help="with FastStream, Quix Streams and MLServer, 20 s each"
    )
    made.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    made.add_argument("--workloads", default="", metavar="A,B", help=_workloads_help())
    made.add_argument(
        "--contenders", default="", metavar="A;B", help="only these, by their names in the tables"
    )
    made.add_argument("--window", type=float, metavar="S", help="seconds of every window")
    made.add_argument("--record", action="store_true", help="write this run's ratios to bench/recorded.json")
    return made


def _workloads_help() -> str:
    lines = [
        f"{w.name}: {w.about}{'' if w.name in DEFAULT else ' (only if named)'}" for w in BY_NAME.values()
    ]
    return "only these:\n" + "\n".join(lines)


def chosen(options: argparse.Namespace) -> list[Workload]:
    """What the options ask for. Raises StackError."""
    names = [name.strip() for name in options.workloads.split(",") if name.strip()]
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise StackError(f"There is no workload {', '.join(unknown)}; there are {', '.join(BY_NAME)}.")
    if options.quick:
        picked = [w for w in workloads.quick() if not names or w.name in names]
    else:
        picked = [BY_NAME[name] for name in names or DEFAULT]
    if options.peers:
        picked = workloads.with_peers(picked)
    if options.window:
        picked = [replace(w, window_s=options.window, peer_window_s=options.window) for w in picked]
    only = [name.strip() for name in options.contenders.split(";") if name.strip()]
    strangers = set(only) - set(CONTENDERS)
    if strangers:
        raise StackError(f"There is no contender {', '.join(strangers)}; there are {'; '.join(CONTENDERS)}.")
    if only:
        picked = [replace(w, contenders=tuple(c for c in w.contenders if c in only)) for w in picked]
    return [w for w in picked if w.contenders]


def keep(results: Results, *, everything: bool) -> None:
    """Write the files, and say where they are."""
    if everything:
        save(results, readme.LATEST)
        readme.write()
        print(f"\n{readme.LATEST.relative_to(PROJECT)}, its chart and README are written.")
        return
    save(results, SCRATCH / "last.json")
    (SCRATCH / "last.svg").write_text(chart.svg(results))
    print(f"\n{(SCRATCH / 'last.json').relative_to(PROJECT)} and last.svg are written.")


def judge(results: Results) -> int:
    """Hold the ratios against those recorded; the exit code."""
    known = recorded.load()
    sentences = recorded.step_backs(results, known)
    for sentence in sentences:
        print(f"✗ {sentence}", file=sys.stderr)
    if sentences and results.machine.get("worker") != COMPILED:
        print("The worker is not compiled here, and those recorded are: make compile.", file=sys.stderr)
    count = recorded.judged(results, known)
    if not count:
        print(
            "No ratio of this run is recorded in bench/recorded.json (--record does it), so nothing is compared."
        )
    elif not sentences:
        print(f"✓ {count} ratios are within tolerance of those recorded.")
    return 3 if sentences else 0


def main(arguments: list[str]) -> int:
    """Measure, show, keep, judge."""
    options = parser().parse_args(arguments)
    if platform.system() != "Linux":
        print("✗ The benchmark reads CPU and memory from /proc: it needs Linux.", file=sys.stderr)
        return 1
    end_like_an_interrupt()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    failure = ""
    results = here(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS), quick=options.quick)
    try:
        picked = rounds.available(chosen(options), results, say)
        engine = "llama_cpp" if any(workload.model == REAL for workload in picked) else None
        with Services(engine=engine, say=say, long_run=not options.quick) as services:
            rounds.run(picked, results, services, say)
    except StackError as error:
        failure = str(error)
    except KafkaException as error:
        failure = f"Kafka: {error.args[0].str()}"
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    if results.rows:
        print(f"\n{tables.report(results)}")
    for name, reason in results.missing.items():
        print(f"\nwithout {name}: {reason}")
    if failure:
        print(f"\n✗ {failure}", file=sys.stderr)
        return 1
    everything = not (options.quick or options.workloads or options.contenders or options.window)
    keep(results, everything=everything and results.rounds >= ROUNDS)
    if options.record:
        recorded.record(results)
        print(f"{recorded.FILE.relative_to(PROJECT)} is written.")
        return 0
    return judge(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
