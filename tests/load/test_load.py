"""Short runs of what `make overload` and `make soak` do for minutes; `make test` runs this file with nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.load.overload import Bounds, Phases, overload
from tests.load.soak import soak
from tests.load.stand import running, servers

BOUNDS = Bounds(of_capacity=0.5, recovered_within_s=30)
"""They catch a broken path on any machine, however busy; `make overload` demands more of a quiet one."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kafka, Triton]]:
    """Kafka and Triton."""
    with servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


def test_three_times_the_capacity_is_no_failure(both: tuple[Kafka, Triton], tmp_path: Path) -> None:
    phases = Phases(capacity_s=2, calm_s=4, excess_s=12, after_s=30)
    with running(*both, tmp_path, print) as stand:
        found = overload(stand, phases, print, BOUNDS)
    assert found.violations == [], found.sentence()
    assert found.codes["expired"] > 0, "there was no excess"


def test_half_the_capacity_for_a_while_makes_nothing_grow(both: tuple[Kafka, Triton], tmp_path: Path) -> None:
    with running(*both, tmp_path, print) as stand:
        # Connections to Triton come and go with the limit, and the surplus is closed after 15 s: too slow to be seen here.
        found = soak(stand, 15, 2, print, measures=("memory_mb", "threads"))
    assert found.violations == [], found.sentence()
