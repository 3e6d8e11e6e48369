"""The worker against a loop that consumes one, infers one, produces one, on the same machine in the same run."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bench import rounds
from bench.comparisons import Ratio
from bench.contenders.known import ONE_AT_A_TIME, PROMPTBUS
from bench.results import Results
from bench.services import Services
from bench.workloads import BY_NAME

ROUNDS = int(os.environ.get("THROUGHPUT_ROUNDS", "3"))
AT_LEAST = float(os.environ.get("THROUGHPUT_RATIO", "2"))
"""A floor that catches a broken batch path on any machine; `make bench` holds what was reached."""
WORKLOAD = replace(
    BY_NAME["instant"], contenders=(ONE_AT_A_TIME, PROMPTBUS), window_s=3.0, records=120_000, with_peers=False
)


def test_the_worker_is_several_times_as_fast_as_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(rounds=ROUNDS)
    with Services(with_real_model=False, say=print) as services:
        rounds.run([WORKLOAD], results, services, print)
    ratio = Ratio("", WORKLOAD.name, PROMPTBUS, WORKLOAD.name, ONE_AT_A_TIME).of(results)
    assert ratio is not None
    with capsys.disabled():
        print(
            f"\nprompts/s of the worker ÷ one at a time: {ratio.median:.1f} ({ratio.low:.1f}–{ratio.high:.1f})"
        )
    assert ratio.median >= AT_LEAST
