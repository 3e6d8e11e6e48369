"""Holds the model of docs/capacity.md against measurements: predicted beside measured, as Markdown.

python -m bench.capacity                   everything, about five minutes on an idle machine
python -m bench.capacity --only in-flight,response --window 3
python -m bench.capacity --write           everything, into the document too
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from bench import environments, tables
from bench.contenders.contender import Contender
from bench.contenders.known import promptbus_command
from bench.measuring import latency, window
from bench.measuring.figures import Figures
from bench.measuring.run import CONTENDER
from bench.queueing import Server, processor_bound
from bench.services import Services
from bench.workloads import BY_NAME, SLOW_INSTANCES, SLOW_MS, Workload
from stack.cache import PROJECT
from stack.errors import StackError
from stack.process import end_like_an_interrupt
from stack.triton import Triton

SLOW = Server(SLOW_INSTANCES, batch=8, service_s=SLOW_MS / 1000)
IN_FLIGHT = range(1, 9)
USED = (0.25, 0.5, 0.75, 0.9)
PROCESSES = (1, 2, 4)
PARTITIONS = (1, 2, 4, 12)
ENOUGH_PARTITIONS = 12
HEADING = ["", "predicted", "measured", "÷"]
DOCUMENT = PROJECT / "docs" / "capacity.md"
BEGIN, END = "<!-- written by python -m bench.capacity --write -->\n", "<!-- end of what was measured -->\n"


class Measurements:
    """One Kafka and one Triton; each method is a table. `window_s` None: as long as each needs."""

    def __init__(self, services: Services, window_s: float | None, say: Callable[[str], None]) -> None:
        self._services = services
        self._window_s = window_s
        self._say = say
        self._of_processes: dict[int, Figures] = {}

    def in_flight(self) -> tables.Table:
        """Prompts/s over a fixed number of batches in flight."""
        work = self._sized(replace(BY_NAME["slow"], records=8_000), 4.5)
        rows = [HEADING]
        for number in IN_FLIGHT:
            found = self._throughput(work, 1, _fixed(number))
            rows.append(_row(f"{number} in flight", SLOW.throughput(number), found.prompts_per_s))
        return rows

    def response(self) -> tables.Table:
        """Response time over utilisation, of requests that come at random."""
        rates = tuple(round(share * SLOW.capacity) for share in USED)
        work = self._sized(replace(BY_NAME["slow"], rates=rates, at_random=True), 10.0)
        rows = [["", "predicted p50", "measured", "÷", "predicted p95", "measured", "÷", "mean batch"]]
        for said, settings in (("", {}), (f", {SLOW_INSTANCES} in flight", _fixed(SLOW_INSTANCES))):
            worker = Contender("promptbus", "", partial(promptbus_command, 1, settings=settings))
            found = latency.measure(worker, work, self._services)
            for rate, share, figures in zip(rates, USED, found.values(), strict=True):
                half = _row("", SLOW.percentile_s(rate, 0.5) * 1000, figures.p50_ms or 0, " ms")[1:]
                most = _row("", SLOW.percentile_s(rate, 0.95) * 1000, figures.p95_ms or 0, " ms")[1:]
                rows.append([f"{share:.0%}{said}", *half, *most, f"{figures.mean_batch:.1f}"])
                self._say(f"{rows[-1]}, unanswered {figures.unanswered}")
        return rows

    def processes(self) -> tables.Table:
        """Prompts/s over processes where the processor is the limit."""
        rows = [[*HEADING, "CPU µs, worker", "CPU µs, all"]]
        for number in PROCESSES:
            found = self._instant(number, ENOUGH_PARTITIONS)
            costs = [f"{found.cpu_us[CONTENDER]:.1f}", f"{sum(found.cpu_us.values()):.1f}"]
            rows.append([*_row(f"{number} processes", self._bound(number), found.prompts_per_s), *costs])
        return rows

    def partitions(self) -> tables.Table:
        """Prompts/s over partitions, with two processes where the processor is the limit."""
        rows = [HEADING]
        for partitions in PARTITIONS:
            found = self._instant(2, partitions)
            rows.append(
                _row(f"{partitions} partitions", self._bound(min(2, partitions)), found.prompts_per_s)
            )
        return rows

    def sharing(self) -> tables.Table:
        """Prompts/s over partitions, with four processes that each have one batch in flight."""
        rows = [HEADING]
        for partitions in PARTITIONS:
            work = replace(BY_NAME["slow"], name=f"slow-{partitions}", partitions=partitions, records=12_000)
            found = self._throughput(self._sized(work, 4.5), 4, _fixed(1))
            predicted = SLOW.throughput(min(4, partitions))
            rows.append(_row(f"{partitions} partitions", predicted, found.prompts_per_s))
        return rows

    def servers(self) -> tables.Table:
        """Prompts/s with one Triton and with two, the second one's URL beside the first one's."""
        work = self._sized(replace(BY_NAME["slow"], records=20_000), 4.5)
        rows = [HEADING]
        first = self._services.triton
        with Triton(repository=first.repository) as second:
            for urls in ([first.url], [first.url, second.url]):
                found = self._throughput(work, 1, {"TRITON_URL": ",".join(urls)})
                predicted = len(urls) * SLOW.capacity
                rows.append(_row(f"{len(urls)} in TRITON_URL", predicted, found.prompts_per_s))
        return rows

    def _sized(self, work: Workload, window_s: float) -> Workload:
        return replace(work, window_s=self._window_s or window_s)

    def _instant(self, processes: int, partitions: int) -> Figures:
        name = f"instant-{partitions}"
        work = replace(BY_NAME["instant"], name=name, partitions=partitions, records=250_000)
        found = self._throughput(self._sized(work, 4.0), processes)
        if partitions == ENOUGH_PARTITIONS:
            self._of_processes.setdefault(processes, found)
        return found

    def _bound(self, processes: int) -> float:
        """By what a prompt costs with one process, measured once."""
        if 1 not in self._of_processes:
            self._instant(1, ENOUGH_PARTITIONS)
        cost = self._of_processes[1].cpu_us
        cores = len(os.sched_getaffinity(0))
        return processor_bound(processes, cost[CONTENDER] / 1e6, sum(cost.values()) / 1e6, cores)

    def _throughput(self, work: Workload, processes: int, settings: dict[str, str] | None = None) -> Figures:
        command = partial(promptbus_command, processes, settings=settings)
        worker = Contender(f"promptbus, {processes} processes", "", command, members=processes)
        found = window.measure(worker, work, self._services)
        self._say(
            f"{work.name}, {processes} processes {settings or ''}: {found.prompts_per_s:,.0f} prompts/s, "
            f"{found.peak_mb:.0f} MB, mean batch {found.mean_batch:.1f}"
        )
        return found


TABLES: dict[str, tuple[str, Callable[[Measurements], tables.Table]]] = {
    "in-flight": ("150 ms × 4 instances: prompts/s over batches in flight", Measurements.in_flight),
    "response": ("150 ms × 4 instances: response time over utilisation", Measurements.response),
    "sharing": ("150 ms × 4, four processes with one batch each: prompts/s", Measurements.sharing),
    "servers": ("150 ms × 4 for each Triton: prompts/s", Measurements.servers),
    "processes": ("instant model: prompts/s over processes", Measurements.processes),
    "partitions": ("instant model, two processes: prompts/s over partitions", Measurements.partitions),
}


def _fixed(in_flight: int) -> dict[str, str]:
    return {"CONCURRENCY_MIN": str(in_flight), "CONCURRENCY_MAX": str(in_flight)}


def _row(name: str, predicted: float, measured: float, unit: str = "") -> list[str]:
    return [name, f"{predicted:,.0f}{unit}", f"{measured:,.0f}{unit}", f"{measured / predicted:.2f}"]


def written(document: str, parts: Sequence[str]) -> str:
    """The document with these between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(parts) + END + after


def main(arguments: Sequence[str]) -> int:
    """Measure and print. Exit codes: 0; 1 when something did not work; 2 for a table that is none; 130 interrupted."""
    parser = argparse.ArgumentParser(
        "python -m bench.capacity", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(TABLES), metavar="A,B", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--window", type=float, metavar="S", help="seconds of every window")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/capacity.md")
    options = parser.parse_args(arguments)
    wanted = [name.strip() for name in options.only.split(",")]
    unknown = set(wanted) - set(TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if options.write and set(wanted) != set(TABLES):
        parser.error("--write needs all tables")
    end_like_an_interrupt()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    parts = [
        f"{len(os.sched_getaffinity(0))} cores for Kafka, Triton, workers and load together, "
        f"{datetime.now(UTC):%Y-%m-%d}, the workers {environments.worker_state()}; "
        f"the load average before it began was {os.getloadavg()[0]:.1f}.\n"
    ]
    try:
        with Services(engine=None, say=say) as services:
            measurements = Measurements(services, options.window, say)
            for name in wanted:
                title, measure = TABLES[name]
                parts.append(f"**{title}**\n\n{tables.markdown(measure(measurements))}")
                print(f"\n{parts[-1]}", flush=True)
    except StackError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    if options.write:
        DOCUMENT.write_text(written(DOCUMENT.read_text(), parts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
