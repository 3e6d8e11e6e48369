"""`promptbus worker` as a server of the stack: started, waited for, stopped like the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stack.cache import PROJECT
from stack.loopback import http_get
from stack.process import Process, server_environment

COMMAND = PROJECT / ".venv" / "bin" / "promptbus"
START_TIMEOUT_S = 60.0
# It drains for 20 s by itself.
GRACE_S = 25.0


def service_environment(values: Mapping[str, str], *, existing: bool) -> dict[str, str]:
    """For the worker: our environment, where only `EXISTING=1` lets settings of other clusters through."""
    inherited = server_environment(keep_proxies=existing)
    if not existing:
        inherited = {k: v for k, v in inherited.items() if not k.startswith(("KAFKA_", "TRITON_"))}
    return inherited | dict(values)


def start_worker(
    environment: Mapping[str, str],
    metrics_port: int,
    log: Path,
    cwd: Path,
    remove_if_orphaned: Sequence[Path] = (),
) -> Process:
    """Returns when it is ready: brokers reached, model metadata read. Raises StartFailed.

    `cwd` decides which `.env` it reads: a folder without one for a worker of our own services.
    """
    log.unlink(missing_ok=True)
    worker = Process(
        "The worker",
        [COMMAND, "worker"],
        log=log,
        env=dict(environment) | {"METRICS_HOST": "127.0.0.1", "METRICS_PORT": str(metrics_port)},
        cwd=cwd,
        grace_s=GRACE_S,
        remove_if_orphaned=remove_if_orphaned,
    )

    def ready() -> bool:
        answer = http_get(metrics_port, "/ready")
        return answer is not None and answer.status == 200

    worker.wait_ready(ready, START_TIMEOUT_S, lambda _log: "")
    return worker
