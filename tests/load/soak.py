"""Half of what Triton can do, for long: memory, file descriptors and threads stay flat."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field

from tests.integration.system import eventually
from tests.load.flow import Flow, latencies_s, p50_p99
from tests.load.stand import Say, Stand, capacity
from tests.load.watch import TOLERANCES, Watch

LOAD = 0.5
LEAST_ANSWERED = 0.99
"""Of what was offered in the time, answered in as long a time, that begins and ends a median latency later ..."""
HICCUP_S = 1.0
"""... less what is offered in this time, so that one pause at the end of a short run is not taken for falling behind."""


@dataclass
class Soak:
    """What was found. `violations` must be none. `resources`: medians of the thirds of the time."""

    capacity_per_s: float = 0.0
    offered_per_s: float = 0.0
    answered_per_s: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    p50_p99_s: tuple[float, float] = (0.0, 0.0)
    resources: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """For people."""
        p50, p99 = self.p50_p99_s
        rows = [
            f"{self.requests} requests in {self.seconds:.0f} s, {self.offered_per_s:.0f}/s of {self.capacity_per_s:.0f}/s: "
            f"{', '.join(f'{count} {code}' for code, count in self.codes.items())}; "
            f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms"
        ]
        for name, measures in self.resources.items():
            parts = (
                f"{measure} {' → '.join(f'{v:g}' for v in values)}" for measure, values in measures.items()
            )
            rows.append(f"  {name:12}{', '.join(parts)}")
        return "\n".join(rows)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def soak(
    stand: Stand, seconds: float, capacity_s: float, say: Say, measures: Collection[str] = tuple(TOLERANCES)
) -> Soak:
    """Run it, and end the supervisor. `capacity_s`: for how long the capacity is measured; `measures`: what must be flat."""
    found = Soak(seconds=seconds)
    say("measuring what Triton can do")
    found.capacity_per_s = can_do = capacity(stand.triton, capacity_s)
    say(f"{can_do:.0f}/s; now half of it for {seconds:.0f} s")
    with Watch(stand.workers) as watch, Flow(stand.system) as flow:
        since, until = flow.at(LOAD * can_do, seconds)
        flow.per_s = 0.0
        found.violations += watch.grown(since, until, measures)
        found.resources = watch.thirds(since, until)
        eventually("every request is answered", lambda: flow.unanswered() == 0, 60)
    flow.check()
    if (code := stand.workers.terminate(60)) != 0:
        found.violations.append(f"the supervisor ended with {code} after SIGTERM")
    found.requests = len(flow.asked)
    found.codes = dict(flow.codes().most_common())
    found.offered_per_s = found.requests / (until - since)
    found.p50_p99_s = p50_p99(latencies_s(flow.published(since, until)))
    usual_s = found.p50_p99_s[0]
    found.answered_per_s = flow.answered_per_s(since + usual_s, until + usual_s)
    if found.answered_per_s < (LEAST_ANSWERED - HICCUP_S / seconds) * found.offered_per_s:
        found.violations.append(
            f"only {found.answered_per_s:.0f}/s of {found.offered_per_s:.0f}/s were answered"
        )
    found.violations += flow.violations()
    return found
