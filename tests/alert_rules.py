"""config/prometheus/alerts.yml and its rule tests, as far as tests look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

PROJECT = Path(__file__).resolve().parents[1]
FILE = PROJECT / "config" / "prometheus" / "alerts.yml"
RULE_TESTS = PROJECT / "tests" / "alerts"


class _Known(BaseModel):
    """A key that no test knows of is an error."""

    model_config = ConfigDict(extra="forbid")


class Rule(_Known):
    """An alert or, with `record`, a series that alerts are made of."""

    alert: str = ""
    record: str = ""
    expr: str
    wait: str = Field("0s", alias="for")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Group(_Known):
    name: str
    rules: list[Rule]


class _RuleFile(_Known):
    groups: list[_Group]


class Sample(_Known):
    labels: str
    value: float


class Expected(_Known):
    """What a query gives at a time."""

    expr: str
    eval_time: str
    exp_samples: list[Sample]


class Input(_Known):
    series: str
    values: str


class Case(_Known):
    name: str
    interval: str
    input_series: list[Input]
    promql_expr_test: list[Expected]


class RuleTests(_Known):
    """A file for `promtool test rules`."""

    rule_files: list[str]
    evaluation_interval: str
    tests: list[Case]


def rules() -> Sequence[Rule]:
    """Every rule, in the file's order."""
    groups = _RuleFile.model_validate(yaml.safe_load(FILE.read_text())).groups
    return [rule for group in groups for rule in group.rules]


def alerts() -> Sequence[Rule]:
    return [rule for rule in rules() if rule.alert]


def rule_tests(alert: str) -> RuleTests:
    """The rule tests of an alert."""
    return RuleTests.model_validate(yaml.safe_load((RULE_TESTS / f"{alert}.yml").read_text()))
