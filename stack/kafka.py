"""Apache Kafka 4.3.1 in KRaft mode on this machine: one node, or several to kill one of."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stack import contents
from stack.broker import Broker, random_id
from stack.errors import PortTaken
from stack.ports import HOST, free_ports, require_free
from stack.security import Security

PORT_ATTEMPTS = 5
QUICK_COMPILER = "-XX:TieredStopAtLevel=1"
"""Java's quick compiler alone: a broker that lives for minutes would spend them compiling with the thorough one."""
PLAIN_PROTOCOLS = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT"


class Kafka:
    """A cluster of one node or of several, on 127.0.0.1 only, on free ports unless one is named.

    `properties` are added to server.properties; `java_options` stand on the command line beside the heap's size.
    `stand_ins`: ports of proxies, one for each broker, that pass on to `broker.proxied_port`. Who comes to a broker
    through its proxy is sent to proxies by the cluster as well; `bootstrap` and the brokers themselves go past them.
    `security`: a single broker with TLS, SASL and ACLs; `address` says where. `bootstrap` is its administrators' door.

    A context manager: started on entry, stopped on exit, and its data removed unless `data_dir` was given.
    `stop` and `kill` keep data and ports, so that `start` brings the same cluster back.

    Topics are not created by use, as in production: create them (`replication.factor` up to `brokers`).

    Errors: NotInstalled, PortTaken, StartFailed, all with a sentence for people.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        port: int | None = None,
        brokers: int = 1,
        properties: Mapping[str, str] | None = None,
        heap_mb: int = 768,
        java_options: Sequence[str] = (QUICK_COMPILER,),
        stand_ins: Sequence[int] = (),
        security: Security | None = None,
    ) -> None:
        if port is not None and brokers != 1:
            raise ValueError("a port can be chosen for a single broker only")
        if stand_ins and len(stand_ins) != brokers:
            raise ValueError("every broker needs a proxy, or none")
        if security is not None and (brokers != 1 or stand_ins):
            raise ValueError("a secured cluster has one broker, and no proxy")
        self._own_data = data_dir is None
        self.data_dir = data_dir
        self._wanted_port = port
        self._count = brokers
        self._properties = dict(properties or {})
        self._stand_ins = list(stand_ins)
        self._security = security
        self._java_options = [f"-Xmx{heap_mb}m", *java_options]
        self.brokers: list[Broker] = []

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, a comma list for several brokers."""
        return ",".join(f"{HOST}:{broker.port}" for broker in self.brokers)

    def address(self, listener: str) -> str:
        """`127.0.0.1:port` of one of `security`'s listeners (SSL, SASL_SSL, SASL_PLAINTEXT, …)."""
        return f"{HOST}:{self.brokers[0].secured_ports[listener]}"

    @property
    def port(self) -> int:
        """Of the first broker."""
        return self.brokers[0].port

    @property
    def pid(self) -> int:
        """Of the first broker's Java process."""
        return self.brokers[0].pid

    @property
    def log(self) -> Path:
        """Of the first broker."""
        return self.brokers[0].log

    @property
    def running(self) -> bool:
        """Every broker is."""
        return bool(self.brokers) and all(broker.running for broker in self.brokers)

    def start(self) -> Self:
        """Returns when every broker answers. Starting what already runs does nothing."""
        contents.kafka_jars().require()
        if self.brokers:
            self._restart()
            return self
        if self._wanted_port is not None:
            require_free(self._wanted_port, "Kafka")
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._first_start()
            except PortTaken:
                # Somebody was quicker between our look and the broker's bind.
                self.close()
                if attempt == PORT_ATTEMPTS - 1:
                    raise
                if self._wanted_port is not None:
                    require_free(self._wanted_port, "Kafka")
            except BaseException:
                self.close()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End every broker in an orderly way. Idempotent."""
        # All are told before one is waited for: the last ones could not stop in order without a quorum.
        for broker in self.brokers:
            broker.ask_to_stop()
        for broker in self.brokers:
            broker.stop()

    def kill(self) -> None:
        """SIGKILL every broker. Idempotent."""
        for broker in self.brokers:
            broker.kill()

    def close(self) -> None:
        """Kill what still runs, and remove the data if nobody named a folder for it."""
        self.kill()
        self.brokers = []
        if self._own_data and self.data_dir is not None:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir = None

    def tail(self, lines: int = 30) -> str:
        """The end of the first broker's log."""
        return self.brokers[0].tail(lines) if self.brokers else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._own_data:
                self.stop()
        finally:
            self.close()

    def _first_start(self) -> None:
        folder = self.data_dir
        if folder is None:
            folder = self.data_dir = Path(tempfile.mkdtemp(prefix="promptbus-kafka-"))
        secured = list(self._security.listeners) if self._security is not None else []
        ports = free_ports(3 * self._count + len(secured))
        for index in range(self._count):
            port = self._wanted_port or ports[3 * index]
            node = folder / f"node-{index + 1}"
            temporary = [folder] if self._own_data else []
            made = Broker(index + 1, node, port, ports[3 * index + 1], self._java_options, temporary)
            if self._stand_ins:
                made.proxied_port = ports[3 * index + 2]
            made.secured_ports = dict(zip(secured, ports[3 * self._count :], strict=True))
            self.brokers.append(made)
        cluster_id = _cluster_id(folder)
        for broker in self.brokers:
            users = self._security.format_arguments() if self._security is not None else []
            broker.format(cluster_id, self._server_properties(broker), users, alone=self._count == 1)
        self._launch_all()

    def _restart(self) -> None:
        stopped = [broker for broker in self.brokers if not broker.running]
        for broker in stopped:
            broker.launch()
        for broker in stopped:
            broker.await_ready()

    def _launch_all(self) -> None:
        # A quorum is needed before any of them is ready: start all, then wait.
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.await_ready()

    def _server_properties(self, broker: Broker) -> dict[str, str]:
        copies = str(min(3, self._count))
        in_sync = str(min(2, self._count))
        voters = ",".join(f"{b.node_id}@{HOST}:{b.controller_port}" for b in self.brokers)
        return {
            "process.roles": "broker,controller",
            "node.id": str(broker.node_id),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": PLAIN_PROTOCOLS,
            "log.dirs": str(broker.folder / "data"),
            "num.network.threads": "2",
            "num.io.threads": "4",
            "num.partitions": "1",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            # A killed broker may register again only when its old session is over: 9 s by default.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            # Lets a test see a dead consumer sooner than Kafka's 6 s.
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.num.partitions": "8",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": "2",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "min.insync.replicas": in_sync,
            # Kafka reserves 128 MB of heap for this otherwise.
            "log.cleaner.dedupe.buffer.size": "16777216",
            **self._listeners(broker),
        } | self._properties

    def _listeners(self, broker: Broker) -> dict[str, str]:
        direct, controller = (
            f"PLAINTEXT://{HOST}:{broker.port}",
            f"CONTROLLER://{HOST}:{broker.controller_port}",
        )
        if self._security is not None:
            return self._security.properties(broker.secured_ports, f"{direct},{controller}", PLAIN_PROTOCOLS)
        if broker.proxied_port is None:
            return {"listeners": f"{direct},{controller}"}
        stand_in = self._stand_ins[broker.node_id - 1]
        return {
            "listeners": f"{direct},PROXIED://{HOST}:{broker.proxied_port},{controller}",
            "advertised.listeners": f"{direct},PROXIED://{HOST}:{stand_in}",
            "inter.broker.listener.name": "PLAINTEXT",
        }


def _cluster_id(folder: Path) -> str:
    """Kept with the data."""
    file = folder / "cluster-id"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(random_id())
    return file.read_text()
