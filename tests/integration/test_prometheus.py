"""The stack's Prometheus: it scrapes what it is told, and says what is wrong with a query or a rule."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stack.errors import StartFailed
from stack.prometheus import Prometheus, QueryFailed
from tests.integration.system import eventually


@pytest.fixture
def target() -> Iterator[str]:
    """The address of a server whose one counter grows with every scrape."""
    scrapes = 0

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal scrapes
            scrapes += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                f'# TYPE scrapes_total counter\nscrapes_total{{place="here"}} {scrapes}\n'.encode()
            )

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_scrapes_its_targets_and_answers_queries(target: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "groups: [{name: one, rules: [{record: doubled, expr: 2 * sum by (place) (scrapes_total)}]}]"
    )
    with Prometheus({"counting": target}, 0.1, [rules]) as prometheus:
        eventually("three scrapes", lambda: [s for s in prometheus.query("scrapes_total") if s.last >= 3])
        (series,) = prometheus.query("scrapes_total")
        assert series.labels["job"] == "counting"
        assert series.labels["place"] == "here"
        now = series.points[0][0]
        (grown,) = prometheus.query_range("scrapes_total", now - 5, now, 0.1)
        values = [value for _, value in grown.points]
        assert values == sorted(values)
        assert len(set(values)) >= 3
        assert prometheus.query("1 + 1")[0].last == 2
        eventually("the rule was evaluated", lambda: prometheus.query("doubled"))
        with pytest.raises(QueryFailed, match=r"parse error.* in sum\("):
            prometheus.query("sum(")

        prometheus.stop()
        assert not prometheus.running
        with pytest.raises(QueryFailed, match="does not answer"):
            prometheus.query("up")
        prometheus.start()
        assert prometheus.query_range("scrapes_total", now - 5, now, 0.1), "its data did not survive a stop"


def test_a_broken_rule_file_is_named(tmp_path: Path) -> None:
    rules = tmp_path / "broken.yml"
    rules.write_text("groups: [{name: one, rules: [{record: doubled, expr: 'sum('}]}]")
    with pytest.raises(StartFailed, match=r"refuses its configuration or a rule file(.|\n)*broken\.yml"):
        Prometheus({}, rules=[rules]).start()
