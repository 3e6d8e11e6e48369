"""A dashboard's JSON, as far as tests look at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel


class _Place(BaseModel):
    x: int
    y: int
    w: int
    h: int


class TargetJson(BaseModel):
    """One query."""

    expr: str
    refId: str
    legendFormat: str
    instant: bool


class _Property(BaseModel):
    id: str
    value: object


class _Override(BaseModel):
    properties: Sequence[_Property]


class _Defaults(BaseModel):
    unit: str = ""


class _FieldConfig(BaseModel):
    defaults: _Defaults = _Defaults()
    overrides: Sequence[_Override] = ()


class _Source(BaseModel):
    uid: str = ""


class LinkJson(BaseModel):
    """To a dashboard, or a panel of one."""

    title: str
    url: str
    type: str
    keepTime: bool = False
    includeVars: bool = False


class PanelJson(BaseModel):
    """A panel or a row's title."""

    id: int
    type: str
    title: str
    gridPos: _Place
    description: str = ""
    datasource: _Source = _Source()
    fieldConfig: _FieldConfig = _FieldConfig()
    options: dict[str, object] = {}
    targets: Sequence[TargetJson] = ()
    links: Sequence[LinkJson] = ()


class DashboardJson(BaseModel):
    """The whole."""

    uid: str
    links: Sequence[LinkJson]
    panels: Sequence[PanelJson]


def read(file: Path) -> DashboardJson:
    return DashboardJson.model_validate_json(file.read_text())
