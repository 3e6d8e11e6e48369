"""Watch the workers in the terminal: throughput, latency, lag, batches, calls, tokens, memory, until Ctrl-C.

Rates and latencies are of the time between two looks at the worker's /metrics. Elsewhere than on a terminal the frames
follow each other as plain text.

exit codes: 0 ended by Ctrl-C, by --once or by its reader · 1 no metrics (--once only) · 2 usage

examples:
  promptbus top
  promptbus top --url worker-7:8003 --interval 5
  promptbus top --once
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from promptbus.commands.outcome import NOT_ALL, OK, USAGE, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from promptbus.top.scrape import Scrape

SUMMARY = "watch the workers live"

SHORTEST_S = 0.5  # the workers themselves write that often


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        metavar="URL",
        help="host:port or http://… of a worker's metrics (METRICS_HOST, METRICS_PORT)",
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two looks (default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="one frame, of one interval, and end")


def run(arguments: argparse.Namespace) -> int:
    from promptbus.cli import drop_stdout

    if not arguments.interval >= SHORTEST_S:
        say(f"--interval must be at least {SHORTEST_S:g}: workers do not count more often")
        return USAGE
    if find_spec("rich") is None:
        say("`promptbus top` needs rich: pip install 'promptbus[top]'")
        return USAGE
    from rich.console import Console

    from promptbus.settings import MetricsSettings, load
    from promptbus.top.scrape import metrics_url, url_of

    try:
        if arguments.url is not None:
            url = metrics_url(arguments.url)
        else:
            settings = load(MetricsSettings)
            url = url_of(settings.metrics_host, settings.metrics_port)
    except ValueError as problem:
        say(str(problem))
        return USAGE
    console = Console(highlight=False, soft_wrap=False)
    try:
        return (once if arguments.once else watch)(console, url, arguments.interval)
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:
        drop_stdout()
        return OK


def once(console: Console, url: str, interval_s: float) -> int:
    """Print one frame."""
    from promptbus.top.frame import compute
    from promptbus.top.scrape import ScrapeFailed, scrape
    from promptbus.top.screen import draw

    try:
        before = scrape(url)
        time.sleep(interval_s)
        now = scrape(url)
    except ScrapeFailed as problem:
        say(str(problem))
        return NOT_ALL
    console.print(draw(compute(before, now), title=_title(url), clock=_clock()))
    return OK


def watch(console: Console, url: str, interval_s: float) -> int:
    """Draw a frame per interval, until Ctrl-C."""
    from rich.live import Live

    look = Look(url)
    if not console.is_terminal or console.is_dumb_terminal:
        while True:
            console.print(look.frame())
            console.print()
            sys.stdout.flush()
            time.sleep(interval_s)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(look.frame(), refresh=True)
            time.sleep(interval_s)


class Look:
    """The scrapes so far."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before: Scrape | None = None
        self._now: Scrape | None = None

    def frame(self) -> RenderableType:
        """Look again. While nobody answers: the last frame there was, and why it is old."""
        from promptbus.top.frame import compute
        from promptbus.top.scrape import ScrapeFailed, scrape
        from promptbus.top.screen import draw, waiting

        title, problem = _title(self._url), None
        try:
            now = scrape(self._url)
        except ScrapeFailed as failed:
            problem = f"{failed}; trying again"
        else:
            self._before, self._now = self._now, now
        if self._now is None:
            return waiting(title, _clock(), problem or "")
        return draw(compute(self._before, self._now), title=title, clock=_clock(), problem=problem)


def _title(url: str) -> str:
    return f"promptbus top {url}"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
