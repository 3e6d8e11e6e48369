"""Interleaved rounds: in each, every workload and every contender once, in an order that turns around."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bench.contenders.contender import Contender
from bench.contenders.known import CONTENDERS
from bench.measuring import latency, window
from bench.measuring.figures import Figures
from bench.results import Results
from bench.services import Services
from bench.statistics import shown_rate
from bench.workloads import Workload
from stack.errors import StackError

SWEEP_WINDOW_S, SWEEP_WARM_S = 2.0, 0.5
Say = Callable[[str], None]


def available(workloads: Sequence[Workload], results: Results, say: Say) -> list[Workload]:
    """The workloads with the contenders that can be had here; the others are named in `results.missing`.

    Raises StackError for those that must not be missing.
    """
    for name in dict.fromkeys(name for workload in workloads for name in workload.contenders):
        with _perhaps_without(name, results, say):
            CONTENDERS[name].prepare()
    kept = [
        replace(workload, contenders=tuple(c for c in workload.contenders if c not in results.missing))
        for workload in workloads
    ]
    return [workload for workload in kept if workload.contenders]


def run(workloads: Sequence[Workload], results: Results, services: Services, say: Say) -> None:
    """Fill `results` round by round. Raises ContenderFailed for those that must not be missing."""
    best = _sweep(workloads, results, services, say)
    for number in range(results.rounds):
        for workload in workloads:
            for name in workload.contenders if number % 2 == 0 else workload.contenders[::-1]:
                if name not in results.missing:
                    concurrency = best.get((workload.name, name), workload.concurrency)
                    with _perhaps_without(name, results, say):
                        started = time.monotonic()
                        found = _measure(CONTENDERS[name], workload, services, concurrency)
                        for row, figures in found.items():
                            results.add(row, name, figures)
                        took = time.monotonic() - started
                        shown = "; ".join(_shown(row, figures) for row, figures in found.items())
                        say(f"round {number + 1} of {results.rounds}, {name}, {shown} ({took:.0f} s)")


@contextmanager
def _perhaps_without(name: str, results: Results, say: Say) -> Iterator[None]:
    """Go on without a contender that fails, if that may be."""
    try:
        yield
    except StackError as error:
        if not CONTENDERS[name].may_be_missing:
            raise
        results.missing[name] = str(error).splitlines()[0]
        say(f"without {name}: {error}")


def _measure(
    contender: Contender, workload: Workload, services: Services, concurrency: int
) -> dict[str, Figures]:
    if workload.rates:
        return latency.measure(contender, workload, services)
    return {workload.name: window.measure(contender, workload, services, concurrency)}


def _sweep(
    workloads: Sequence[Workload], results: Results, services: Services, say: Say
) -> dict[tuple[str, str], int]:
    """Who does not choose a concurrency by itself gets the one at which it was fastest."""
    best = {}
    for workload in workloads:
        short = replace(workload, window_s=SWEEP_WINDOW_S, warm_s=SWEEP_WARM_S)
        for name in workload.contenders:
            rates: dict[int, float] = {}
            with _perhaps_without(name, results, say):
                for concurrency in () if workload.concurrency else CONTENDERS[name].sweep:
                    figures = window.measure(CONTENDERS[name], short, services, concurrency)
                    rates[concurrency] = figures.prompts_per_s
            if rates:
                best[workload.name, name] = max(rates, key=lambda concurrency: rates[concurrency])
                results.sweeps.setdefault(workload.name, {})[name] = {str(c): r for c, r in rates.items()}
                listed = ", ".join(f"{c}: {shown_rate(rate)}/s" for c, rate in rates.items())
                say(f"{workload.name}, {name} at concurrency {listed}")
    return best


def _shown(row: str, figures: Figures) -> str:
    if figures.p50_ms is not None:
        return f"{row}: p50 {figures.p50_ms:.1f} ms, p99 {figures.p99_ms:.1f} ms"
    return f"{row}: {shown_rate(figures.prompts_per_s)} prompts/s"
