"""The alert rules as a file: metrics that exist, words for people, a runbook section and rule tests for each."""

from __future__ import annotations

import re

import pytest
import yaml
from promql_parser import MatchOp

from promptbus.messages import ErrorCode
from promptbus_worker.vocabulary import CODES, EVERY_SERIES, PREFIX
from tests.alert_rules import FILE, PROJECT, RULE_TESTS, Rule, alerts, rule_tests, rules
from tests.promql import declared, selectors

MODELS = ("gpt4_nano",)
ALERTS = [pytest.param(rule, id=rule.alert) for rule in alerts()]
# What the caller did wrong, and only he can mend.
REFUSED = {ErrorCode.INVALID_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.MODEL_NOT_FOUND}


def scrape_jobs() -> set[str]:
    tree = yaml.safe_load((PROJECT / "config/prometheus/prometheus.yml").read_text())
    return {job["job_name"] for job in tree["scrape_configs"]}


@pytest.mark.parametrize("rule", [pytest.param(r, id=r.alert or r.record) for r in rules()])
def test_a_rule_is_about_metrics_and_labels_that_exist(rule: Rule) -> None:
    recorded = {rule.record for rule in rules() if rule.record}
    found = selectors(rule.expr)
    assert found
    for selector in found:
        assert selector.name is not None
        matchers = {matcher.name: matcher for matcher in selector.matchers.matchers}
        if selector.name == "up":
            assert matchers["job"].value in scrape_jobs()
            continue
        if selector.name in recorded:
            assert not matchers
            continue
        series = declared(selector.name)
        assert series is not None, f"{selector.name} is declared nowhere"
        domains = {label.name: label.domain(MODELS) for label in series.labels}
        for name, matcher in matchers.items():
            values = (
                matcher.value.split("|") if matcher.op in (MatchOp.Re, MatchOp.NotRe) else [matcher.value]
            )
            assert set(values) <= set(domains[name])


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_says_what_is_wrong_what_to_do_and_where_to_read_on(rule: Rule) -> None:
    assert rule.alert.startswith("Promptbus")
    assert rule.labels["severity"] in {"critical", "warning"}
    assert set(rule.annotations) == {"summary", "action", "runbook"}
    for name in ("summary", "action"):
        assert re.match(r"(?s)[A-Z{].*\.$", rule.annotations[name])
    assert rule.annotations["runbook"] == f"docs/runbook.md#{rule.alert.lower()}"


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_has_rule_tests_in_both_directions(rule: Rule) -> None:
    found = rule_tests(rule.alert)
    assert [(RULE_TESTS / name).resolve() for name in found.rule_files] == [FILE]
    asked = {expected.expr for case in found.tests for expected in case.promql_expr_test}
    assert asked == {f'ALERTS{{alertname="{rule.alert}", alertstate="firing"}}'}
    for case in found.tests:
        fires = [bool(expected.exp_samples) for expected in case.promql_expr_test]
        assert all(fires) if case.name.startswith("fires ") else not any(fires), case.name
        assert re.match("(fires|silent) ", case.name)
    assert len({case.name.split()[0] for case in found.tests}) == 2


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_names_only_labels_that_it_has(rule: Rule) -> None:
    """The rule tests say which it has when it fires; `with` asks before it names one."""
    text = rule.annotations["summary"]
    asked_for = set(re.findall(r"with \$labels\.(\w+)", text))
    named = set(re.findall(r"\$labels\.(\w+)", text)) - asked_for
    for case in rule_tests(rule.alert).tests:
        for expected in case.promql_expr_test:
            for sample in expected.exp_samples:
                assert named <= set(re.findall(r"(\w+)=", sample.labels))


def test_there_are_no_rule_tests_of_alerts_that_are_gone() -> None:
    assert {file.stem for file in RULE_TESTS.iterdir()} == {rule.alert for rule in alerts()}


def test_a_failed_outcome_is_each_that_the_caller_could_not_have_prevented() -> None:
    (numerator, denominator), *others = [
        [
            set(matcher.value.split("|"))
            for selector in selectors(rule.expr)
            for matcher in selector.matchers.matchers
        ]
        for rule in rules()
        if rule.record.partition(":ratio")[1]
    ]
    assert numerator == {"ok"} | {code.value for code in REFUSED}
    assert denominator == {code.value for code in REFUSED}
    assert numerator < set(CODES)
    assert all(other == [numerator, denominator] for other in others)


def test_every_metric_that_only_moves_in_trouble_has_an_alert() -> None:
    asked = {selector.name for rule in rules() for selector in selectors(rule.expr)}
    for name in (
        "breaker_open",
        "dead_letter_budget_exhausted",
        "dead_letters_total",
        "worker_restarts_total",
    ):
        assert PREFIX + name in {series.full_name for series in EVERY_SERIES}
        assert PREFIX + name in asked
