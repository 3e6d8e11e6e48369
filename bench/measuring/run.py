"""One contender at work, from its start to its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.contenders.contender import Contender, Place
from bench.measuring.processes import Roles, processes, tree
from bench.services import Services
from stack.errors import StackError
from stack.process import Process, server_environment, tail

START_TIMEOUT_S = 120.0
CONTENDER, TRITON, MODEL, KAFKA = "contender", "triton", "model", "kafka"


class ContenderFailed(StackError):
    """It ended, answered wrongly, or did nothing."""


class Run:
    """A contender's process. `started_at` is the wall clock."""

    def __init__(self, contender: Contender, place: Place, services: Services) -> None:
        command = contender.command(place)
        clean = {
            name: value
            for name, value in server_environment().items()
            if not name.startswith(("KAFKA_", "TRITON_", "WORKER_"))
        }
        self.contender = contender
        self.place = place
        self._log = place.folder / "contender.log"
        self.started_at = time.time()
        self.process = Process(
            contender.name,
            command.argv,
            log=self._log,
            env=clean | dict(command.env),
            cwd=place.folder,  # where no .env lies
            grace_s=25.0,
        )
        self._services = services

    @property
    def roles(self) -> Roles:
        """Whose CPU is counted."""
        pid = self.process.pid
        stubs = self._services.triton.stubs()
        return {
            CONTENDER: lambda: tree(pid),
            TRITON: lambda: processes([self._services.triton.pid]),
            MODEL: lambda: processes(stubs),
            KAFKA: lambda: processes([self._services.kafka.pid]),
        }

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Ask until it says yes. Raises ContenderFailed when the process ends or time runs out."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if not self.process.running:
                raise ContenderFailed(f"{self.contender.name} ended:\n{tail(self._log)}")
            if time.monotonic() > deadline:
                raise ContenderFailed(
                    f"{self.contender.name}: {what} not within {timeout_s:.0f} s. Its log ends with:\n{tail(self._log)}"
                )
            time.sleep(0.02)

    def has_logged(self, text: str) -> bool:
        """It stands in the log."""
        return text in self._log.read_text(errors="replace")


@contextmanager
def running(contender: Contender, place: Place, services: Services) -> Iterator[Run]:
    """Ended with the block: in an orderly way what is ours, the others at once."""
    run = Run(contender, place, services)
    try:
        yield run
    finally:
        if contender.is_peer:
            run.process.kill()
        else:
            run.process.stop()
