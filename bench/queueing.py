"""What a Triton can take, and how long answers take then: the formulas of docs/capacity.md. Pure.

Times are in seconds, rates in prompts per second. The queue behind them: prompts arrive at random (Poisson) and wait in
one line; whenever one of `instances` is free it takes as many as wait, at most `batch`, and works for `service_s`.
"""

from dataclasses import dataclass
from math import ceil, inf, log

HEADROOM = 0.7
"""The share of a processor or a capacity that a plan should use."""


@dataclass(frozen=True, slots=True)
class Server:
    """`service_s`: of one batch on one instance, full or not. `variation`: its standard deviation ÷ mean."""

    instances: int
    batch: int
    service_s: float
    variation: float = 0.0

    @property
    def capacity(self) -> float:
        """All instances busy, all batches full."""
        return self.throughput(self.instances)

    def throughput(self, in_flight: int) -> float:
        """With never more than so many full batches in flight, by Little's law: N = X · R."""
        return min(in_flight, self.instances) * self.batch / self.service_s

    def utilisation(self, rate: float) -> float:
        """Share of the capacity."""
        return rate / self.capacity

    def response_s(self, rate: float) -> float:
        """Mean time until the answer; infinite from the capacity on."""
        waits, queue_s = self._queue(rate)
        next_free_s = self.service_s / self.instances * (1 + self.variation**2) / 2
        return self.service_s + self._finds_all_busy(rate) * next_free_s + waits * queue_s

    def percentile_s(self, rate: float, share: float) -> float:
        """The response time that `share` of the prompts do not exceed, for batches that all take as long."""
        late = 1 - share
        all_busy, (waits, queue_s) = self._finds_all_busy(rate), self._queue(rate)
        next_free_s = self.service_s / self.instances * max(0.0, 1 - late / all_busy) if all_busy else 0.0
        return self.service_s + next_free_s + (queue_s * log(waits / late) if waits > late else 0.0)

    def _finds_all_busy(self, rate: float) -> float:
        """A prompt that finds an instance free goes alone, so at low rates each is a batch of its own."""
        return erlang_c(self.instances, rate * self.service_s)

    def _queue(self, rate: float) -> tuple[float, float]:
        """How probable it is that a full batch has to wait, and for how long it does then on average.

        Allen–Cunneen's approximation for G/G/c; a full batch comes with every `batch`-th prompt, so the squared
        coefficient of variation of the times between them is 1 / batch.
        """
        used = self.utilisation(rate)
        if used >= 1:
            return 1.0, inf
        both = (1 / self.batch + self.variation**2) / 2
        return erlang_c(self.instances, used * self.instances), both * self.service_s / (
            self.instances * (1 - used)
        )


def erlang_c(servers: int, offered: float) -> float:
    """The probability that all of so many servers are busy, at `offered` = arrivals · service time; 1 from `servers` on."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = offered * blocked / (busy + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def processor_bound(processes: int, worker_cpu_s: float, all_cpu_s: float, cores: int) -> float:
    """The most that processes can do which use one core each, if all of it together has `cores`.

    `worker_cpu_s` and `all_cpu_s`: CPU for each prompt, in the worker and with Kafka and Triton on the same machine.
    """
    return min(processes / worker_cpu_s, cores / all_cpu_s)


def processes_for(rate: float, worker_cpu_s: float) -> int:
    """Worker processes for a rate, each with a core of which HEADROOM is used."""
    return max(1, ceil(rate * worker_cpu_s / HEADROOM))


def drain_s(lag: float, capacity: float, arriving: float) -> float:
    """How long it takes until nothing waits; infinite if as much arrives as is answered."""
    return lag / (capacity - arriving) if capacity > arriving else inf
