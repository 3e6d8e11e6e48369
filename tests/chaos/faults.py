"""How each fault strikes, how it is seen to have struck, and how it is healed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from stack.broker import Broker
from tests.chaos.cluster import SMALL_QUEUE, SUPERVISORS, TRITON_TIMEOUT_S, Cluster
from tests.chaos.schedule import Fault, Kind
from tests.integration.account import in_hand
from tests.integration.system import Workers, eventually

SEEN_WITHIN_S = 60.0
BETWEEN_RESETS_S = 0.3
FULL_QUEUE_IN_HAND = 60
"""Requests that the workers with small queues need in hand for their answers to fill them."""
CLEAN_EXITS = (0, 3)
"""Drained, or drained as far as there was time: what was left is read again."""


@dataclass(frozen=True)
class Struck:
    """`target`: what was hit; `seen`: by what it showed; `breaks`: see `judgement.Fired`. `heal` ends it, and what
    has to be waited for until everything runs again."""

    target: str
    seen: str
    heal: Callable[[], None]
    breaks: int = 0


def strike(cluster: Cluster, fault: Fault) -> Struck:
    """Returns once it is seen to have struck. Raises AssertionError if it is not."""
    return _STRIKES[fault.kind](cluster, fault)


def _wait_gone(process: psutil.Process, why: str) -> None:
    eventually(why, lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def _stopped(processes: list[psutil.Process]) -> bool:
    return all(process.status() == psutil.STATUS_STOPPED for process in processes)


# -- workers


def _kill_supervisor(cluster: Cluster, fault: Fault) -> Struck:
    slot = fault.target % SUPERVISORS
    process, children = cluster.supervisors[slot].process, cluster.children(slot)
    process.kill()
    code = process.wait(SEEN_WITHIN_S)
    assert code == -signal.SIGKILL, f"the supervisor ended with {code}"

    def heal() -> None:
        for child in children:
            _wait_gone(child, "the orphaned worker process has ended by itself")
        cluster.start(slot)

    return Struck(f"slot {slot}", f"exit code {code}", heal)


def _kill_child(cluster: Cluster, fault: Fault) -> Struck:
    slot = fault.target % SUPERVISORS
    children = cluster.children(slot)
    child = children[fault.target // SUPERVISORS % len(children)]
    child.kill()
    _wait_gone(child, "the killed worker process is gone")
    return Struck(f"slot {slot} pid {child.pid}", "process gone", lambda: cluster.await_complete(slot))


def _freeze(cluster: Cluster, slot: int, processes: list[psutil.Process]) -> Struck:
    for process in processes:
        process.suspend()
    eventually("the processes are stopped", lambda: _stopped(processes))

    def heal() -> None:
        assert _stopped(processes), "somebody woke the frozen processes"
        for process in reversed(processes):
            process.resume()
        cluster.await_complete(slot)

    pids = ", ".join(str(process.pid) for process in processes)
    return Struck(f"slot {slot} pid {pids}", "state stopped", heal)


def _freeze_child(cluster: Cluster, fault: Fault) -> Struck:
    slot = fault.target % SUPERVISORS
    children = cluster.children(slot)
    return _freeze(cluster, slot, [children[fault.target // SUPERVISORS % len(children)]])


def _freeze_supervisor(cluster: Cluster, fault: Fault) -> Struck:
    """As if its machine stood still: the processes as well."""
    slot = fault.target % SUPERVISORS
    supervisor = psutil.Process(cluster.supervisors[slot].process.pid)
    return _freeze(cluster, slot, [supervisor, *cluster.children(slot)])


def _terminate(workers: Workers) -> int:
    code = workers.terminate(SEEN_WITHIN_S)
    assert code in CLEAN_EXITS, f"the supervisor ended with {code} after SIGTERM"
    return code


def _terminate_supervisor(cluster: Cluster, fault: Fault) -> Struck:
    slot = fault.target % SUPERVISORS
    code = _terminate(cluster.supervisors[slot])

    def heal() -> None:
        cluster.start(slot)

    return Struck(f"slot {slot}", f"exit code {code}", heal)


def _member_comes_and_goes(cluster: Cluster, _: Fault) -> Struck:
    slot = len(cluster.supervisors)
    cluster.start(slot)
    assigned = "promptbus_assigned_partitions"
    got = eventually(
        "it has partitions", lambda: cluster.supervisors[slot].metrics().get(assigned), SEEN_WITHIN_S
    )

    def heal() -> None:
        _terminate(cluster.supervisors.pop(slot))

    return Struck(f"slot {slot}", f"{got:g} partitions moved", heal)


# -- Kafka


def _kill_brokers(cluster: Cluster, brokers: list[Broker]) -> str:
    for broker in brokers:
        cluster.kill_broker(broker)
    assert not any(broker.running for broker in brokers)
    return "node " + ", ".join(str(broker.node_id) for broker in brokers)


def _kill_broker(cluster: Cluster, fault: Fault) -> Struck:
    brokers = cluster.kafka.brokers
    killed = _kill_brokers(cluster, [brokers[fault.target % len(brokers)]])
    return Struck(killed, "process gone", cluster.start_brokers)


def _kill_controller(cluster: Cluster, _: Fault) -> Struck:
    leader = cluster.leader()
    killed = _kill_brokers(cluster, [leader])
    after = cluster.leader()
    return Struck(killed, f"process gone, node {after.node_id} leads", cluster.start_brokers)


def _full_producer_queue(cluster: Cluster, _: Fault) -> Struck:
    """No broker at all, while Triton goes on answering.

    The workers with small queues are left alone first: then what is open, which the load keeps up, is theirs. Beside
    others they may hold next to nothing: two keys have a fifth of the requests each, and anyone can have their partitions.
    """
    small, others = cluster.supervisors[0], range(1, SUPERVISORS)
    for slot in others:
        _terminate(cluster.supervisors[slot])
    enough = f"{FULL_QUEUE_IN_HAND} in hand, to fill it"
    eventually(enough, lambda: in_hand(small) >= FULL_QUEUE_IN_HAND, SEEN_WITHIN_S)
    killed = _kill_brokers(cluster, cluster.kafka.brokers)

    def waiting_replies() -> float:
        now = small.metrics()
        # Nothing is being called, so these have their answers and wait to be acknowledged.
        idle = now.get("promptbus_in_flight_batches", 1) == 0
        replies = now.get("promptbus_in_flight_requests", 0)
        return replies if idle and replies > SMALL_QUEUE * len(cluster.children(0)) else 0

    replies = eventually("more replies wait than the queue takes", waiting_replies, SEEN_WITHIN_S)

    def heal() -> None:
        cluster.start_brokers()
        cluster.start(*others)

    return Struck(killed, f"{replies:g} replies before queues of {SMALL_QUEUE}", heal)


def _spoil_kafka(cluster: Cluster, fault: Fault, *, half_open: bool) -> Struck:
    """One broker's connections with the workers, or those of all."""
    proxies = cluster.kafka_proxies
    hit = proxies if fault.strength > 0.5 else [proxies[fault.target % len(proxies)]]

    def spoil() -> int:
        return sum(proxy.half_open() if half_open else proxy.reset() for proxy in hit)

    # To a broker that was killed just before, they come back in their own time.
    count = eventually("a worker is connected there", spoil, SEEN_WITHIN_S)
    return Struck(f"{len(hit)} of {len(proxies)} brokers", f"{count} connections", lambda: None)


def _reset_kafka(cluster: Cluster, fault: Fault) -> Struck:
    return _spoil_kafka(cluster, fault, half_open=False)


def _half_open_kafka(cluster: Cluster, fault: Fault) -> Struck:
    return _spoil_kafka(cluster, fault, half_open=True)


# -- Triton


def _kill_triton(cluster: Cluster, _: Fault) -> Struck:
    pid = cluster.triton.pid
    cluster.kill_triton()
    assert not cluster.triton.running
    return Struck(f"pid {pid}", "process gone", cluster.start_triton, breaks=1)


def _kill_stubs(cluster: Cluster, _: Fault) -> Struck:
    """They do not come back, so that Triton is restarted in the end."""
    killed = cluster.triton.kill_stubs()
    assert killed, "Triton had no stubs"
    eventually("the stubs are gone", lambda: not cluster.triton.stubs())
    assert cluster.triton.running

    def heal() -> None:
        cluster.kill_triton()
        cluster.start_triton()

    return Struck("all", f"{killed} processes gone", heal, breaks=2)


def _slow_triton(cluster: Cluster, fault: Fault) -> Struck:
    proxy, before = cluster.triton_proxy, cluster.triton_proxy.delayed
    proxy.delay_s = round(1 + 11 * fault.strength, 1)  # up to beyond the time-out
    delay_s = proxy.delay_s
    eventually("answers are delayed", lambda: proxy.delayed > before, SEEN_WITHIN_S)

    def heal() -> None:
        proxy.delay_s = 0.0

    breaks = 1 + int(fault.hold_s / TRITON_TIMEOUT_S)
    return Struck(f"by {delay_s:g} s", f"{proxy.delayed - before} answers delayed", heal, breaks)


def _flood_503(cluster: Cluster, _: Fault) -> Struck:
    proxy, before = cluster.triton_proxy, cluster.triton_proxy.refused
    proxy.refusing = True
    eventually("calls are answered 503", lambda: proxy.refused >= before + 5, SEEN_WITHIN_S)

    def heal() -> None:
        proxy.refusing = False

    return Struck("every call", f"{proxy.refused - before} calls answered 503 at once", heal)


def _reset_triton(cluster: Cluster, fault: Fault) -> Struck:
    bursts, count = 1 + int(fault.strength * 3), 0
    for burst in range(bursts):
        if burst:
            time.sleep(BETWEEN_RESETS_S)
        count += cluster.triton_proxy.reset()
    assert count, "no worker was connected"
    return Struck(f"{bursts} times", f"{count} connections", lambda: None, breaks=bursts)


def _half_open_triton(cluster: Cluster, _: Fault) -> Struck:
    count = cluster.triton_proxy.half_open()
    assert count, "no worker was connected"
    return Struck("all of now", f"{count} connections", lambda: None, breaks=1)


_STRIKES: dict[Kind, Callable[[Cluster, Fault], Struck]] = {
    Kind.KILL_SUPERVISOR: _kill_supervisor,
    Kind.KILL_CHILD: _kill_child,
    Kind.FREEZE_CHILD: _freeze_child,
    Kind.FREEZE_SUPERVISOR: _freeze_supervisor,
    Kind.TERMINATE_SUPERVISOR: _terminate_supervisor,
    Kind.MEMBER_COMES_AND_GOES: _member_comes_and_goes,
    Kind.KILL_BROKER: _kill_broker,
    Kind.KILL_CONTROLLER: _kill_controller,
    Kind.FULL_PRODUCER_QUEUE: _full_producer_queue,
    Kind.RESET_KAFKA: _reset_kafka,
    Kind.HALF_OPEN_KAFKA: _half_open_kafka,
    Kind.KILL_TRITON: _kill_triton,
    Kind.KILL_STUBS: _kill_stubs,
    Kind.SLOW_TRITON: _slow_triton,
    Kind.FLOOD_503: _flood_503,
    Kind.RESET_TRITON: _reset_triton,
    Kind.HALF_OPEN_TRITON: _half_open_triton,
}
