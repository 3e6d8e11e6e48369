"""What is broken in a chaos run: Kafka and Triton behind proxies, and supervisors with worker processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from stack.broker import Broker
from stack.kafka import Kafka
from stack.triton import Triton
from tests.chaos.proxy import Proxies, Proxy
from tests.integration.account import in_hand
from tests.integration.system import SHORT_SESSIONS, System, Workers, eventually

SUPERVISORS, PROCESSES, PARTITIONS = 3, 2, 12
SESSION_TIMEOUT_S = 6.0
TRITON_TIMEOUT_S = 8.0
SMALL_QUEUE = 10
"""Replies that fit into the producers' queues of the first supervisor's workers."""
_LEADER = re.compile(r"Completed transition to (\w+)\(")


class Cluster:
    """The servers and the supervisors. Everything it starts ends with `running`."""

    def __init__(
        self, system: System, triton: Triton, kafka_proxies: list[Proxy], triton_proxy: Proxy
    ) -> None:
        self.system = system
        self.kafka = system.kafka
        self.triton = triton
        self.kafka_proxies = kafka_proxies
        self.triton_proxy = triton_proxy
        self.supervisors: list[Workers] = []
        """One for each slot; a slot's next one takes its place."""
        self._processes: list[psutil.Process] = []

    def start(self, *slots: int) -> None:
        """Start a supervisor in each of these slots, and wait until all are complete."""
        for slot in slots:
            self._start(slot)
        for slot in slots:
            self.await_complete(slot)

    def _start(self, slot: int) -> None:
        small = {"KAFKA_PRODUCER__QUEUE_BUFFERING_MAX_MESSAGES": str(SMALL_QUEUE)} if slot == 0 else {}
        workers = self.system.start(WORKER_INSTANCE=f"slot-{slot}", **small)
        self._processes.append(psutil.Process(workers.process.pid))
        if slot < len(self.supervisors):
            self.supervisors[slot] = workers
        else:
            self.supervisors.append(workers)

    def complete(self, slot: int) -> bool:
        """Whether this slot's supervisor runs with all its processes, and they are ready."""
        workers = self.supervisors[slot]
        return len(self.children(slot)) == PROCESSES and workers.get("/ready")[0] == 200

    def await_complete(self, slot: int) -> None:
        """Wait until it is."""
        eventually(f"slot {slot} is complete and ready", lambda: self.complete(slot), 120)

    def children(self, slot: int) -> list[psutil.Process]:
        """The worker processes of a slot that live."""
        try:
            found = self.supervisors[slot].children()
            alive = [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []
        self._processes += [child for child in alive if child not in self._processes]
        return alive

    def in_hand(self) -> int:
        """Requests in flight or waiting in the workers that can tell."""
        return int(in_hand(*self.supervisors))

    def leader(self) -> Broker:
        """The node whose controller leads."""

        def leads(broker: Broker) -> bool:
            if not broker.running:
                return False
            became = _LEADER.findall(broker.log.read_text(errors="replace"))
            return bool(became) and became[-1] == "Leader"

        def find() -> Broker | None:
            return next(filter(leads, self.kafka.brokers), None)

        found = eventually("a controller leads", find, 60)
        assert found is not None
        return found

    def kill_broker(self, broker: Broker) -> None:
        """SIGKILL; its port refuses from then on."""
        self.kafka_proxies[broker.node_id - 1].shut()
        broker.kill()

    def start_brokers(self) -> None:
        """Start those that do not run."""
        self.kafka.start()
        for proxy in self.kafka_proxies:
            proxy.open()

    def kill_triton(self) -> None:
        """SIGKILL; its port refuses from then on."""
        self.triton_proxy.shut()
        self.triton.kill()

    def start_triton(self) -> None:
        """Start it if it does not run."""
        self.triton.start()
        self.triton_proxy.open()

    def heal(self) -> None:
        """Servers run, and nothing spoils what goes through the proxies."""
        self.triton_proxy.delay_s, self.triton_proxy.refusing = 0.0, False
        self.start_brokers()
        if len(self.triton.stubs()) == 0:
            self.kill_triton()
        self.start_triton()

    def end(self) -> None:
        """Kill every process that was ever seen here and still lives, frozen or not."""
        for slot in range(len(self.supervisors)):
            self.children(slot)
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._processes, 10)


@contextmanager
def running(
    brokers: int, folder: Path, say: Callable[[str], None], env: Mapping[str, str]
) -> Iterator[Cluster]:
    """Start everything, and end it with the block. `folder` takes the workers' logs; `env` is added to theirs."""
    with ExitStack() as stack:
        proxies = stack.enter_context(Proxies())
        kafka_proxies = [proxies.add() for _ in range(brokers)]
        triton_proxy = proxies.add(http=True)
        copies = {"default.replication.factor": str(brokers)}
        kafka = Kafka(
            brokers=brokers,
            heap_mb=384,
            properties=copies | SHORT_SESSIONS,
            stand_ins=[proxy.port for proxy in kafka_proxies],
        )
        triton = Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"})
        say(f"starting {brokers} Kafka broker{'s' * (brokers > 1)} and Triton")
        stack.callback(kafka.close)
        kafka.start()
        stack.enter_context(triton)
        assert triton.ports is not None, "it was started"
        for proxy, broker in zip(kafka_proxies, kafka.brokers, strict=True):
            proxy.target = broker.proxied_port
            proxy.open()
        triton_proxy.target = triton.ports[0]
        triton_proxy.open()
        system = System(
            kafka,
            f"127.0.0.1:{triton_proxy.port}",
            folder,
            partitions=PARTITIONS,
            env={
                "KAFKA_BOOTSTRAP": ",".join(f"127.0.0.1:{proxy.port}" for proxy in kafka_proxies),
                "KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION_TIMEOUT_S * 1000)),
                # How long a half-open connection goes unnoticed; 60 s otherwise.
                "KAFKA_CLIENT__SOCKET_TIMEOUT_MS": "10000",
                "TRITON_TIMEOUT_S": str(TRITON_TIMEOUT_S),
                "WORKER_PROCESSES": str(PROCESSES),
                # Who is killed leaves its files; here the next run removes them.
                "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
                **env,
            },
        )
        stack.callback(system.close)
        cluster = Cluster(system, triton, kafka_proxies, triton_proxy)
        stack.callback(cluster.end)
        say(f"starting {SUPERVISORS} supervisors with {PROCESSES} worker processes each")
        cluster.start(*range(SUPERVISORS))
        yield cluster
