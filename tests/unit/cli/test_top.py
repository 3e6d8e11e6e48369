"""`promptbus top`: scrapes read, frames computed from two of them, and drawn."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from promptbus.cli import main
from promptbus.commands import top as command
from promptbus.top.frame import Count, Frame, Partition, compute, quantile
from promptbus.top.scrape import Scrape, ScrapeFailed, metrics_url, parse, scrape, url_of
from promptbus.top.screen import COLUMNS, draw, duration, rate
from promptbus_worker.metrics import Metrics
from promptbus_worker.vocabulary import FLEET_SERIES, LAG_SERIES, SLOT_MEMORY
from tests.unit.cli.commands import interrupt, promptbus, started

WITHIN_S = 60.0
FLEET = """\
# HELP promptbus_workers Worker processes running
# TYPE promptbus_workers gauge
promptbus_workers 2.0
promptbus_worker_restarts_total 3.0
promptbus_time_to_drain_seconds 90.0
promptbus_worker_resident_memory_bytes{slot="10"} 9.1e+07
promptbus_worker_resident_memory_bytes{slot="2"} 8.4e+07
promptbus_lag_records{partition="0",topic="in"} 10.0
promptbus_lag_records{partition="1",topic="in"} 400.0
promptbus_lag_seconds{partition="0",topic="in"} 0.5
promptbus_lag_seconds{partition="1",topic="in"} 7.5
"""


def text_of(metrics: Metrics) -> str:
    """What a worker with these serves, with a supervisor's series."""
    return generate_latest(metrics.registry).decode() + FLEET


def two_seconds_of_work() -> tuple[Scrape, Scrape]:
    """Before and after: 100 answers, 2 errors, 13 batches, of a worker that had done something before."""
    metrics = Metrics(["m"])
    metrics.requests_total["m", "ok"].inc(1000)
    metrics.response_duration_seconds["m"].observe_many([30.0] * 1000)
    before = Scrape(10.0, parse(text_of(metrics)))
    metrics.requests_total["m", "ok"].inc(100)
    metrics.requests_total["unknown", "invalid_request"].inc(2)
    metrics.response_duration_seconds["m"].observe_many([0.004] * 98 + [0.4] * 2)
    metrics.tokens_total["m", "total"].inc(5000)
    metrics.batches_total["m", "size"].inc(12)
    metrics.batches_total["m", "slot"].inc(1)
    metrics.batch_size["m"].observe_many([8.0] * 12 + [4.0])
    metrics.inference_calls_total["m", "ok"].inc(13)
    metrics.retries_total["timeout"].inc(4)
    metrics.dead_letters_total["model_error"].inc(1)
    metrics.in_flight_batches.set(3)
    metrics.concurrency_limit.set(4)
    metrics.waiting_requests.set(17)
    metrics.assigned_partitions.set(2)
    metrics.breaker_open.set(1)
    return before, Scrape(12.0, parse(text_of(metrics)))


def drawn(frame: Frame, problem: str | None = None, *, colour: bool = False) -> str:
    """As plain text, as wide as the narrowest terminal that is catered for."""
    console = Console(
        file=io.StringIO(), width=COLUMNS, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(
        draw(frame, title="promptbus top http://worker:8003/metrics", clock="12:00:00", problem=problem)
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -- reading


def test_the_text_is_read_as_prometheus_own_parser_reads_it() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    text = text_of(Metrics(["m", 'odd "name", with\\ all {of} it\n']))
    families = text_string_to_metric_families(text)
    theirs = {
        (sample.name.removeprefix("promptbus_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    ours = {(name, labels): value for name, series in parse(text).items() for labels, value in series.items()}
    assert ours == theirs
    assert len(ours) > 300


def test_what_is_not_of_promptbus_is_passed_over_and_garbage_is_named() -> None:
    assert parse('# HELP x\n\nother{a="b"} 1\npromptbus_workers 2 1700000000000\n') == {"workers": {(): 2.0}}
    with pytest.raises(ValueError, match="<html>"):
        parse("<html>\n")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("worker:8003", "http://worker:8003/metrics"),
        ("http://worker:8003/", "http://worker:8003/metrics"),
        ("https://worker/prefix/metrics", "https://worker/prefix/metrics"),
    ],
)
def test_addresses_as_people_type_them(given: str, url: str) -> None:
    assert metrics_url(given) == url


@pytest.mark.parametrize("given", ["file:///etc/passwd", "http://", ""])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="no address of metrics"):
        metrics_url(given)


def test_a_worker_that_listens_everywhere_is_asked_on_this_machine() -> None:
    assert url_of("0.0.0.0", 8003) == "http://127.0.0.1:8003/metrics"
    assert url_of("::", 8003) == "http://[::1]:8003/metrics"
    assert url_of("10.0.0.7", 9) == "http://10.0.0.7:9/metrics"


# -- computing


def test_a_frame_is_of_what_came_between_both_scrapes() -> None:
    frame = compute(*two_seconds_of_work())
    assert frame.over_s == 2.0
    assert frame.answered == Count("answered", 51.0, 1102.0)
    assert Count("ok", 50.0, 1100.0) in frame.outcomes
    assert Count("invalid_request", 1.0, 2.0) in frame.outcomes
    response = next(latency for latency in frame.latencies if latency.name == "response")
    p50, p95, p99 = response.quantiles
    assert p50 is not None
    assert p95 is not None
    assert p99 is not None
    assert 0.003 < p50 < p95 <= 0.005, "the thousand slow ones were before"
    assert 0.2 < p99 <= 0.5
    assert [latency.quantiles for latency in frame.latencies if latency.name == "reply"] == [(None,) * 3]
    assert Count("total", 2500.0, 5000.0) in frame.tokens
    assert Count("size", 6.0, 12.0) in frame.batches
    assert frame.batch_size == pytest.approx(100 / 13)
    assert (frame.in_flight_batches, frame.limit, frame.waiting) == (3, 4, 17)
    assert Count("ok", 6.5, 13.0) in frame.calls
    assert Count("timeout", 2.0, 4.0) in frame.retries
    assert frame.dead_letters == Count("dead letters", 0.5, 1.0)
    assert frame.breaker_open
    assert not frame.budget_exhausted
    assert (frame.workers, frame.restarts) == (2, 3)
    assert (frame.lag_records, frame.lag_seconds, frame.drain_s) == (410, 7.5, 90)
    assert frame.worst == Partition("1", 400, 7.5)
    assert frame.slots == (("2", 8.4e7), ("10", 9.1e7))


def test_the_first_frame_has_no_rates_and_latencies_since_the_start() -> None:
    frame = compute(None, two_seconds_of_work()[1])
    assert frame.over_s is None
    assert frame.answered == Count("answered", None, 1102.0)
    assert {count.per_s for count in frame.calls} == {None}
    assert frame.latencies[0].quantiles[0] is not None
    assert frame.latencies[0].quantiles[0] > 20


def test_counters_that_began_anew_do_not_run_backwards() -> None:
    before, _ = two_seconds_of_work()
    metrics = Metrics(["m"])
    metrics.requests_total["m", "ok"].inc(10)
    frame = compute(before, Scrape(15.0, parse(text_of(metrics))))
    assert frame.answered.per_s == 2.0


def test_an_idle_worker_has_no_latency_and_no_mean() -> None:
    scraped = two_seconds_of_work()[1]
    frame = compute(scraped, scraped._replace(at=14.0))
    assert {quantile for latency in frame.latencies for quantile in latency.quantiles} == {None}
    assert frame.batch_size is None
    assert frame.answered.per_s == 0.0


def test_quantiles_are_linear_within_a_bucket() -> None:
    buckets = {1.0: 0.0, 2.0: 10.0, 4.0: 20.0, inf: 20.0}
    assert quantile(buckets, 0.25) == 1.5
    assert quantile(buckets, 0.5) == 2.0
    assert quantile(buckets, 0.75) == 3.0
    assert quantile({1.0: 1.0, inf: 100.0}, 0.99) == inf
    assert quantile({1.0: 0.0, inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_every_metric_that_is_asked_for_exists() -> None:
    """A renamed metric would read as zero for ever."""
    source = "\n".join(
        (Path(command.__file__).parents[1] / "top" / name).read_text() for name in ("frame.py", "scrape.py")
    )
    asked = set(
        re.findall(
            r'"((?:[a-z]+_)+(?:total|seconds|bytes|records|partitions|requests|batches|size|limit|open|exhausted))"',
            source,
        )
    )
    registry = Metrics(["m"]).registry
    assert isinstance(registry, CollectorRegistry)
    known = {each.name for each in (*FLEET_SERIES, SLOT_MEMORY, *LAG_SERIES)}
    known |= set(parse(generate_latest(registry).decode()))
    known |= {name.removesuffix("_count") for name in known}
    assert len(asked) > 15
    assert asked <= known, asked - known


# -- drawing


def test_a_screen_says_everything_in_eighty_columns() -> None:
    text = drawn(compute(*two_seconds_of_work()))
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert len(text.splitlines()) <= 24
    for part in (
        r"of the last 2.0 s +12:00:00",
        r"workers 2 +restarts 3 +breaker OPEN +partitions 2",
        r"\nall +51 +1,102 ",
        r"\nok +50 +1,100 ",
        r"\ninvalid_request +1.0 +2 ",
        r"\ndead letters +0.5 +1 ",
        r" response +\d+.\d ms +\d+.\d ms +\d+ ms",
        r"\nrecords +410 ",
        r"\noldest +7.5 s ",
        r"\ntime to drain +1.5 min ",
        r"\nworst: partition 1 +400, 7.5 s ",
        r"\nwaiting here +17 ",
        r" closed by size +6.0 +92%",
        r" in flight / limit +3 / 4",
        r"\nok +6.5 +13 ",
        r"\nagain: timeout +2.0 +4 ",
        r" total +2,500 +5,000",
        r"MEMORY BY SLOT +2: 84 MB +10: 91 MB",
    ):
        assert re.search(part, text), f"{part!r} is not in\n{text}"
    assert "\x1b" not in text


def test_what_is_wrong_is_red_on_a_terminal_and_plain_elsewhere() -> None:
    frame = compute(*two_seconds_of_work())
    assert re.search(r"\x1b\[1;31mbreaker OPEN", drawn(frame, colour=True))
    assert "\x1b" not in drawn(frame)


def test_an_old_frame_says_why_it_is_old() -> None:
    text = drawn(compute(*two_seconds_of_work()), "no worker at there; trying again")
    assert "\nno worker at there; trying again\n" in re.sub(" +\n", "\n", text)
    assert "records" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.0042, "4.2 ms"),
        (0.85, "850 ms"),
        (9.96, "10 s"),
        (200, "3.3 min"),
        (7200.0, "2.0 h"),
        (3e6, "35 days"),
        (inf, "more"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("per_s", "text"), [(None, "-"), (0.0, "0"), (0.5, "0.5"), (12345.6, "12,346")])
def test_rates_are_short(per_s: float | None, text: str) -> None:
    assert rate(per_s) == text


# -- the command


class Page:
    """Serves one text, which a test may change; None: 500."""

    def __init__(self, text: str | None) -> None:
        self.text = text
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = (page.text or "").encode()
                self.send_response(500 if page.text is None else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """As a worker that ended: nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page(text_of(Metrics(["m"])))
    yield made
    made.close()


@pytest.fixture
def environment() -> dict[str, str]:
    drop = ("METRICS_", "KAFKA_", "TRITON_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TERM")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}


def test_once_prints_one_plain_frame(page: Page, environment: dict[str, str], tmp_path: Path) -> None:
    done = promptbus(["top", "--url", page.url, "--once", "--interval", "0.5"], environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"MEMORY BY SLOT") == 1
    assert b"\x1b" not in done.stdout


def test_the_address_comes_from_the_metrics_settings(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host, port = page.url.split(":")
    monkeypatch.setenv("METRICS_HOST", host)
    monkeypatch.setenv("METRICS_PORT", port)
    assert main(["top", "--once", "--interval", "0.5"]) == 0
    assert f"promptbus top http://{page.url}/metrics" in capsys.readouterr().out


def test_once_without_a_worker_says_so_and_is_1(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    page.close()
    assert main(["top", "--url", page.url, "--once"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "is `promptbus worker` running? --url, or METRICS_HOST and METRICS_PORT" in told.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "answered 500"),
        ("<html>", "something else than metrics"),
        ("up 1\n", "none of a promptbus worker"),
    ],
)
def test_something_else_at_the_address_is_told(page: Page, text: str | None, says: str) -> None:
    page.text = text
    with pytest.raises(ScrapeFailed, match=says):
        scrape(metrics_url(page.url))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--interval", "0.1"], "at least 0.5"),
        (["--interval", "nan"], "at least 0.5"),
        (["--url", "ftp://x"], "no address of metrics"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *options]) == 2
    assert says in capsys.readouterr().err


def test_without_rich_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["top"]) == 2
    assert capsys.readouterr().err == "promptbus: `promptbus top` needs rich: pip install 'promptbus[top]'\n"


def test_the_command_line_loads_rich_for_top_only(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys, promptbus.cli as c; c.make_parser(); import promptbus; sys.exit('rich' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=False).returncode
        == 0
    )


def test_it_goes_on_without_a_worker_and_ctrl_c_ends_it(
    page: Page, environment: dict[str, str], tmp_path: Path
) -> None:
    """Elsewhere than on a terminal: frames one after the other."""
    process = started(["top", "--url", page.url, "--interval", "0.5"], environment, tmp_path)
    seen = read_until(process.stdout.fileno(), b"MEMORY BY SLOT")  # type: ignore[union-attr]  # it is a pipe
    page.text = None
    seen = read_until(process.stdout.fileno(), b"trying again")  # type: ignore[union-attr]  # it is a pipe
    assert b"answered 500" in seen
    page.text = text_of(Metrics(["m"]))
    read_until(process.stdout.fileno(), b"breaker closed")  # type: ignore[union-attr]  # it is a pipe
    code, _, err = interrupt(process)
    assert (code, err) == (0, b"")


def test_on_a_terminal_it_draws_in_place_and_ctrl_c_gives_the_screen_back(
    page: Page, environment: dict[str, str], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-m", "promptbus", "top", "--url", page.url, "--interval", "0.5"],
        env={**environment, **size, "TERM": "xterm-256color"},
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        read_until(ours, b"MEMORY BY SLOT")
        seen = read_until(ours, b"MEMORY BY SLOT")
        assert b"ANSWERED" in seen
        process.send_signal(signal.SIGINT)
        end = read_until(ours, b"\x1b[?1049l")
        assert b"Traceback" not in end
        assert process.wait(WITHIN_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """What comes until `wanted` did."""
    seen, deadline = b"", time.monotonic() + WITHIN_S
    while wanted not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"no {wanted!r} in {seen[-2000:]!r}"
        if select.select([descriptor], [], [], left)[0]:
            chunk = os.read(descriptor, 65536)
            assert chunk, f"ended before {wanted!r}: {seen[-2000:]!r}"
            seen += chunk
    return seen
