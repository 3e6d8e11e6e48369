"""Which fault comes when: the same seed makes the same schedule. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Every fault there is."""

    KILL_SUPERVISOR = "kill supervisor"
    KILL_CHILD = "kill child"
    FREEZE_CHILD = "freeze child"
    FREEZE_SUPERVISOR = "freeze supervisor"
    TERMINATE_SUPERVISOR = "terminate supervisor"
    MEMBER_COMES_AND_GOES = "member comes and goes"
    KILL_BROKER = "kill broker"
    KILL_CONTROLLER = "kill controller leader"
    FULL_PRODUCER_QUEUE = "full producer queue"
    RESET_KAFKA = "reset Kafka connections"
    HALF_OPEN_KAFKA = "half-open Kafka connections"
    KILL_TRITON = "kill Triton"
    KILL_STUBS = "kill Triton's stubs"
    SLOW_TRITON = "slow Triton"
    FLOOD_503 = "503 flood"
    RESET_TRITON = "reset Triton connections"
    HALF_OPEN_TRITON = "half-open Triton connections"


TRITON, WORKERS, KAFKA = "Triton", "workers", "Kafka"
FAMILIES: dict[str, tuple[Kind, ...]] = {
    WORKERS: (
        Kind.KILL_SUPERVISOR,
        Kind.KILL_CHILD,
        Kind.FREEZE_CHILD,
        Kind.FREEZE_SUPERVISOR,
        Kind.TERMINATE_SUPERVISOR,
        Kind.MEMBER_COMES_AND_GOES,
    ),
    KAFKA: (
        Kind.KILL_BROKER,
        Kind.KILL_CONTROLLER,
        Kind.FULL_PRODUCER_QUEUE,
        Kind.RESET_KAFKA,
        Kind.HALF_OPEN_KAFKA,
    ),
    TRITON: (
        Kind.KILL_TRITON,
        Kind.KILL_STUBS,
        Kind.SLOW_TRITON,
        Kind.FLOOD_503,
        Kind.RESET_TRITON,
        Kind.HALF_OPEN_TRITON,
    ),
}
FAMILY = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}

ALONE = (Kind.FULL_PRODUCER_QUEUE, Kind.MEMBER_COMES_AND_GOES)
"""These are seen to fire only while everything else works."""
FREEZES = (Kind.FREEZE_CHILD, Kind.FREEZE_SUPERVISOR)
TOGETHER = 0.3
"""Share of the steps in which a second fault, of another family, strikes while the first one lasts."""


@dataclass(frozen=True)
class Fault:
    """One fault. `target` picks among what there is then (modulo its number); `hold_s`: for how long it lasts;
    `strength`, 0 to 1: how bad it is, where that can be chosen."""

    kind: Kind
    target: int
    hold_s: float
    strength: float


Step = tuple[Fault, ...]
"""Faults that last at the same time, one or two, in the order in which they strike: without Triton's and Kafka's
service none of the later ones could be seen to fire, so Kafka's come last."""
_ORDER = (TRITON, WORKERS, KAFKA)


def schedule(seed: int, brokers: int, session_timeout_s: float) -> Iterator[Step]:
    """Without end, round after round; in each round every kind comes once, in an order of its own.

    With one broker it is the controller's leader as well, so that kind is left out.
    """
    chance = random.Random(seed)
    kinds = [kind for kind in Kind if brokers > 1 or kind is not Kind.KILL_CONTROLLER]
    while True:
        left = list(kinds)
        chance.shuffle(left)
        while left:
            first = left.pop()
            others = [kind for kind in left if FAMILY[kind] != FAMILY[first] and kind not in ALONE]
            kinds_of_step = [first]
            if first not in ALONE and others and chance.random() < TOGETHER:
                second = chance.choice(others)
                left.remove(second)
                kinds_of_step.append(second)
            kinds_of_step.sort(key=lambda kind: _ORDER.index(FAMILY[kind]))
            yield tuple(_fault(kind, chance, session_timeout_s) for kind in kinds_of_step)


def one_round(
    seed: int, brokers: int, session_timeout_s: float, without: Collection[Kind] = ()
) -> list[Step]:
    """The first round of `schedule`, some kinds left out."""
    left = len(Kind) - (brokers == 1)
    steps: list[Step] = []
    for step in schedule(seed, brokers, session_timeout_s):
        steps.append(tuple(fault for fault in step if fault.kind not in without))
        left -= len(step)
        if not left:
            break
    return [step for step in steps if step]


def _fault(kind: Kind, chance: random.Random, session_timeout_s: float) -> Fault:
    hold_s = chance.uniform(1.0, 6.0)
    if kind in FREEZES:
        hold_s += session_timeout_s
    return Fault(kind, chance.randrange(1000), round(hold_s, 1), round(chance.random(), 2))
