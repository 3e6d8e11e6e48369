"""A whole dashboard: its panels, its variables, and its links to the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.panels import DATASOURCE, Panel, Row, add_rows

FOLDER = Path(__file__).resolve().parent / "dashboards"
ALL = VariableOption(selected=True, text=["All"], value=["$__all"])
# Every dashboard links to the others; name → title.
NAMES = {
    "overview": "Overview",
    "worker": "Worker",
    "triton": "Triton and model",
    "runbook": "Runbook",
}


@dataclass(frozen=True, slots=True)
class Board:
    """`name`: one of NAMES, and of the file. `live`: it asks Prometheus."""

    name: str
    description: str
    rows: Sequence[Row]
    live: bool = True

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def panels(self) -> Sequence[Panel]:
        return [panel for row in self.rows for panel in row.panels]

    def json(self) -> str:
        """The file's text."""
        made = (
            dashboard.Dashboard(f"promptbus: {NAMES[self.name].lower()}")
            .uid(f"promptbus-{self.name}")
            .description(self.description)
            .tags(["promptbus"])
            .timezone("browser")
            .time("now-1h", "now")
            .refresh("10s" if self.live else "")
            .annotations([])
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .links([_link(name) for name in NAMES if name != self.name])
            .variables(_variables() if self.live else [])
        )
        add_rows(made, self.rows)
        return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _link(name: str) -> dashboard.DashboardLink:
    """What is chosen, and the time, go along."""
    return (
        dashboard.DashboardLink(NAMES[name])
        .type(DashboardLinkType.LINK)
        .icon("doc" if name == "runbook" else "dashboard")
        .tooltip(
            "What to do when an alert fires" if name == "runbook" else f"promptbus: {NAMES[name].lower()}"
        )
        .url(f"/d/promptbus-{name}")
        .keep_time(True)
        .include_vars(True)
    )


def _variables() -> list[Builder[VariableModel]]:
    return [
        dashboard.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(VariableOption(selected=True, text="Prometheus", value="prometheus")),
        _labels("job", "Workers' job", "label_values(promptbus_workers, job)"),
        _labels("instance", "Instance", 'label_values(promptbus_workers{job=~"$job"}, instance)'),
        _labels("triton", "Triton's job", "label_values(nv_inference_count, job)"),
    ]


def _labels(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable filled by a query, so that it does not matter what a Prometheus calls its jobs; all at first."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .current(ALL)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
    )
