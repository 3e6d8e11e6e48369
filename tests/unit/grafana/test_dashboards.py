"""The dashboards as files: current, complete, linked, and asking only for what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from promql_parser import MatchOp

from grafana import board, sections
from grafana.__main__ import BOARDS, main
from grafana.board import NAMES
from grafana.overview import OVERVIEW
from grafana.queries import CODE_COLORS, RESULT_COLORS, RETRY_COLORS
from grafana.runbook import RUNBOOK
from grafana.triton import REASON_COLORS
from grafana.worker import COMMIT_COLORS, REBALANCE_COLORS
from promptbus_worker.vocabulary import EVERY_SERIES, PREFIX
from tests.alert_rules import alerts
from tests.dashboards import DashboardJson, PanelJson, TargetJson, read
from tests.promql import SCRAPED, declared, selectors

DASHBOARDS = {made.name: read(made.file) for made in BOARDS}
EVERY = pytest.mark.parametrize("dashboard", [pytest.param(d, id=name) for name, d in DASHBOARDS.items()])
PANELS = [
    pytest.param(panel, id=f"{name}: {panel.title}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard.panels
    if panel.type != "row"
]
MODELS = ("gpt4_nano",)
# tests/integration/test_dashboard.py asks a real one.
TRITON = "nv_"


def _targets() -> Iterator[tuple[str, PanelJson, TargetJson]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard.panels:
            for target in panel.targets:
                yield name, panel, target


@pytest.mark.parametrize(
    "target", [pytest.param(t, id=f"{name}: {p.title}-{t.refId}") for name, p, t in _targets()]
)
def test_a_query_asks_only_for_declared_metrics_and_labels(target: TargetJson) -> None:
    found = selectors(target.expr)
    assert found
    for selector in found:
        matchers = {matcher.name: matcher for matcher in selector.matchers.matchers}
        assert selector.name is not None
        if not selector.name.startswith(PREFIX):
            assert selector.name.startswith(TRITON)
            assert set(matchers) == {"job"}
            continue
        series = declared(selector.name)
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
    for _, panel, target in _targets():
        ranges = re.findall(r"\[(.*?)\]", target.expr)
        assert set(ranges) <= {"$__rate_interval", "$__range"}, f"{panel.title}: {ranges}"


def test_the_files_are_current_and_no_other_is_there() -> None:
    assert main(["--check"]) == 0
    assert {file.stem for file in board.FOLDER.glob("*.json")} == set(NAMES) == set(DASHBOARDS)


def test_a_change_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "FOLDER", tmp_path)
    assert main([]) == 0
    assert main(["--check"]) == 0
    changed = replace(OVERVIEW, description="Another one.")
    assert main(["--check"], [changed, RUNBOOK]) == 1
    assert capsys.readouterr().err.startswith("overview.json: not current")


@pytest.mark.parametrize("panel", [p for p in PANELS if not str(p.id).startswith("runbook")])
def test_a_panel_says_what_it_means_in_which_unit(panel: PanelJson) -> None:
    assert len(panel.description) > 60
    assert panel.description.endswith(".")
    assert panel.fieldConfig.defaults.unit
    assert panel.options, "Grafana needs them"
    assert panel.datasource.uid == "${datasource}"
    assert all(target.legendFormat for target in panel.targets)
    refs = [target.refId for target in panel.targets]
    assert len(set(refs)) == len(refs)


@EVERY
def test_titles_and_ids_are_unique(dashboard: DashboardJson) -> None:
    titles = [panel.title for panel in dashboard.panels if panel.type != "row"]
    assert len(set(titles)) == len(titles)
    assert len({panel.id for panel in dashboard.panels}) == len(dashboard.panels)


@EVERY
def test_panels_fill_their_rows_and_do_not_overlap(dashboard: DashboardJson) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard.panels:
        place = panel.gridPos
        covered = {
            (x, y) for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)
        }
        assert not covered & cells, panel.title
        cells |= covered
    assert {x for x, _ in cells} == set(range(24))
    assert len(cells) == 24 * len({y for _, y in cells}), "there are holes"


@pytest.mark.parametrize("panel", PANELS)
def test_lines_that_are_told_apart_by_colour_have_different_ones(panel: PanelJson) -> None:
    colors = [
        value["fixedColor"]
        for override in panel.fieldConfig.overrides
        for value in (p.value for p in override.properties if p.id == "color")
        if isinstance(value, dict)
    ]
    for one, other in combinations(colors, 2):
        assert one != other, f"{one} twice"


def test_stats_with_a_past_have_a_value_always() -> None:
    """Grafana shows the last value of a range, however old it is."""
    for _, panel, target in _targets():
        if panel.type == "stat" and not target.instant:
            assert target.expr.endswith("or vector(0)"), panel.title


def test_every_query_of_a_file_has_a_scenario_in_code() -> None:
    for made in BOARDS:
        specs = {panel.title: panel for panel in made.panels}
        for panel in DASHBOARDS[made.name].panels:
            if panel.type != "row":
                assert [target.expr for target in panel.targets] == [
                    q.expr for q in specs[panel.title].queries
                ]


@EVERY
def test_a_dashboard_leads_to_all_the_others_and_takes_along_what_is_chosen(dashboard: DashboardJson) -> None:
    uids = {other.uid for other in DASHBOARDS.values()}
    assert {link.url for link in dashboard.links} == {f"/d/{uid}" for uid in uids - {dashboard.uid}}
    assert all(link.keepTime and link.includeVars and link.type == "link" for link in dashboard.links)


def test_every_alert_is_reached_from_a_panel_and_every_such_link_is_its_section() -> None:
    places = {panel.title: panel.id for panel in DASHBOARDS["runbook"].panels}
    found = {
        link.title: link.url
        for dashboard in DASHBOARDS.values()
        for panel in dashboard.panels
        for link in panel.links
    }
    assert found == {
        f"Runbook: {rule.alert}": f"/d/promptbus-runbook?viewPanel={places[rule.alert]}" for rule in alerts()
    }


def test_the_runbook_in_grafana_is_the_file_with_links_that_lead_somewhere() -> None:
    panels = DASHBOARDS["runbook"].panels
    assert [panel.title for panel in panels][1:] == list(sections.SECTIONS)
    known = {f"/d/{dashboard.uid}" for dashboard in DASHBOARDS.values()}
    known |= {sections.address(title) for title in sections.SECTIONS}
    words = re.compile(r"\w+")
    for panel in panels[1:]:
        content = str(panel.options["content"])
        targets = re.findall(r"\]\(([^)]*)\)", content)
        assert set(targets) <= known
        shown = re.sub(r"\]\([^)]*\)", "]", content)
        assert words.findall(shown) == words.findall(sections.SECTIONS[panel.title])


def test_the_runbook_names_panels_that_exist() -> None:
    titles = {
        NAMES[name]: {panel.title for panel in dashboard.panels} for name, dashboard in DASHBOARDS.items()
    }
    named = re.findall(r"“([^”]+)”\s\(([^)]+)\)", sections.FILE.read_text())
    assert len(named) > 20
    for title, where in named:
        assert " ".join(title.split()) in titles[" ".join(where.split())], title


def _domain(label: str, metric: str) -> set[str]:
    (series,) = (series for series in EVERY_SERIES if series.name == metric)
    return {value for each in series.labels if each.name == label for value in each.values or ()}


def test_every_code_result_reason_and_kind_has_a_colour() -> None:
    assert set(CODE_COLORS) == _domain("code", "requests_total")
    assert set(RESULT_COLORS) == _domain("result", "inference_calls_total")
    assert set(RETRY_COLORS) == _domain("reason", "retries_total")
    assert set(COMMIT_COLORS) == _domain("result", "commits_total")
    assert set(REBALANCE_COLORS) == _domain("kind", "rebalances_total")
    # Triton's, as its metrics have them.
    assert set(REASON_COLORS) == {"OTHER", "BACKEND", "CANCELED", "REJECTED"}
