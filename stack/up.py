"""`make up`: Kafka, Triton and one worker in the background, until `make down`.

ENGINE=canned: prepared answers instead of a real model. WORKER=0: no worker. EXISTING=1: use what KAFKA_BOOTSTRAP and
TRITON_URL name. Kafka's data stays in `.stack/kafka` between runs.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from stack import state
from stack.cache import PROJECT
from stack.errors import StackError
from stack.kafka import Kafka
from stack.ports import free_ports, holder, is_free
from stack.process import Process, end_like_an_interrupt
from stack.services import Existing, chosen_engine, existing_services, make_topics
from stack.triton import Triton
from stack.worker import service_environment, start_worker

DEFAULTS = {"KAFKA_BOOTSTRAP": "127.0.0.1:9092", "TRITON_URL": "127.0.0.1:8000", "METRICS_PORT": "8003"}
LOGS = {"Kafka": "kafka/node-1/kafka.log", "Triton": "triton/triton.log", "worker": "worker.log"}


def main() -> int:
    end_like_an_interrupt()
    try:
        with state.locked():
            return _up()
    except StackError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped: nothing of it runs any more.", file=sys.stderr)
        return 130


def _up() -> int:
    servers = state.read()
    dead = [server.name for server in servers if not server.alive]
    if servers and not dead:
        print("It is up already.")
        _tell(servers, state.read_env())
        return 0
    if servers:
        print(
            f"{' and '.join(dead)} ended by itself (see .stack/); the rest is stopped, and all is started again."
        )
        for server in reversed(servers):
            state.end(server)
        state.STATE.unlink()
    existing = existing_services()
    engine = chosen_engine()
    with ExitStack() as undo:
        processes, environment = _start(existing, engine, undo)
        servers = [
            state.Server(name, p.guard_pid, state.start_of(p.guard_pid)) for name, p in processes.items()
        ]
        # Written before they are let go: whatever happens in between, `make down` finds them.
        state.write_env(environment)
        state.write(servers)
        for process in processes.values():
            process.detach()
        undo.pop_all()
    _tell(servers, environment)
    return 0


def _start(existing: Existing, engine: str, undo: ExitStack) -> tuple[dict[str, Process], dict[str, str]]:
    """Everything, in order. What was started is ended by `undo` if the rest fails."""
    processes: dict[str, Process] = {}
    environment = {"KAFKA_BOOTSTRAP": existing.bootstrap, "TRITON_URL": existing.triton_url}
    if not existing.bootstrap:
        print("Kafka …", flush=True)
        kafka = Kafka(state.FOLDER / "kafka", port=_port(9092, "Kafka"))
        undo.callback(kafka.close)
        kafka.start()
        environment["KAFKA_BOOTSTRAP"] = kafka.bootstrap
        if kafka.brokers[0].process is not None:
            processes["Kafka"] = kafka.brokers[0].process
    new = make_topics(environment["KAFKA_BOOTSTRAP"], existing=bool(existing.bootstrap))
    if new:
        print(f"  topics created: {', '.join(new)}")
    if not existing.triton_url:
        print(f"Triton, engine {engine} …", flush=True)
        ports = (_port(8000, "Triton's HTTP"), _port(8001, "Triton's gRPC"), _port(8002, "Triton's metrics"))
        triton = Triton(engine=engine, ports=ports, folder=_folder("triton"))
        undo.callback(triton.close)
        triton.start()
        environment |= {"TRITON_URL": triton.url, "TRITON_METRICS_URL": triton.metrics_url}
        if triton.process is not None:
            processes["Triton"] = triton.process
    environment["METRICS_PORT"] = str(_port(8003, "the worker's metrics"))
    if os.environ.get("WORKER", "1") != "0":
        print("A worker …", flush=True)
        worker = start_worker(
            service_environment(environment, existing=bool(existing)),
            int(environment["METRICS_PORT"]),
            state.FOLDER / "worker.log",
            PROJECT if existing else _folder("worker"),
        )
        undo.callback(worker.kill)
        processes["worker"] = worker
    return processes, environment


def _folder(name: str) -> Path:
    folder = state.FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _port(wanted: int, what: str) -> int:
    """The usual port if it is free, else another one, said plainly."""
    if is_free(wanted):
        return wanted
    (other,) = free_ports(1)
    who = holder(wanted)
    print(f"  Port {wanted} is taken{' by ' + who if who else ''}: {what} is on {other} instead.")
    return other


def _tell(servers: list[state.Server], environment: dict[str, str]) -> None:
    names = [server.name for server in servers]
    print()
    print(f"  Kafka    {environment['KAFKA_BOOTSTRAP']}")
    print(f"  Triton   http://{environment['TRITON_URL'].removeprefix('http://')}")
    if "worker" in names:
        print(f"  worker   http://127.0.0.1:{environment['METRICS_PORT']}/metrics")
    logs = [f".stack/{LOGS[name]}" for name in names]
    print(f"  logs     {' '.join(logs)}")
    print("\nNext:")
    if any(environment.get(name) != value for name, value in DEFAULTS.items()):
        print("  set -a; . .stack/env; set +a        # these are not the usual ports")
    if "worker" not in names:
        print("  set -a; . .stack/env; set +a; .venv/bin/promptbus worker")
    print('  .venv/bin/promptbus ask "What is Kafka?"')
    print("  make down")


if __name__ == "__main__":
    sys.exit(main())
