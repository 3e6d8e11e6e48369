"""Interleaved rounds: in each, every workload and every contender once, in an order that turns around."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.contenders.contender import Contender
from bench.contenders.known import CONTENDERS
from bench.measuring import latency, window
from bench.measuring.figures import Figures
from bench.results import Results
from bench.services import Services
from bench.workloads import Workload
from stack.errors import StackError

SWEEP_WINDOW_S = 1.0
Say = Callable[[str], None]


def available(workloads: Sequence[Workload], results: Results, say: Say) -> list[Workload]:
    """The workloads with the contenders that can be had here; the others are named in `results.missing`."""
    for name in dict.fromkeys(name for workload in workloads for name in workload.contenders):
        try:
            CONTENDERS[name].prepare()
        except StackError as error:
            results.missing[name] = str(error).splitlines()[0]
            say(f"without {name}: {error}")
    kept = [
        replace(workload, contenders=tuple(c for c in workload.contenders if c not in results.missing))
        for workload in workloads
    ]
    return [workload for workload in kept if workload.contenders]


def run(workloads: Sequence[Workload], results: Results, services: Services, say: Say) -> None:
    """Fill `results` round by round. Raises ContenderFailed; a peer that fails is left out instead."""
    concurrency = _sweep(workloads, results, services, say)
    for number in range(results.rounds):
        for workload in workloads:
            turn = workload.contenders if number % 2 == 0 else workload.contenders[::-1]
            for name in turn:
                if name in results.missing:
                    continue
                started = time.monotonic()
                best = concurrency.get((workload.name, name), 0)
                try:
                    found = _measure(CONTENDERS[name], workload, services, best)
                except StackError as error:
                    if not CONTENDERS[name].is_peer:
                        raise
                    results.missing[name] = f"{workload.name}: {str(error).splitlines()[0]}"
                    say(f"without {name}: {error}")
                    continue
                for row, figures in found.items():
                    results.add(row, name, figures)
                shown = "; ".join(_shown(row, figures) for row, figures in found.items())
                say(
                    f"round {number + 1} of {results.rounds}, {name}, {shown} ({time.monotonic() - started:.0f} s)"
                )


def _measure(contender: Contender, workload: Workload, services: Services, best: int) -> dict[str, Figures]:
    if workload.rates:
        return latency.measure(contender, workload, services)
    return {workload.name: window.measure(contender, workload, services, best)}


def _sweep(
    workloads: Sequence[Workload], results: Results, services: Services, say: Say
) -> dict[tuple[str, str], int]:
    """Who does not choose a concurrency by itself gets the one at which it was fastest."""
    best = {}
    for workload in workloads:
        for name in workload.contenders:
            contender = CONTENDERS[name]
            short = replace(workload, window_s=SWEEP_WINDOW_S, warm_s=0.3)
            rates = {
                concurrency: window.measure(contender, short, services, concurrency).prompts_per_s
                for concurrency in contender.sweep
            }
            if rates:
                best[workload.name, name] = max(rates, key=lambda concurrency: rates[concurrency])
                results.sweeps.setdefault(workload.name, {})[name] = {str(c): r for c, r in rates.items()}
                listed = ", ".join(f"{c}: {rate:,.0f}/s" for c, rate in rates.items())
                say(f"{workload.name}, {name} at concurrency {listed}")
    return best


def _shown(row: str, figures: Figures) -> str:
    if figures.p50_ms is not None:
        return f"{row}: p50 {figures.p50_ms:.1f} ms, p99 {figures.p99_ms:.1f} ms"
    return f"{row}: {figures.prompts_per_s:,.0f} prompts/s"
