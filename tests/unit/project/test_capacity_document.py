"""What docs/capacity.md says about settings and bounds is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from bench.queueing import HEADROOM, drain_s
from bench.workloads import SLOW_CAPACITY, SLOW_INSTANCES, SLOW_MS
from promptbus_worker import path, room
from promptbus_worker.kafka import consumer_config
from promptbus_worker.settings import Settings

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "capacity.md").read_text()
FLOWING = " ".join(TEXT.split())


def test_the_defaults_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|([^|]*)\|", TEXT, re.MULTILINE)
    assert len(rows) >= 6
    settings = Settings(_env_file=None)
    for name, stated in rows:
        default = getattr(settings, name.lower())
        assert stated.strip() == ("" if default is None else f"{default:g}"), name


def test_every_setting_that_it_names_exists() -> None:
    for name in set(re.findall(r"`([A-Z]+_[A-Z_]+)[`=]", TEXT)):
        assert name.lower() in Settings.model_fields, name


def test_the_bounds_of_what_is_in_hand_are_those_of_the_worker() -> None:
    prefetched = consumer_config(Settings(_env_file=None), "w")["queued.max.messages.kbytes"]
    for sentence in (
        f"beginning with {path.CALLS_PER_INSTANCE} per instance",
        f"which is {room.BATCHES_PER_SLOT} · *b* · *N* records",
        f"not acknowledged, {room.MOST_ANSWERED:,} at most",
        f"at most {path.MAX_BYTES_IN_HAND >> 20} MiB",
        f"Then {int(str(prefetched)) >> 10} MiB of prefetched",
    ):
        assert sentence in FLOWING
    assert room.TIMES_WITH_TRANSACTIONS == 4
    assert "`WORKER_DELIVERY=transactional` four times as many records" in FLOWING


def test_its_figures_follow_from_the_formulas() -> None:
    assert f"*P ≥ λ · w / {HEADROOM}*" in FLOWING
    assert f"{SLOW_INSTANCES} instances" in FLOWING
    assert f"{SLOW_MS} ms" in FLOWING
    assert f"{SLOW_CAPACITY:.0f} prompts/s" in FLOWING
    # After an outage as long as 1, so much waits as arrived in it.
    assert re.findall(r"with . = (0\.\d) ", FLOWING) == ["0.5", "0.7", "0.9"]
    for used, times in ((0.5, 1.0), (0.7, 2.33), (0.9, 9.0)):
        assert abs(drain_s(used, 1.0, used) - times) < 0.01
    assert "the outage's own length" in FLOWING
    assert "more than twice" in FLOWING
    assert "nine times" in FLOWING
