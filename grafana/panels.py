"""What a dashboard says, as plain data, and how it becomes Grafana's JSON.

Every query names the scenario in which it shows something: tests/integration/test_dashboard.py plays the scenarios
and demands it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, text, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLink,
    DashboardLinkType,
    DashboardRangeMapOptions,
    DynamicConfigValue,
    FieldColorModeId,
    GridPos,
    RangeMap,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.text import TextMode

from grafana.sections import address

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_COLUMNS = 24
STAT_HEIGHT = 4
GRAPH_HEIGHT = 8
_DASHED = (
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
    DynamicConfigValue("custom.fillOpacity", 0),
)


class Scenario(StrEnum):
    """When a query shows something other than nothing and zero."""

    UNDER_LOAD = "under load, some prompts failing"
    WORKER_KILLED = "a worker process was killed"
    MODEL_DEAD = "Triton runs, the processes of its model are dead"
    TRITON_DOWN = "Triton is down"
    CATCHING_UP = "Triton is back and the backlog shrinks"
    WORKER_FROZEN = "a worker process was frozen for longer than its session"
    DEAD_LETTERS = "most prompts become dead letters"


@dataclass(frozen=True, slots=True)
class Query:
    """`legend` may hold {{label}}. `color`: of its line, or of all its lines; `limit`: it is one, dashed."""

    expr: str
    legend: str
    seen: Scenario = Scenario.UNDER_LOAD
    color: str = ""
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Stat:
    """One number. `steps`: from which value on which colour. `names`: values that have a text and a colour instead.

    `beyond`: from a value on (infinity too), a text and a colour. `sparkline`: with its past behind it; such a query
    has to have a value always, for Grafana shows the last one there was, however old. `alerts`: links to their
    sections of the runbook.
    """

    title: str
    description: str
    query: Query
    unit: str
    steps: Sequence[tuple[float | None, str]]
    names: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    beyond: tuple[float, str, str] | None = None
    sparkline: bool = False
    decimals: int | None = None
    alerts: Sequence[str] = ()

    @property
    def queries(self) -> Sequence[Query]:
        return (self.query,)

    def builder(self) -> stat.Panel:
        made = (
            stat.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(DATASOURCE)
            .unit(self.unit)
            .with_target(_target(self.query, "A", instant=not self.sparkline))
            .thresholds(_thresholds(self.steps))
            .mappings(self._mappings())
            .no_value("-")
            .color_mode(BigValueColorMode.BACKGROUND)
            .graph_mode(BigValueGraphMode.AREA if self.sparkline else BigValueGraphMode.NONE)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
            .links(_runbook_links(self.alerts))
        )
        if self.decimals is not None:
            made.decimals(self.decimals)
        return made

    def _mappings(self) -> list[ValueMapping]:
        found: list[ValueMapping] = []
        if self.names:
            results = {
                str(value): ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(self.names.items())
            }
            found.append(ValueMap(options=results))
        if self.beyond:
            start, text, color = self.beyond
            result = ValueMappingResult(text=text, color=color, index=len(self.names))
            found.append(RangeMap(DashboardRangeMapOptions(from_val=start, result=result)))
        return found


@dataclass(frozen=True, slots=True)
class Graph:
    """Lines over time, from zero up.

    `colors`: by legend, where a legend holds {{label}}. `right`: legends with an axis of their own. `log`: powers of
    ten on the axis, for what is milliseconds on a good day and hours on a bad one. `reach`: the least that the axis
    goes up to, so that zeros lie at the bottom of something small. `alerts`: links to their sections of the runbook.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    colors: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False
    bars: bool = False
    log: bool = False
    right: Sequence[str] = ()
    reach: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    alerts: Sequence[str] = ()

    def builder(self) -> timeseries.Panel:
        made = (
            timeseries.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(DATASOURCE)
            .unit(self.unit)
            .line_width(1 if self.stacked else 2)
            .fill_opacity(80 if self.bars else 35 if self.stacked else 0 if self.log else 8)
            .show_points(VisibilityMode.NEVER)
            .draw_style(GraphDrawStyle.BARS if self.bars else GraphDrawStyle.LINE)
            .stacking(
                common.StackingConfig()
                .mode(StackingMode.NORMAL if self.stacked else StackingMode.NONE)
                .group("A")
            )
            .legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
                .calcs([])
            )
            .tooltip(
                common.VizTooltipOptions()
                .mode(TooltipDisplayMode.MULTI)
                .sort(SortOrder.DESCENDING)
                .hide_zeros(self.stacked)
            )
            .links(_runbook_links(self.alerts))
        )
        for index, query in enumerate(self.queries):
            made.with_target(_target(query, _ref(index)))
        if self.log:
            made.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
        else:
            made.min(0)
        if self.reach is not None:
            made.axis_soft_max(self.reach)
        if self.maximum is not None:
            made.max(self.maximum)
        if self.decimals is not None:
            made.decimals(self.decimals)
        for index, query in enumerate(self.queries):
            properties = [_fixed(query.color), *(_DASHED if query.limit else ())]
            if query.color and "{{" in query.legend:
                made.override_by_query(_ref(index), properties)
            elif query.color:
                made.override_by_name(query.legend, properties)
        for legend, color in self.colors.items():
            made.override_by_name(legend, [_fixed(color)])
        for legend in self.right:
            made.override_by_name(legend, [DynamicConfigValue("custom.axisPlacement", "right")])
        return made


@dataclass(frozen=True, slots=True)
class Text:
    """Markdown. `height` in rows of the grid."""

    title: str
    content: str
    height: int
    queries: Sequence[Query] = ()

    def builder(self) -> text.Panel:
        return text.Panel().title(self.title).mode(TextMode.MARKDOWN).content(self.content)


Panel = Stat | Graph | Text


@dataclass(frozen=True, slots=True)
class Row:
    """Panels beside each other, equally wide. Without a title they follow what is above."""

    title: str
    panels: Sequence[Panel]


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _target(query: Query, ref: str, instant: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref)
    return made.instant() if instant else made.range()


def _runbook_links(alerts: Sequence[str]) -> list[Builder[DashboardLink]]:
    return [
        dashboard.DashboardLink(f"Runbook: {alert}").type(DashboardLinkType.LINK).url(address(alert))
        for alert in alerts
    ]


def _fixed(color: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": FieldColorModeId.FIXED, "fixedColor": color})


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )


def _height(panel: Panel) -> int:
    match panel:
        case Stat():
            return STAT_HEIGHT
        case Graph():
            return GRAPH_HEIGHT
        case Text():
            return panel.height


def add_rows(made: dashboard.Dashboard, rows: Sequence[Row]) -> None:
    """Lay the rows out from top to bottom and number the panels."""
    top, number = 0, 1
    for row in rows:
        if row.title:
            made.with_row(dashboard.Row(row.title).id(number).grid_pos(GridPos(1, GRID_COLUMNS, 0, top)))
            top, number = top + 1, number + 1
        width = GRID_COLUMNS // len(row.panels)
        height = max(_height(panel) for panel in row.panels)
        for index, panel in enumerate(row.panels):
            place = GridPos(height, width, index * width, top)
            made.with_panel(panel.builder().id(number).grid_pos(place))
            number += 1
        top += height
