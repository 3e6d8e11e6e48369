"""The worker against a loop that consumes one, infers one, produces one, on the same machine in the same run."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bench import rounds
from bench.comparisons import Ratio
from bench.contenders.known import ONE_AT_A_TIME, PROMPTBUS, PROMPTBUS_2
from bench.results import Results
from bench.services import Services
from bench.workloads import BY_NAME, REAL

ROUNDS = int(os.environ.get("THROUGHPUT_ROUNDS", "3"))
AT_LEAST = {PROMPTBUS: 5.0, PROMPTBUS_2: 8.0}
"""Floors that catch a broken batch path on any machine, however noisy. What is aimed at is 10."""
WORKLOAD = replace(
    BY_NAME["instant"],
    name="canned",
    model=REAL,  # gpt4_nano, here with its prepared answers
    contenders=(ONE_AT_A_TIME, *AT_LEAST),
    max_tokens=150,
    window_s=3.0,
    records=120_000,
    with_peers=False,
)


def test_the_worker_is_several_times_as_fast_as_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(rounds=ROUNDS)
    with Services(engine="canned", say=print) as services:
        rounds.run([WORKLOAD], results, services, print)
    found = {
        worker: Ratio("", WORKLOAD.name, worker, WORKLOAD.name, ONE_AT_A_TIME).of(results)
        for worker in AT_LEAST
    }
    for worker, ratio in found.items():
        assert ratio is not None
        with capsys.disabled():
            print(f"\n{worker} ÷ {ONE_AT_A_TIME}: {ratio.median:.1f} ({ratio.low:.1f}–{ratio.high:.1f})")
        assert ratio.median >= AT_LEAST[worker]
