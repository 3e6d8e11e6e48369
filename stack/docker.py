"""Triton in Docker, for macOS, where its binary does not run. It cannot be tried on Linux machines without Docker;
tests check the command lines only.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from stack.cache import PROJECT
from stack.errors import StackError
from stack.ports import HOST

IMAGE = "promptbus-triton"
PASSED_ON = ("GPT4_NANO_",)


def build_command() -> list[str]:
    return ["docker", "build", "--tag", IMAGE, "--file", str(PROJECT / "models" / "Dockerfile"), str(PROJECT)]


def run_command(
    name: str, models: Path, ports: tuple[int, int, int], env: Mapping[str, str], arguments: list[str]
) -> list[str]:
    """Model settings go along, except paths of this machine: the image has its own."""
    published = [
        f"--publish={HOST}:{port}:{inner}" for port, inner in zip(ports, (8000, 8001, 8002), strict=True)
    ]
    settings = [
        f"--env={k}={v}" for k, v in sorted(env.items()) if k.startswith(PASSED_ON) and k != "GPT4_NANO_GGUF"
    ]
    start = [
        "tritonserver",
        "--model-repository=/models",
        "--model-control-mode=none",
        "--allow-gpu-metrics=false",
    ]
    run = ["docker", "run", "--rm", "--name", name, "--shm-size=256m", f"--volume={models}:/models:ro"]
    return [*run, *published, *settings, IMAGE, *start, *arguments]


def build() -> None:
    """Build the image. Raises StackError."""
    if subprocess.run(build_command(), check=False).returncode != 0:
        raise StackError("Docker could not build Triton's image (see above). Then run `make setup` again.")


def end(name: str) -> None:
    """A killed `docker run` leaves its container behind."""
    subprocess.run(["docker", "kill", name], capture_output=True, check=False)
