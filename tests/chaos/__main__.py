"""`make chaos`: break everything for a while, then prove that nothing was lost.

    python -m tests.chaos --seed 7 --minutes 10 --brokers 3

Exit 0: lost, unanswered and wrong are all none, and duplicates no more than was in hand at each fault. Exit 1: not so.
"""

from __future__ import annotations

import argparse
import random
import time

from stack.errors import StackError
from stack.process import end_like_an_interrupt
from tests.chaos.run import ORDERING, Report, run


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break everything, lose nothing."
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="the same seed, the same schedule; default: any"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long faults strike (5)")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="Kafka nodes (1)")
    parser.add_argument(
        "--protocol", choices=("classic", "consumer"), default="classic", help="the workers' group protocol"
    )
    parser.add_argument("--ordering", choices=("none", "key"), default="none", help="WORKER_ORDERING (none)")
    parser.add_argument(
        "--delivery",
        choices=("at_least_once", "transactional"),
        default="at_least_once",
        help="the workers' delivery; with transactions no duplicate is allowed",
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if arguments.seed is None else arguments.seed
    end_like_an_interrupt()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    again = (
        f"make chaos SEED={seed} MINUTES={arguments.minutes:g} BROKERS={arguments.brokers} "
        f"PROTOCOL={arguments.protocol} ORDERING={arguments.ordering} DELIVERY={arguments.delivery}"
    )
    env = {
        "KAFKA_GROUP_PROTOCOL": arguments.protocol,
        ORDERING: arguments.ordering,
        "WORKER_DELIVERY": arguments.delivery,
    }
    say(f"seed {seed}")
    try:
        report = run(seed, arguments.brokers, arguments.minutes, say, env=env)
    except KeyboardInterrupt:
        print("interrupted; everything that was started has ended")
        return 130
    except (StackError, AssertionError) as error:
        print(f"the run could not be made: {error}\nagain: {again}")
        return 1
    print(summary(report))
    print(f"ledger: {report.ledger}, the workers' logs in {report.logs}\nagain:  {again}")
    return 0 if report.clean else 1


def summary(report: Report) -> str:
    """The run as tables for people."""
    verdict = report.verdict
    rows = [f"\n{'fault':34}{'fired':>6}{'in hand':>9}{'duplicates':>12}{'at most':>9}"]
    for kind in dict.fromkeys(fault.fault for fault in report.fired):
        chosen = [index for index, fault in enumerate(report.fired) if fault.fault == kind]
        hands = sum(report.fired[index].in_hand for index in chosen)
        doubled = sum(verdict.duplicates_by_fault[index] for index in chosen if verdict.duplicates_by_fault)
        most = sum(report.fired[index].explains for index in chosen)
        rows.append(f"{kind:34}{len(chosen):6}{hands:9}{doubled:12}{most:9}")
    ended = ", ".join(f"{count} {code}" for code, count in verdict.codes.most_common())
    rows += [
        "",
        f"{verdict.requests} requests, {verdict.replies} replies in {report.seconds:.0f} s: {ended}",
        f"lost {len(verdict.lost)}, unanswered {len(verdict.unanswered)}, wrong {len(verdict.wrong)}; "
        f"duplicates {verdict.duplicates}; order checked of {verdict.in_order}; "
        f"given up after three broken calls {verdict.given_up}",
    ]
    for name in ("lost", "unanswered", "wrong"):
        rows += [f"  {name}: {sentence}" for sentence in getattr(verdict, name)[:10]]
    rows += [f"  failure: {failure}" for failure in report.failures]
    rows.append("clean" if report.clean else "NOT CLEAN")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
