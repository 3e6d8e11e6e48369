"""What Prometheus and Grafana are given: targets that exist, files that are there, one data source."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml
from pydantic import BaseModel, ConfigDict

from tests.unit.project.compose import PROJECT, compose

SERVICES = compose().services
PROMETHEUS, GRAFANA = SERVICES["prometheus"], SERVICES["grafana"]
DASHBOARDS = PROJECT / "grafana" / "dashboards"
DATA_SOURCE = "prometheus"


class Global(BaseModel):
    scrape_interval: str


class Targets(BaseModel):
    targets: list[str]


class Job(BaseModel):
    model_config = ConfigDict(extra="forbid")

    job_name: str
    static_configs: list[Targets]


class ScrapeConfiguration(BaseModel):
    settings: Global
    rule_files: list[str]
    scrape_configs: list[Job]


class DataSource(BaseModel):
    uid: str
    type: str
    url: str
    jsonData: dict[str, str]  # Grafana's own name


class Provisioning(BaseModel):
    datasources: list[DataSource]


class Provider(BaseModel):
    options: dict[str, str]


class Providers(BaseModel):
    providers: list[Provider]


def load(path: str) -> object:
    return yaml.safe_load((PROJECT / path).read_text())


def scraping() -> ScrapeConfiguration:
    tree = load("config/prometheus/prometheus.yml")
    assert isinstance(tree, dict)
    return ScrapeConfiguration.model_validate({**tree, "settings": tree["global"]})


def test_prometheus_reads_the_files_that_are_mounted() -> None:
    (file,) = [word.partition("=")[2] for word in PROMETHEUS.command if word.startswith("--config.file=")]
    folder, _, name = file.rpartition("/")
    source = PROJECT / PROMETHEUS.mounts[folder]
    assert source == PROJECT / "config" / "prometheus"
    assert (source / name).is_file()
    rule_files = scraping().rule_files
    assert rule_files, "relative to that file, as Prometheus reads them"
    assert all((source / rule_file).is_file() for rule_file in rule_files)


def test_targets_are_services_with_these_ports() -> None:
    targets = {
        job.job_name: target
        for job in scraping().scrape_configs
        for static in job.static_configs
        for target in static.targets
    }
    worker_port = SERVICES["worker"].environment["METRICS_PORT"]
    assert targets == {"worker": f"worker:{worker_port}", "triton": "triton:8002"}
    assert 8002 in SERVICES["triton"].inner_ports


def test_grafana_asks_the_prometheus_beside_it() -> None:
    (source,) = Provisioning.model_validate(
        load("grafana/provisioning/datasources/prometheus.yml")
    ).datasources
    assert (source.uid, source.type) == (DATA_SOURCE, "prometheus")
    host, _, port = source.url.removeprefix("http://").partition(":")
    assert int(port) in SERVICES[host].inner_ports
    assert source.jsonData["timeInterval"] == scraping().settings.scrape_interval


def test_grafana_finds_what_is_provisioned() -> None:
    assert PROJECT / GRAFANA.mounts["/etc/grafana/provisioning"] == PROJECT / "grafana" / "provisioning"
    (provider,) = Providers.model_validate(load("grafana/provisioning/dashboards/promptbus.yml")).providers
    assert PROJECT / GRAFANA.mounts[provider.options["path"]] == DASHBOARDS
    folder, _, home = GRAFANA.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].rpartition("/")
    assert folder == provider.options["path"]
    assert (DASHBOARDS / home).is_file()
    assert GRAFANA.environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_dashboards_ask_the_provisioned_data_source() -> None:
    for file in DASHBOARDS.glob("*.json"):
        tree = json.loads(file.read_text())
        # What is chosen when nobody has chosen anything.
        chosen = {
            f"${{{variable['name']}}}": variable["current"]["value"]
            for variable in tree["templating"]["list"]
            if variable["type"] == "datasource"
        }
        uids = {chosen.get(source["uid"], source["uid"]) for source in data_sources(tree)}
        # Grafana's own source of annotations has a name instead of an id; the runbook is text only.
        assert uids - {"-- Grafana --"} == ({DATA_SOURCE} if file.stem != "runbook" else set()), file.name


def data_sources(tree: object) -> Iterator[dict[str, str]]:
    """Every `datasource` of a dashboard, wherever it stands."""
    if isinstance(tree, dict):
        found = tree.get("datasource")
        if found is not None:
            assert isinstance(found, dict), f"by its uid, not as {found}"
            yield found
        for value in tree.values():
            yield from data_sources(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from data_sources(value)
