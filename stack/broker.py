"""One Kafka node, broker and controller in one process."""

import base64
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stack import contents
from stack.cache import Entry, digest
from stack.errors import PortTaken, StackError, StartFailed
from stack.loopback import kafka_brokers
from stack.ports import require_free, taken_sentence
from stack.process import Process, server_environment, tail

START_TIMEOUT_S = 60.0
ARCHIVE, CHECKPOINT = "classes.jsa", "bootstrap.checkpoint"
# An archive that does not fit is passed over without a word.
ARCHIVE_OPTIONS = ("-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off")
LOG4J = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
"""


def warm() -> Entry:
    """What an earlier start left for the next ones (see warm.py); it fits one Java and one set of jars."""
    java = contents.java()
    return Entry("kafka-warm", digest(contents.kafka_jars().key, java, contents.java_release(java)))


def random_id() -> str:
    """Kafka's Uuid: 16 random bytes in URL-safe base64 without padding. It must not begin with a dash."""
    while True:
        text = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        if not text.startswith("-"):
            return text


class Broker:
    """Made by `Kafka`; `kill`, `stop` and `start` are for tests that take one of several away.

    `remove_if_orphaned`: folders to remove if the program that started it is killed.
    """

    def __init__(
        self,
        node_id: int,
        folder: Path,
        port: int,
        controller_port: int,
        java_options: Sequence[str],
        remove_if_orphaned: Sequence[Path] = (),
    ) -> None:
        self.node_id = node_id
        self.folder = folder
        self.port = port
        self.controller_port = controller_port
        self.java_options = list(java_options)
        self.remove_if_orphaned = remove_if_orphaned
        self.proxied_port: int | None = None  # where a proxy comes to, if one stands in for this broker
        self.secured_ports: dict[str, int] = {}  # by listener
        self.log = folder / "kafka.log"
        self.process: Process | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    @property
    def pid(self) -> int:
        """The Java process. Raises StackError if it was not started."""
        if self.process is None:
            raise StackError(f"Kafka node {self.node_id} was not started.")
        return self.process.pid

    @property
    def ready(self) -> bool:
        """It answers, and the cluster counts it among the living."""
        return self.node_id in kafka_brokers(self.port)

    def java(self, *arguments: str | Path) -> list[str]:
        jars = contents.kafka_jars().require()
        return [
            contents.java(),
            *self.java_options,
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            f"{jars}/*",
            *(str(a) for a in arguments),
        ]

    def format(
        self, cluster_id: str, properties: Mapping[str, str], users: Sequence[str] = (), *, alone: bool
    ) -> None:
        """Write the configuration, and the storage's metadata if this is a new folder, with these `users` in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log4j2.properties").write_text(LOG4J)
        configuration = self.folder / "server.properties"
        configuration.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        data = self.folder / "data"
        if (data / "meta.properties").exists():
            return
        checkpoint = warm().path / CHECKPOINT
        if alone and not users and checkpoint.exists():
            # What the tool below does, without starting a Java for it.
            data.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint, data / CHECKPOINT)
            meta = {
                "version": "1",
                "cluster.id": cluster_id,
                "node.id": str(self.node_id),
                "directory.id": random_id(),
            }
            (data / "meta.properties").write_text(
                "".join(f"{name}={value}\n" for name, value in meta.items())
            )
            return
        tool: list[str | Path] = [
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "-t",
            cluster_id,
            "-c",
            configuration,
            *users,
        ]
        done = subprocess.run(
            self.java(*tool),
            capture_output=True,
            text=True,
            env=server_environment(),
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed(
                f"Kafka could not prepare {self.folder}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )

    def launch(self) -> None:
        """Start the process without waiting for it. Raises PortTaken."""
        for port in (self.port, self.controller_port, self.proxied_port, *self.secured_ports.values()):
            if port is not None:
                require_free(port, "Kafka's controller" if port == self.controller_port else "Kafka")
        self.log.unlink(missing_ok=True)
        archive = warm().path / ARCHIVE
        options = [f"-XX:SharedArchiveFile={archive}", *ARCHIVE_OPTIONS] if archive.exists() else []
        self.process = Process(
            f"Kafka on port {self.port}",
            self.java(*options, "kafka.Kafka", self.folder / "server.properties"),
            log=self.log,
            env=server_environment(),
            cwd=self.folder,
            grace_s=20.0,
            remove_if_orphaned=self.remove_if_orphaned,
        )

    def await_ready(self) -> None:
        if self.process is not None:
            self.process.wait_ready(lambda: self.ready, START_TIMEOUT_S, self._explain)

    def start(self) -> None:
        """Start again after `kill` or `stop`, on the same data and ports."""
        if self.running:
            return
        self.launch()
        self.await_ready()

    def ask_to_stop(self) -> None:
        """Without waiting for it."""
        if self.process is not None:
            self.process.ask_to_stop()

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """SIGKILL: what it had not written to disk is lost to it, as after a crash."""
        if self.process is not None:
            self.process.kill()

    def tail(self, lines: int = 30) -> str:
        return tail(self.log, lines)

    def _explain(self, log: str) -> str:
        if "Address already in use" in log:
            ports = [self.port, self.proxied_port, self.controller_port, *self.secured_ports.values()]
            port = next((p for p in ports if p is not None and f":{p}" in log), self.controller_port)
            raise PortTaken(taken_sentence(port, "Kafka"))
        if "Could not reserve enough space" in log or "insufficient memory" in log:
            return f"Java could not get its memory ({' '.join(self.java_options)}). Free some (`free -m` shows it) and try again."
        if "No space left on device" in log:
            return f"The disk that holds {self.folder} is full."
        return ""
