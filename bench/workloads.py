"""What the contenders are given to do, and what of it fits the time."""

from dataclasses import dataclass, replace

from bench.contenders.known import BARE_LOOP, ONE_AT_A_TIME, PERF_ANALYZER, PROMPTBUS, PROMPTBUS_2
from bench.contenders.peers import PEERS

INSTANT, SLOW, HELD, REAL = "instant", "slow", "held", "gpt4_nano"
SLOW_INSTANCES, SLOW_MS = 4, 150
HELD_MS = 25_000
"""Less than TRITON_TIMEOUT_S."""
SLOW_CAPACITY = SLOW_INSTANCES * 8 / (SLOW_MS / 1000)
"""Prompts per second of the slow model in batches of 8."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`records`: how many requests lie on the topic before anybody starts.

    `concurrency`: of those that choose none; 0: they are tried at several before the first round.
    `held_back`: the first request goes to a model that takes HELD_MS for it.
    `in_bursts`: answers come batch by batch, with nothing in between.
    With `rates` (prompts per second) latency is measured instead of throughput, for `window_s` each, with requests at
    an even pace or `at_random`.
    """

    name: str
    about: str
    contenders: tuple[str, ...]
    window_s: float
    records: int = 0
    model: str = INSTANT
    prompt_bytes: int = 20
    max_tokens: int = 16
    rates: tuple[int, ...] = ()
    at_random: bool = False
    partitions: int = 6
    concurrency: int = 0
    warm_s: float = 1.0
    peer_window_s: float = 20.0
    with_peers: bool = False
    in_bursts: bool = False
    held_back: bool = False

    @property
    def models(self) -> str:
        """What the contender serves, as TRITON_MODEL takes it."""
        return f"{self.model},{HELD}" if self.held_back else self.model

    @property
    def rows(self) -> tuple[str, ...]:
        """The names under which its figures are kept."""
        return tuple(f"{self.name}-{rate}" for rate in self.rates) or (self.name,)


EVERY = (
    Workload(
        "instant",
        "a model that does nothing, prompts of 20 bytes",
        (PERF_ANALYZER, BARE_LOOP, ONE_AT_A_TIME, PROMPTBUS, PROMPTBUS_2),
        window_s=4.0,
        records=300_000,
        with_peers=True,
    ),
    Workload(
        "slow",
        "a model that takes 150 ms for a batch, in four instances: 213 prompts/s at most",
        (PERF_ANALYZER, BARE_LOOP, ONE_AT_A_TIME, PROMPTBUS),
        window_s=4.5,
        records=20_000,
        model=SLOW,
        concurrency=2 * SLOW_INSTANCES,
        with_peers=True,
        in_bursts=True,
    ),
    Workload(
        "real",
        "SmolLM2-135M, 8 tokens for each prompt",
        (BARE_LOOP, PROMPTBUS),
        window_s=5.0,
        records=3_000,
        model=REAL,
        prompt_bytes=60,
        max_tokens=8,
        concurrency=2,
        warm_s=0.0,
        in_bursts=True,
    ),
    Workload(
        "1kb",
        "the instant model, prompts of 1 KB",
        (BARE_LOOP, PROMPTBUS),
        window_s=4.0,
        records=200_000,
        prompt_bytes=1_000,
    ),
    Workload(
        "100kb",
        "the instant model, prompts of 100 KB",
        (BARE_LOOP, PROMPTBUS),
        window_s=4.0,
        records=6_000,
        prompt_bytes=100_000,
        warm_s=0.5,
    ),
    Workload(
        "backlog-10k",
        "the instant model, 10,000 requests waiting, all of them worked off",
        (PROMPTBUS,),
        window_s=30.0,
        records=10_000,
        warm_s=0.0,
    ),
    Workload(
        "backlog-1m",
        "the instant model, 1,000,000 requests waiting",
        (PROMPTBUS,),
        window_s=8.0,
        records=1_000_000,
    ),
    Workload(
        "one-partition",
        "the instant model, 110,000 requests waiting in one partition",
        (PROMPTBUS,),
        window_s=20.0,
        records=110_000,
        partitions=1,
    ),
    Workload(
        "held-back",
        "the same, and an offset before them all that stays open for 25 s",
        (PROMPTBUS,),
        window_s=20.0,
        records=110_000,
        partitions=1,
        held_back=True,
    ),
    Workload(
        "latency",
        "the instant model, requests at an even pace, from when one was due to be sent until its reply was read",
        (PROMPTBUS,),
        window_s=4.0,
        rates=(50, 500, 2_000),
    ),
    Workload(
        "latency-loop",
        "the same for the loop that takes one at a time",
        (ONE_AT_A_TIME,),
        window_s=4.0,
        rates=(50, 500),
    ),
    Workload(
        "drain-1m",
        "the instant model, 1,000,000 requests waiting, all of them worked off",
        (PROMPTBUS,),
        window_s=600.0,
        records=1_000_000,
    ),
)
BY_NAME = {workload.name: workload for workload in EVERY}
DEFAULT = tuple(
    name for name in BY_NAME if name not in ("latency-loop", "drain-1m", "one-partition", "held-back")
)


def quick() -> list[Workload]:
    """What `make bench QUICK=1` measures, in less than three minutes."""
    instant, slow, latency = (BY_NAME[name] for name in ("instant", "slow", "latency"))
    return [
        replace(instant, contenders=(BARE_LOOP, ONE_AT_A_TIME, PROMPTBUS), window_s=3.0, with_peers=False),
        replace(slow, contenders=(BARE_LOOP, PROMPTBUS), window_s=4.0, with_peers=False),
        replace(latency, rates=(500,)),
    ]


def with_peers(workloads: list[Workload]) -> list[Workload]:
    """The same, with the peers where they take part."""
    names = tuple(peer.name for peer in PEERS)
    return [
        replace(workload, contenders=workload.contenders + names) if workload.with_peers else workload
        for workload in workloads
    ]
