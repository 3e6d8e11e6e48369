"""Memory, file descriptors and threads of processes over time, and whether they stay flat."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import psutil

from tests.integration.system import Workers

EVERY_S = 0.5
TOLERANCES = {"memory_mb": 3.0, "file_descriptors": 2.0, "threads": 1.0}
"""Flat: the median of the last third of a time is at most so much above that of the second third. A leak grows on."""
FEWEST_SAMPLES = 9


@dataclass(frozen=True)
class Sample:
    """Of one process, at a Unix time."""

    at: float
    memory_mb: float
    file_descriptors: float
    threads: float


class Watch:
    """A context manager: looks at a supervisor and its processes from entry to exit."""

    def __init__(self, workers: Workers) -> None:
        self._processes = {"supervisor": psutil.Process(workers.process.pid)}
        self._processes |= {f"worker {slot}": child for slot, child in enumerate(workers.children())}
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        left = dict(self._processes)
        while left and not self._end.wait(EVERY_S):
            for name, process in list(left.items()):
                try:
                    with process.oneshot():
                        memory_mb = process.memory_info().rss / 2**20
                        sample = Sample(time.time(), memory_mb, process.num_fds(), process.num_threads())
                except psutil.Error:  # it has ended; that there are no more samples of it will be seen
                    del left[name]
                else:
                    self._samples[name].append(sample)

    def thirds(self, since: float, until: float) -> dict[str, dict[str, list[float]]]:
        """For each process and measure, the medians of the three thirds of this time."""
        found: dict[str, dict[str, list[float]]] = {}
        for name in self._processes:
            samples = [each for each in list(self._samples[name]) if since <= each.at <= until]
            found[name] = {
                measure: thirds([getattr(each, measure) for each in samples]) for measure in TOLERANCES
            }
        return found

    def grown(self, since: float, until: float, measures: Collection[str] = tuple(TOLERANCES)) -> list[str]:
        """Which of these was not flat in this time, a sentence each; also who was not there to the end of it."""
        sentences = []
        for name, found in self.thirds(since, until).items():
            if not self._samples[name] or self._samples[name][-1].at < until - 10 * EVERY_S:
                sentences.append(f"{name} has ended")
            whys = (not_flat(measure, found[measure]) for measure in measures)
            sentences += [f"{name}: {why}" for why in whys if why]
        return sentences


def thirds(values: Sequence[float]) -> list[float]:
    """The medians of the first, second and last third; none of fewer than nine values."""
    size = len(values) // 3
    if len(values) < FEWEST_SAMPLES:
        return []
    parts = (values[:size], values[size : 2 * size], values[2 * size :])
    return [round(median(part), 1) for part in parts]


def not_flat(measure: str, medians: Sequence[float]) -> str | None:
    """Why these thirds are not flat, if they are not."""
    if not medians:
        return f"{measure} was not measured often enough"
    _, second, last = medians
    if last > second + TOLERANCES[measure]:
        return f"{measure} grew from {second:g} to {last:g}"
    return None
