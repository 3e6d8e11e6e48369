"""The parent of the worker processes: it alone interprets signals, and serves metrics and health.

The first SIGINT or SIGTERM drains, the second kills. It touches neither Kafka nor Triton and loads none of their
libraries: it stays small, and nothing of theirs can take it down.

Exit: 0 drained · 1 gave up · 2 configuration · 3 not everything drained.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from promptbus.masking import secrets_of
from promptbus_worker import logs
from promptbus_worker.fleet import Fleet
from promptbus_worker.health_server import HealthServer
from promptbus_worker.settings import Settings
from promptbus_worker.worker_process import Exit

log = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "promptbus_worker.worker")


def run(settings: Settings, command: Sequence[str] = WORKER_COMMAND) -> int:
    """`promptbus worker`: supervise until told to stop. Belongs to the main thread. The exit code."""
    logs.configure(settings.log_level, settings.log_format, None, secrets=secrets_of(settings))
    try:
        server = HealthServer(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        log.error("%s", _why_not_listening(settings, error))
        return Exit.CONFIGURATION
    with server:
        try:
            directory = _fresh_directory(settings.prometheus_multiproc_dir)
        except OSError as error:
            log.error("PROMETHEUS_MULTIPROC_DIR %s: %s", settings.prometheus_multiproc_dir, error.strerror)
            return Exit.CONFIGURATION
        try:
            instance = settings.worker_instance or f"{socket.gethostname()}-{server.port}"
            fleet = Fleet(
                command=command,
                env={**os.environ, "WORKER_INSTANCE": instance},
                processes=settings.worker_processes,
                drain_s=settings.worker_drain_s,
                stuck_s=settings.stuck_s,
                metrics_dir=directory,
            )
            with _signals(fleet.stop):
                server.serve(lambda: fleet.view, directory)
                log.info(
                    "metrics and health on http://%s (/metrics, /live, /ready)",
                    server.address,
                    extra={"workers": settings.worker_processes, "instance": instance},
                )
                code = fleet.run()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    log.info("stopped", extra={"exit_code": int(code)})
    return code


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fresh_directory(given: Path | None) -> Path:
    """A new folder for the workers' metric files: what lies in an old one would be counted again."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="promptbus-metrics-", dir=given))


def _why_not_listening(settings: Settings, error: OSError) -> str:
    where = f"{settings.metrics_host}:{settings.metrics_port}"
    if error.errno == errno.EADDRINUSE:
        return f"METRICS_PORT {settings.metrics_port} is taken on {settings.metrics_host}: set another one, or 0 for any"
    if error.errno == errno.EACCES:
        return f"METRICS_PORT {settings.metrics_port} is not allowed for this user: set one above 1023"
    return f"METRICS_HOST, METRICS_PORT: cannot listen on {where}: {error.strerror or error}"
