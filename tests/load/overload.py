"""Three times as much as Triton can do: it goes on at full capacity, nothing fails, and soon after all is as before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from statistics import fmean

from tests.integration.system import eventually
from tests.load.flow import OK, Asked, Flow, latencies_s, p50_p99
from tests.load.stand import Say, Stand, capacity
from tests.load.watch import Watch

CALM, EXCESS = 0.5, 3.0
"""Load before and after, and in between, as multiples of the capacity."""
PATIENT_EVERY = 4
"""Each fourth request has no deadline. Without the others' these would be three quarters of the capacity."""
DEADLINE_S = 5.0
NORMAL, NEARLY_ALL = 2.0, 0.95
"""All is normal again in the first second of which so large a share of the requests is answered within so many times the
99th percentile of the calm before."""


@dataclass(frozen=True)
class Phases:
    """Seconds: of the direct load that measures the capacity, of calm, of excess, of calm again."""

    capacity_s: float
    calm_s: float
    excess_s: float
    after_s: float


@dataclass(frozen=True)
class Bounds:
    """What a run has to keep."""

    of_capacity: float = 0.95
    recovered_within_s: float = 15.0


@dataclass
class Overload:
    """What was found. `violations` must be none. Rates are per second, latencies from published to answered."""

    capacity_per_s: float = 0.0
    offered_per_s: float = 0.0
    answered_per_s: float = 0.0
    of_capacity: float = 0.0
    concurrency_limit: float = 0.0
    """Batches that all processes together would have had in flight at the end of the excess."""
    excess_s: float = 0.0
    requests: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    calm_p50_p99_s: tuple[float, float] = (0.0, 0.0)
    excess_p50_p99_s: tuple[float, float] = (0.0, 0.0)
    drained_after_s: float = 0.0
    normal_after_s: float = 0.0
    resources: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """For people."""
        return (
            f"offered {self.offered_per_s:.0f}/s for {self.excess_s:.0f} s to a Triton that can do "
            f"{self.capacity_per_s:.0f}/s: answered {self.answered_per_s:.0f}/s, {self.of_capacity:.3f} of the capacity; "
            f"{', '.join(f'{count} {code}' for code, count in self.codes.items())}; "
            f"what had no deadline was answered {self.drained_after_s:.1f} s after the end of the excess, "
            f"and latency was normal after {self.normal_after_s:.1f} s"
        )

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def overload(stand: Stand, phases: Phases, say: Say, bounds: Bounds) -> Overload:
    """Run it, and end the supervisor."""
    found = Overload(excess_s=phases.excess_s)
    say("measuring what Triton can do")
    found.capacity_per_s = can_do = capacity(stand.triton, phases.capacity_s)
    say(f"{can_do:.0f}/s; now half of it")
    flow = Flow(stand.system, deadline_s=DEADLINE_S, patient_every=PATIENT_EVERY)
    with Watch(stand.workers) as watch, flow:
        calm = flow.at(CALM * can_do, phases.calm_s)
        say(f"now {EXCESS * can_do:.0f}/s")
        excess = flow.at(EXCESS * can_do, phases.excess_s)
        found.concurrency_limit = stand.workers.metrics().get("promptbus_concurrency_limit", 0)
        say("half of it again")
        after = flow.at(CALM * can_do, phases.after_s)
        flow.per_s = 0.0
        eventually("every request is answered", lambda: flow.unanswered() == 0, 60)
        found.violations += watch.grown(*excess, ["memory_mb"])
        found.resources = watch.thirds(*excess)
    flow.check()
    if (code := stand.workers.terminate(60)) != 0:
        found.violations.append(f"the supervisor ended with {code} after SIGTERM")
    _measure(flow, found, calm, excess, after)
    if found.of_capacity < bounds.of_capacity:
        found.violations.append(f"only {found.of_capacity:.3f} of the capacity was used")
    for name in ("drained_after_s", "normal_after_s"):
        if getattr(found, name) > bounds.recovered_within_s:
            found.violations.append(f"{name} is {getattr(found, name):.1f}")
    found.violations += flow.violations()
    return found


Span = tuple[float, float]


def _measure(flow: Flow, found: Overload, calm: Span, excess: Span, after: Span) -> None:
    found.requests = len(flow.asked)
    found.codes = dict(flow.codes().most_common())
    found.offered_per_s = sum(1 for _ in flow.published(*excess)) / (excess[1] - excess[0])
    found.answered_per_s = flow.answered_per_s(*excess)
    found.of_capacity = found.answered_per_s / found.capacity_per_s
    found.calm_p50_p99_s = p50_p99(latencies_s(flow.published(*calm)))
    found.excess_p50_p99_s = p50_p99(latencies_s(flow.published(*excess)))
    patient = (each.replied_at for each in flow.published(*excess) if each.deadline is None)
    found.drained_after_s = max(patient) - excess[1]
    normal_s = NORMAL * found.calm_p50_p99_s[1]
    found.normal_after_s = normal_after_s(list(flow.published(*after)), after[0], normal_s)


def normal_after_s(asked: Sequence[Asked], since: float, normal_s: float) -> float:
    """The first second of which nearly all requests were answered in normal time, counted from `since`."""
    in_time = defaultdict[int, list[bool]](list)
    for each in asked:
        in_time[int(each.at - since)].append(each.code == OK and each.replied_at - each.at <= normal_s)
    normal = (second for second, several in sorted(in_time.items()) if fmean(several) >= NEARLY_ALL)
    return float(next(normal, inf))
