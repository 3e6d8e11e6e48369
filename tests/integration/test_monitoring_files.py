"""Prometheus' own tool reads what docker-compose.yml's Prometheus is given."""

from __future__ import annotations

import subprocess

from stack.cache import PROJECT
from stack.contents import prometheus_binary
from tests.alert_rules import rules


def test_promtool_accepts_the_scrape_configuration_and_its_rules() -> None:
    done = subprocess.run(
        [prometheus_binary("promtool"), "check", "config", "config/prometheus/prometheus.yml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout
