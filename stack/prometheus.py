"""A real Prometheus on this machine, for tests and for looking at dashboards; `promtool` comes with it.

`python -m stack.prometheus` fetches it if it is not there; `make test` does that before the tests run.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from pydantic import BaseModel

from stack import contents
from stack.errors import PortTaken, StackError
from stack.loopback import http_get
from stack.ports import HOST, free_ports, require_free, taken_sentence
from stack.process import Process, server_environment, tail

START_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 30.0
PORT_ATTEMPTS = 5


class QueryFailed(StackError):
    """Prometheus refused a query; the message is its own."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of an answer: its labels, and (Unix seconds, value) in the order of time."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is `pending` or `firing`; its labels hold its name, its annotations are filled in."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Prometheus:
    """One server on 127.0.0.1 only, on a free port unless it is named, that scrapes what it is told.

    `targets`: job → `host:port`; each is scraped at /metrics every `interval_s`.
    `rules`: rule files, evaluated at the same interval.

    A context manager; its data is gone with the block if nobody named a folder.
    Errors: DownloadFailed, PortTaken, StartFailed, all with a sentence for people.
    """

    def __init__(
        self,
        targets: Mapping[str, str],
        interval_s: float = 1.0,
        rules: Sequence[Path] = (),
        port: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._targets = dict(targets)
        self._interval_s = interval_s
        self._rules = [rule.resolve() for rule in rules]
        self._wanted_port = port
        self._own_folder = folder is None
        self.folder = folder
        self.port: int | None = None
        self.process: Process | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://{HOST}:{self._known_port()}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    def start(self) -> Self:
        """Returns when it answers queries. Starting what already runs does nothing."""
        if self.running:
            return self
        binary = contents.prometheus_binary("prometheus")
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="promptbus-prometheus-"))
        try:
            self._start_on_a_port(binary, self.folder)
        except BaseException:
            if self.port is None:
                self.close()
            raise
        return self

    def query(self, expression: str, at: float | None = None) -> list[Line]:
        """An instant query, now or at a Unix time. Series without a value are not in it. Raises QueryFailed."""
        return self._ask("query", {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"}))

    def query_range(self, expression: str, start: float, end: float, step_s: float) -> list[Line]:
        """A range query between two Unix times. Raises QueryFailed."""
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:g}"}
        return self._ask("query_range", {"query": expression, **times})

    def alerts(self) -> list[Alert]:
        """What its rules say now. Raises QueryFailed."""
        found = _Alerts.model_validate_json(self._get("/api/v1/alerts")).data.alerts
        return [Alert(a.labels["alertname"], a.state, a.labels, a.annotations) for a in found]

    def stop(self) -> None:
        """End it in an orderly way; `start` goes on with its data. Idempotent."""
        if self.process is not None:
            self.process.stop()

    def close(self) -> None:
        """Kill it if it runs, and remove its folder if nobody named one."""
        if self.process is not None:
            self.process.kill()
        if self._own_folder and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return tail(self.folder / "prometheus.log", lines) if self.folder is not None else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known_port(self) -> int:
        if self.port is None:
            raise StackError("Prometheus was not started, so it has no address yet.")
        return self.port

    def _start_on_a_port(self, binary: Path, folder: Path) -> None:
        fixed = self.port or self._wanted_port
        if fixed is not None:
            require_free(fixed, "Prometheus")
        for attempt in range(PORT_ATTEMPTS):
            port = fixed or free_ports(1)[0]
            try:
                self._launch(binary, folder, port)
            except PortTaken:
                if fixed is not None or attempt == PORT_ATTEMPTS - 1:
                    raise
            else:
                self.port = port
                return

    def _launch(self, binary: Path, folder: Path, port: int) -> None:
        configuration = folder / "prometheus.yml"
        configuration.write_text(self._configuration())
        log = folder / "prometheus.log"
        log.unlink(missing_ok=True)
        self.process = Process(
            f"Prometheus on port {port}",
            [
                binary,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={HOST}:{port}",
                "--log.level=warn",
            ],
            log=log,
            env=server_environment(),
            cwd=folder,
            remove_if_orphaned=[folder] if self._own_folder else [],
        )
        self.process.wait_ready(lambda: _ready(port), START_TIMEOUT_S, lambda text: _explain(text, port))

    def _configuration(self) -> str:
        """JSON, which is YAML too."""
        interval = f"{round(self._interval_s * 1000)}ms"
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [address]}]}
            for job, address in self._targets.items()
        ]
        return json.dumps(
            {
                "global": {
                    "scrape_interval": interval,
                    "scrape_timeout": interval,
                    "evaluation_interval": interval,
                },
                "rule_files": [str(rule) for rule in self._rules],
                "scrape_configs": jobs,
            },
            indent=2,
        )

    def _ask(self, endpoint: str, parameters: Mapping[str, str]) -> list[Line]:
        parsed = _Answer.model_validate_json(self._get(f"/api/v1/{endpoint}?{urlencode(parameters)}"))
        if parsed.data is None:
            raise QueryFailed(f"{parsed.error} in {parameters['query']}")
        return parsed.data.lines()

    def _get(self, path: str) -> bytes:
        answer = http_get(self._known_port(), path, QUERY_TIMEOUT_S)
        if answer is None:
            raise QueryFailed(f"{self.url} does not answer. Its log ends with:\n{self.tail()}")
        return answer.body


class _Series(BaseModel):
    """`values` of a range query, `value` of an instant one."""

    metric: dict[str, str]
    value: tuple[float, str] | None = None
    values: list[tuple[float, str]] = []

    def line(self) -> Line:
        points = self.values if self.value is None else [self.value]
        return Line(self.metric, [(time, float(value)) for time, value in points])


class _Data(BaseModel):
    """`result` of a scalar or a string is one point without a series."""

    result: list[_Series] | tuple[float, str]

    def lines(self) -> list[Line]:
        if isinstance(self.result, tuple):
            return [Line({}, [(self.result[0], float(self.result[1]))])]
        return [series.line() for series in self.result]


class _Answer(BaseModel):
    """What the HTTP API answers: `data` or `error`."""

    data: _Data | None = None
    error: str = ""


class _Alert(BaseModel):
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]


class _AlertList(BaseModel):
    alerts: list[_Alert]


class _Alerts(BaseModel):
    """What /api/v1/alerts answers."""

    data: _AlertList


def _ready(port: int) -> bool:
    answer = http_get(port, "/-/ready")
    return answer is not None and answer.status == 200


def _explain(log: str, port: int) -> str:
    """What a log of a failed start means; empty if nothing known is in it. Raises PortTaken."""
    if "address already in use" in log:
        raise PortTaken(taken_sentence(port, "Prometheus"))
    if "rror loading config" in log:
        return f"It refuses its configuration or a rule file:\n{log[-2000:]}"
    return ""


def main() -> int:
    try:
        contents.prometheus_binary("prometheus")
    except StackError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
