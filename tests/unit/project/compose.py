"""docker-compose.yml as an engine would read it: variables replaced, every key known to these classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

PROJECT = Path(__file__).resolve().parents[3]
FILE = PROJECT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

Text = Annotated[str, BeforeValidator(str)]
"""What a container gets: numbers become text."""


class _Known(BaseModel):
    """A key that no test knows of is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Build(_Known):
    context: str
    dockerfile: str
    args: dict[str, Text] = {}


class Healthcheck(_Known):
    test: list[str]
    interval: str
    timeout: str
    retries: int
    start_period: str


class Dependency(_Known):
    condition: str


class Service(_Known):
    image: str
    build: Build | None = None
    pull_policy: str | None = None
    command: list[str] = []
    environment: dict[str, Text] = {}
    ports: list[str] = []
    volumes: list[str] = []
    tmpfs: list[str] = []
    shm_size: str | None = None
    user: str | None = None
    read_only: bool = False
    restart: str
    cap_drop: list[str]
    security_opt: list[str]
    stop_grace_period: str = "10s"
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None

    @property
    def inner_ports(self) -> set[int]:
        """The container's ports that are published."""
        return {int(port.rpartition(":")[2]) for port in self.ports}

    @property
    def mounts(self) -> dict[str, str]:
        """Target → source."""
        return {target: source for source, target, *_ in (volume.split(":") for volume in self.volumes)}


class Compose(_Known):
    name: str
    services: dict[str, Service]
    volumes: dict[str, None]


def text(variables: Mapping[str, str]) -> str:
    """The file with its variables replaced by these, or by their defaults."""
    return VARIABLE.sub(lambda match: variables.get(match[1]) or match[2], FILE.read_text())


@cache
def compose() -> Compose:
    """With every variable at its default."""
    return read({})


def read(variables: Mapping[str, str]) -> Compose:
    """With these variables."""
    tree = yaml.safe_load(text(variables))
    return Compose.model_validate({key: value for key, value in tree.items() if not key.startswith("x-")})


def seconds(duration: str) -> int:
    """`40s`, as this file writes durations."""
    assert duration.endswith("s")
    return int(duration[:-1])


def listeners(value: str) -> dict[str, tuple[str, int]]:
    """Kafka's `NAME://host:port,…` as name → (host, port)."""
    found = re.findall(r"(\w+)://([^:,]*):(\d+)", value)
    assert len(found) == len(value.split(","))
    return {name: (host, int(port)) for name, host, port in found}
