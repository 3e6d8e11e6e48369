"""Triton Inference Server 2.51.0 with its Python backend on this machine, without Docker."""

import contextlib
import os
import platform
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stack import contents, docker
from stack.cache import PROJECT
from stack.errors import Crashed, PortTaken, StackError
from stack.loopback import http_get
from stack.ports import HOST, free_ports, require_free, taken_sentence
from stack.process import Process, server_environment, tail

MODELS = PROJECT / "models"
START_TIMEOUT_S = 90.0
START_ATTEMPTS = 5
STUB = "triton_python_backend_stub"


class Triton:
    """One server on 127.0.0.1 only, on free ports unless they are named, with the models of a folder.

    `repository`: a model repository; folders in it without a config.pbtxt, and files, are left out.
    `engine`: sets GPT4_NANO_ENGINE (`llama_cpp`, `canned`); None leaves the model its own choice.
    `env`: more environment for the models, such as GPT4_NANO_* knobs.
    `ports`: HTTP, gRPC and metrics.

    A context manager. `stop` and `kill` keep the ports, so that `start` brings it back on them.
    Errors: NotInstalled, PortTaken, Crashed, StartFailed, all with a sentence for people.
    """

    def __init__(
        self,
        repository: Path | None = None,
        engine: str | None = None,
        env: Mapping[str, str] | None = None,
        ports: tuple[int, int, int] | None = None,
        folder: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.repository = repository or MODELS
        self._env = dict(env or {})
        if engine is not None:
            self._env["GPT4_NANO_ENGINE"] = engine
        self._wanted_ports = ports
        self._arguments = list(arguments)
        self._own_folder = folder is None
        self.folder = folder
        self.ports: tuple[int, int, int] | None = None
        self.process: Process | None = None
        # Regions of shared memory are named by it, so that servers side by side do not meet.
        self.shm_prefix = f"promptbus_{os.getpid()}_{secrets.token_hex(4)}_"
        self._container = self.shm_prefix.rstrip("_")

    @property
    def url(self) -> str:
        """`127.0.0.1:port` of HTTP, as tritonclient wants it."""
        return f"{HOST}:{self._known_ports()[0]}"

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self._known_ports()[1]}"

    @property
    def metrics_address(self) -> str:
        """`127.0.0.1:port` of its Prometheus metrics, as a scraper wants it."""
        return f"{HOST}:{self._known_ports()[2]}"

    @property
    def metrics_url(self) -> str:
        """The address of its Prometheus metrics."""
        return f"http://{self.metrics_address}/metrics"

    @property
    def pid(self) -> int:
        """Of tritonserver. Raises StackError if it was not started."""
        if self.process is None:
            raise StackError("Triton was not started.")
        return self.process.pid

    @property
    def log(self) -> Path:
        if self.folder is None:
            raise StackError("Triton was not started.")
        return self.folder / "triton.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    @property
    def ready(self) -> bool:
        """The server and every model say so. They do so also when the models' processes are dead."""
        port = self._known_ports()[0]
        paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in self.models())]
        answers = (http_get(port, path) for path in paths)
        return all(answer is not None and answer.status == 200 for answer in answers)

    def models(self) -> list[str]:
        """The names of the repository's models."""
        return sorted(config.parent.name for config in self.repository.glob("*/config.pbtxt"))

    def start(self) -> Self:
        """Returns when every model is ready. Starting what already runs does nothing."""
        if self.running:
            return self
        if not self.models():
            raise StackError(f"{self.repository} holds no model: no folder in it has a config.pbtxt.")
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="promptbus-triton-"))
        try:
            self._start_on_ports()
        except BaseException:
            if self.ports is None:
                self.close()
            raise
        return self

    def stop(self) -> None:
        """End it in an orderly way: calls in flight are finished. Idempotent."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """SIGKILL the server and its stubs. Idempotent."""
        if self.process is not None:
            self.process.kill()
            if platform.system() == "Darwin":
                docker.end(self._container)

    def close(self) -> None:
        """Kill it if it runs, and remove its folder if nobody named one."""
        self.kill()
        if self._own_folder and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def stubs(self) -> list[int]:
        """The processes in which this server's models run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if STUB.encode() in command and self.shm_prefix.encode() in command:
                    found.append(int(process.name))
        return found

    def kill_stubs(self) -> int:
        """SIGKILL every stub of this server; it answers 500 from then on but calls itself ready. Returns how many."""
        stubs = self.stubs()
        for pid in stubs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(stubs)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return tail(self.log, lines) if self.folder is not None else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known_ports(self) -> tuple[int, int, int]:
        if self.ports is None:
            raise StackError("Triton was not started, so it has no address yet.")
        return self.ports

    def _start_on_ports(self) -> None:
        fixed = self.ports or self._wanted_ports
        for attempt in range(START_ATTEMPTS):
            if fixed is None:
                http, grpc, metrics = free_ports(3)
                ports = (http, grpc, metrics)
            else:
                ports = fixed
                for port, what in zip(ports, ("HTTP", "gRPC", "metrics"), strict=True):
                    require_free(port, f"Triton's {what}")
            known, self.ports = self.ports, ports
            try:
                self._launch(ports)
            except (PortTaken, Crashed) as failure:
                self.ports = known
                in_vain = fixed is not None and isinstance(failure, PortTaken)
                if in_vain or attempt == START_ATTEMPTS - 1:
                    raise
            except BaseException:
                self.ports = known
                raise
            else:
                return

    def _launch(self, ports: tuple[int, int, int]) -> None:
        folder = self.folder
        if folder is None:
            raise StackError("Triton was closed.")
        self.log.unlink(missing_ok=True)
        models = self._copy_repository(folder / "models")
        if platform.system() == "Darwin":
            argv = docker.run_command(self._container, models, ports, self._env, self._arguments)
            environment = server_environment()
        else:
            argv = self._native_command(models, ports)
            environment = server_environment(_native_environment() | self._env)
        self.process = Process(
            f"Triton on port {ports[0]}",
            argv,
            log=self.log,
            env=environment,
            cwd=folder,
            grace_s=15.0,
            shm_prefix=self.shm_prefix,
            remove_if_orphaned=[folder] if self._own_folder else [],
        )
        self.process.wait_ready(
            lambda: self._started(ports), START_TIMEOUT_S, lambda log: _explain(log, ports)
        )

    def _started(self, ports: tuple[int, int, int]) -> bool:
        # Without its metrics port Triton runs on, with only a line in the log.
        if "failed to start Metrics service" in self.tail(20):
            raise PortTaken(taken_sentence(ports[2], "Triton's metrics"))
        if "--allow-metrics=false" in self._arguments:
            return self.ready
        return self.ready and http_get(ports[2], "/metrics") is not None

    def _native_command(self, models: Path, ports: tuple[int, int, int]) -> list[str]:
        server = contents.triton_server().require() / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        http, grpc, metrics = ports
        return [
            str(server),
            f"--model-repository={models}",
            f"--backend-directory={contents.triton_environment().require() / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--http-address={HOST}",
            f"--grpc-address={HOST}",
            f"--metrics-address={HOST}",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            "--allow-gpu-metrics=false",
            # An idle keep-alive connection of a client counts as unfinished work: 30 s by default.
            "--exit-timeout-secs=3",
            *self._arguments,
        ]

    def _copy_repository(self, target: Path) -> Path:
        """Models only: anything else that lies there (a README, caches) would be an error or noise to Triton."""
        shutil.rmtree(target, ignore_errors=True)
        for name in self.models():
            shutil.copytree(
                self.repository / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        return target


def _native_environment() -> dict[str, str]:
    """Raises NotInstalled."""
    server = contents.triton_server().require()
    python = contents.triton_environment().require()
    files = contents.model_files().require()
    return {
        # The stub loads libpython, and finds site-packages through the python3 that is first on PATH.
        "LD_LIBRARY_PATH": f"{python / 'lib'}:{server / 'nvidia_pytriton.libs'}",
        "PATH": f"{python / 'venv' / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "GPT4_NANO_GGUF": str(files / contents.GGUF),
        "TIKTOKEN_CACHE_DIR": str(files / "tiktoken"),
    }


def _explain(log: str, ports: tuple[int, int, int]) -> str:
    """What a log of a failed start means; empty if nothing known is in it. Raises PortTaken, Crashed."""
    taken = re.search(
        r"Socket '[^']*:(\d+)' already in use|[Ff]ailed to bind.*?:(\d+)|:(\d+).*[Aa]ddress already in use",
        log,
    )
    if taken or "already in use" in log:
        port = int(next((g for g in taken.groups() if g), "0")) if taken else ports[0]
        raise PortTaken(taken_sentence(port or ports[0], "Triton"))
    # Seen on a busy machine; see github.com/triton-inference-server/server/issues/8882.
    if "boost::interprocess::lock_exception" in log:
        raise Crashed(
            "Triton's Python backend crashed while it started, time and again: a lock in shared memory failed. It is a "
            f"fault of Triton's own that comes and goes; try again. Its log ends with:\n{log[-3000:]}"
        )
    missing = re.search(r"error while loading shared libraries: (libpython\S+):", log)
    if missing:
        return (
            f"The Python backend needs {missing[1]}, which is gone since it was installed. "
            "Run `make clean` and `make setup`, which says how to get it."
        )
    if re.search(r"bad_alloc|Cannot allocate memory|std::bad_array_new_length", log):
        return "Memory ran out. Free some (`free -m` shows it) and try again."
    if re.search(r"No space left on device|shared memory.*(full|space)", log):
        return "Shared memory is full: /dev/shm needs 64 MB free (`df -h /dev/shm` shows it; in Docker: --shm-size=256m)."
    failed = re.search(r"failed to load '([^']+)' version (\d+): (.*)", log)
    if failed:
        return f"Its model {failed[1]} could not be loaded: {failed[3][:2000]}\nIts log ends with:\n{log[-3000:]}"
    return ""
