"""The overview dashboard as a file: current, complete, and asking only for what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
from promql_parser import Expr, MatchOp, VectorSelector

from grafana import overview
from promptbus_worker.vocabulary import EVERY_SERIES, PREFIX, Series
from tests.dashboards import PanelJson, TargetJson, read

DASHBOARD = read(overview.FILE)
PANELS = [panel for panel in DASHBOARD.panels if panel.type != "row"]
SPECS = {panel.title: panel for row in overview.ROWS for panel in row.panels}
MODELS = ("gpt4_nano",)
# What a scrape adds to every series.
SCRAPED = {"job", "instance"}
# tests/integration/test_dashboard.py asks a real one.
TRITON = "nv_"


def _targets() -> Iterator[tuple[PanelJson, TargetJson]]:
    for panel in PANELS:
        for target in panel.targets:
            yield panel, target


def _selectors(expression: str) -> list[VectorSelector]:
    found: list[VectorSelector] = []

    def see(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), see)
    return found


def _declared(name: str) -> Series | None:
    """The declaration of a scraped name; of a histogram only by its suffixes."""
    for series in EVERY_SERIES:
        suffixes = ("_bucket", "_sum", "_count") if series.kind == "histogram" else ("",)
        if name in {series.full_name + suffix for suffix in suffixes}:
            return series
    return None


def _substituted(expression: str) -> str:
    return re.sub(r"\$__(rate_interval|range)", "1m", expression)


@pytest.mark.parametrize(
    ("panel", "target"), [pytest.param(p, t, id=f"{p.title}-{t.refId}") for p, t in _targets()]
)
def test_a_query_asks_only_for_declared_metrics_and_labels(panel: PanelJson, target: TargetJson) -> None:
    selectors = _selectors(_substituted(target.expr))
    assert selectors
    for selector in selectors:
        matchers = {matcher.name: matcher for matcher in selector.matchers.matchers}
        assert selector.name is not None
        if not selector.name.startswith(PREFIX):
            assert selector.name.startswith(TRITON)
            assert set(matchers) == {"job"}
            continue
        series = _declared(selector.name)
        assert series is not None, f"{selector.name} is declared nowhere"
        labels = {label.name: label for label in series.labels}
        assert set(matchers) <= set(labels) | SCRAPED
        assert set(matchers) >= SCRAPED, "the query ignores the variables"
        for name in set(matchers) - SCRAPED:
            assert matchers[name].op in (MatchOp.Equal, MatchOp.NotEqual)
            assert matchers[name].value in labels[name].domain(MODELS), (
                f"{name} is never {matchers[name].value}"
            )


def test_counters_are_rated_over_the_interval_that_grafana_chooses() -> None:
    for panel, target in _targets():
        ranges = re.findall(r"\[(.*?)\]", target.expr)
        assert set(ranges) <= {"$__rate_interval", "$__range"}, f"{panel.title}: {ranges}"


def test_the_file_is_current() -> None:
    assert overview.main(["--check"]) == 0


def test_a_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "overview.json"
    old.write_text(overview.FILE.read_text().replace('"refresh": "10s"', '"refresh": "1m"'))
    monkeypatch.setattr(overview, "FILE", old)
    assert overview.main(["--check"]) == 1
    assert overview.main([]) == 0
    assert overview.main(["--check"]) == 0


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_says_what_it_means_in_which_unit(panel: PanelJson) -> None:
    assert len(panel.description) > 60
    assert panel.description.endswith(".")
    assert panel.fieldConfig.defaults.unit
    assert panel.options, "Grafana needs them"
    assert panel.datasource.uid == "${datasource}"
    assert all(target.legendFormat for target in panel.targets)
    refs = [target.refId for target in panel.targets]
    assert len(set(refs)) == len(refs)


def test_titles_and_ids_are_unique() -> None:
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    assert len({panel.id for panel in DASHBOARD.panels}) == len(DASHBOARD.panels)


def test_panels_fill_their_rows_and_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD.panels:
        place = panel.gridPos
        covered = {
            (x, y) for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)
        }
        assert not covered & cells, panel.title
        cells |= covered
    assert {x for x, _ in cells} == set(range(24))
    assert len(cells) == 24 * len({y for _, y in cells}), "there are holes"


def test_lines_that_are_told_apart_by_colour_have_different_ones() -> None:
    for panel in PANELS:
        colors = [
            value["fixedColor"]
            for override in panel.fieldConfig.overrides
            for value in (p.value for p in override.properties if p.id == "color")
            if isinstance(value, dict)
        ]
        for one, other in combinations(colors, 2):
            assert one != other, f"{panel.title}: {one} twice"


def test_stats_with_a_past_have_a_value_always() -> None:
    """Grafana shows the last value of a range, however old it is."""
    for panel, target in _targets():
        if panel.type == "stat" and not target.instant:
            assert target.expr.endswith("or vector(0)"), panel.title


def test_every_query_of_the_file_has_a_scenario_in_code() -> None:
    for panel in PANELS:
        assert [target.expr for target in panel.targets] == [q.expr for q in SPECS[panel.title].queries]


def test_every_code_and_reason_has_a_colour() -> None:
    domains = {label.name: label.values for series in EVERY_SERIES for label in series.labels if label.values}
    assert set(overview.CODE_COLORS) == set(domains["code"])
    assert set(overview.RESULT_COLORS) == {
        value
        for series in EVERY_SERIES
        if series.name == "inference_calls_total"
        for label in series.labels
        for value in label.values or ()
    }
    assert set(overview.RETRY_COLORS) == {
        value
        for series in EVERY_SERIES
        if series.name == "retries_total"
        for label in series.labels
        for value in label.values or ()
    }
