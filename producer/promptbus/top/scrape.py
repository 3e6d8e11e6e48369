"""Reads a worker's /metrics. The client has no prometheus_client, and needs none to read plain lines."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias
from urllib.error import HTTPError
from urllib.parse import urlsplit

from promptbus.plain_http import UNREACHABLE, opener, why_unreachable

PREFIX = "promptbus_"
TIMEOUT_S = 5.0
MOST_BYTES = 32 << 20

Labels: TypeAlias = tuple[tuple[str, str], ...]

# https://prometheus.io/docs/instrumenting/exposition_formats/: name, labels, value, perhaps a timestamp.
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'\s*(\w+)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"n": "\n"}


class Scrape(NamedTuple):
    """What one scrape brought: by name without `promptbus_`, by labels. `at`: monotonic seconds."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]


class ScrapeFailed(Exception):
    """A sentence: why there are no metrics, and what to do."""


def metrics_url(given: str) -> str:
    """The whole URL of what somebody may have typed: `host:port`, with or without scheme and path."""
    url = given if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{given!r} is no address of metrics: it must be host:port, http://… or https://…")
    return url if parts.path not in ("", "/") else parts._replace(path="/metrics").geturl()


def url_of(host: str, port: int) -> str:
    """Where a worker that listens there is reached from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def scrape(url: str) -> Scrape:
    """One scrape. Raises ScrapeFailed."""
    client = opener(url)
    try:
        with client.open(url, timeout=TIMEOUT_S) as answer:
            text = answer.read(MOST_BYTES).decode(errors="replace")
        at = time.monotonic()
        samples = parse(text)
    except HTTPError as refusal:
        with refusal:
            raise ScrapeFailed(
                f"{url} answered {refusal.code}; METRICS_HOST and METRICS_PORT say where the worker listens"
            ) from None
    except UNREACHABLE as problem:
        raise ScrapeFailed(
            f"no worker at {url} ({why_unreachable(problem, TIMEOUT_S)}): is `promptbus worker` running? "
            "--url, or METRICS_HOST and METRICS_PORT, say where it listens"
        ) from None
    except ValueError as problem:
        raise ScrapeFailed(f"{url} serves something else than metrics: {problem}") from None
    if "workers" not in samples:
        raise ScrapeFailed(f"{url} serves metrics, but none of a promptbus worker")
    return Scrape(at, samples)


def parse(text: str) -> dict[str, dict[Labels, float]]:
    """Samples of promptbus in Prometheus' text format. Raises ValueError, naming the line that is none."""
    found: dict[str, dict[Labels, float]] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            raise ValueError(f"cannot read {line[:60]!r}")
        name, labels, value = sample.groups()
        if name.startswith(PREFIX):
            found.setdefault(name.removeprefix(PREFIX), {})[_labels(labels or "")] = float(value)
    return found


def _labels(text: str) -> Labels:
    pairs = [(name, re.sub(r"\\(.)", _unescape, value)) for name, value in _LABEL.findall(text)]
    return tuple(sorted(pairs))


def _unescape(escape: re.Match[str]) -> str:
    return _ESCAPES.get(escape[1], escape[1])
