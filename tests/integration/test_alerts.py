"""The alerts: Prometheus' own tool runs their rule tests, and a real Triton that is killed makes them fire."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from stack.contents import prometheus_binary
from stack.kafka import Kafka
from stack.prometheus import Prometheus
from stack.triton import Triton
from tests.alert_rules import FILE, RULE_TESTS, alerts, rule_tests
from tests.integration.system import eventually, system

NAMES = [rule.alert for rule in alerts()]


def _promtool(files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    command = [str(prometheus_binary("promtool")), "test", "rules", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_alert_fires_when_it_must_and_stays_silent_when_it_must_not() -> None:
    done = _promtool(sorted(RULE_TESTS.glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(NAMES)


@pytest.mark.parametrize(
    ("expr", "must_fire", "complaint"),
    [("vector(1) == 0", True, "got: nil"), ("vector(1)", False, "exp: nil")],
    ids=["never", "always"],
)
def test_every_expectation_of_the_rule_tests_notices_an_alert_that_fires_never_or_always(
    expr: str, must_fire: bool, complaint: str, tmp_path: Path
) -> None:
    tree = yaml.safe_load(FILE.read_text())
    for group in tree["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"] = expr
                rule.pop("for", None)
    (tmp_path / FILE.name).write_text(yaml.safe_dump(tree))
    for name in NAMES:
        text = (RULE_TESTS / f"{name}.yml").read_text()
        (tmp_path / f"{name}.yml").write_text(re.sub(r"rule_files: .*", f"rule_files: [{FILE.name}]", text))
    done = _promtool([tmp_path / f"{name}.yml" for name in NAMES])
    assert done.returncode == 1
    expectations = [e for name in NAMES for case in rule_tests(name).tests for e in case.promql_expr_test]
    assert done.stderr.count(complaint) == sum(bool(e.exp_samples) is must_fire for e in expectations)


def _quick(rules: Path) -> Path:
    """The rules with seconds for minutes, so that a test can wait for them; nothing else is changed."""
    text = re.sub(r"for: \d+[mh]", "for: 1s", FILE.read_text())
    rules.write_text(text.replace("[5m]", "[10s]"))
    return rules


def test_a_killed_triton_makes_alerts_fire_and_one_that_is_back_ends_them(
    shared_kafka: Kafka, tmp_path: Path
) -> None:
    with Triton(engine="canned") as triton, system(shared_kafka, triton, tmp_path) as made:
        workers = made.start().ready()
        targets = {"worker": f"127.0.0.1:{workers.port}", "triton": triton.metrics_address}
        with Prometheus(targets, 0.5, [_quick(tmp_path / "alerts.yml")]) as prometheus:

            def firing() -> dict[str, str]:
                found = [alert for alert in prometheus.alerts() if alert.state == "firing"]
                return {alert.name: alert.annotations["summary"] for alert in found}

            made.ask(["before"])
            made.collect(1)
            eventually("workers and Triton are scraped", lambda: len(prometheus.query("up == 1")) == 2)
            eventually("the commit is scraped", lambda: prometheus.query("promptbus_commits_total > 0"))
            eventually("nothing is wrong", lambda: not firing())

            triton.kill()
            made.ask(["while it is gone"])
            expected = {"PromptbusBreakerOpen", "PromptbusTritonFailing", "PromptbusTritonNotScraped"}
            eventually("the alerts fire", lambda: expected <= set(firing()))
            said = firing()
            assert set(said) == expected
            assert said["PromptbusBreakerOpen"] == f"{targets['worker']} holds calls to Triton back."
            assert said["PromptbusTritonFailing"].endswith(
                "% of the calls to Triton for gpt4_nano bring no answer."
            )

            triton.start()
            made.collect(2)
            eventually("the alerts end", lambda: not firing())
