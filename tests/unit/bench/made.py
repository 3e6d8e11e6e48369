"""Results made by hand."""

from __future__ import annotations

from bench.contenders.known import BARE_LOOP, ONE_AT_A_TIME, PROMPTBUS
from bench.measuring.figures import Figures
from bench.results import Results

CPU = {"contender": 24.0, "triton": 20.0, "model": 10.0, "kafka": 15.0}


def results(ours: tuple[float, ...] = (22_000, 11_000, 24_000)) -> Results:
    """Three rounds; in the second the machine was half as fast for everybody."""
    made = Results("2026-01-02T03:04:05+00:00", 3, False, {"cores": "2"})
    for rate, bare, loop in zip(ours, (20_000, 10_000, 21_000), (1_000, 500, 1_050), strict=True):
        made.add("instant", PROMPTBUS, Figures(rate, CPU, 90.0, 8.0, 1.25))
        made.add("instant", BARE_LOOP, Figures(bare, CPU | {"contender": 35.0}, 60.0, 8.0))
        made.add("instant", ONE_AT_A_TIME, Figures(loop, CPU | {"contender": 400.0}, 70.0, 1.0))
        made.add("slow", PROMPTBUS, Figures(211.0, CPU, 90.0, 8.0))
        made.add("latency-500", PROMPTBUS, Figures(500.0, CPU, 90.0, 1.1, None, 2.5, 4.0, 8.0))
    return made
