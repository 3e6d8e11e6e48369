"""Steps of the Dockerfiles that can be taken without Docker: what is copied, cut out, built and asked for health."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from promptbus_worker.health import View
from promptbus_worker.health_server import HealthServer
from tests.unit.project.compose import PROJECT, compose

WORKER, MODEL = PROJECT / "consumer" / "Dockerfile", PROJECT / "models" / "Dockerfile"


def instructions(dockerfile: Path, name: str) -> list[str]:
    """The arguments of every such instruction, lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    return re.findall(rf"^{name} (.*)$", "\n".join(lines).replace("\\\n", ""), re.MULTILINE)


def copied(dockerfile: Path) -> list[str]:
    """What its COPY lines take from the project."""
    lines = [line.split() for line in instructions(dockerfile, "COPY")]
    return [source.removeprefix("./") for words in lines if "--from" not in words[0] for source in words[:-1]]


@pytest.mark.parametrize("dockerfile", [WORKER, MODEL], ids=["worker", "model"])
def test_what_is_copied_exists_and_is_sent_to_the_builder(dockerfile: Path) -> None:
    patterns = (dockerfile.parent / "Dockerfile.dockerignore").read_text().split("\n")
    kept = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    assert "*" in patterns
    assert copied(dockerfile)
    for source in copied(dockerfile):
        assert (PROJECT / source).exists()
        assert any(source == path or source.startswith(path + "/") for path in kept), f"{source} is ignored"
    for path in kept:
        assert any(fnmatch.fnmatch(source, f"{path}*") for source in copied(dockerfile)), f"{path}: what for?"


def test_the_build_requirements_are_the_backend_and_what_it_needs(tmp_path: Path) -> None:
    (run,) = [run for run in instructions(WORKER, "RUN") if run.startswith("awk ")]
    cut, _, _ = run.partition("&& python ")
    (tmp_path / "requirements").mkdir()
    shutil.copy(PROJECT / "requirements" / "dev.txt", tmp_path / "requirements")
    subprocess.run(["sh", "-c", cut], cwd=tmp_path, check=True)
    lines = (tmp_path / "requirements" / "build.txt").read_text().splitlines()
    pins = {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+)==(\S+) (;.* )?\\$", line))}
    assert {name: metadata.version(name) for name in backend()} == pins
    others = [line for line in lines if not re.match(r"[\w.-]+==", line)]
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in others)
    assert lines[-1].startswith("    --hash="), "the last one is whole"


def backend() -> set[str]:
    """pyproject.toml's build requirements, and its hook's, with all that they require, by canonical name."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    waiting = [*project["build-system"]["requires"], *hook["dependencies"]]
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        marker = requirement.marker
        # The Python of the image.
        if name in found or (marker and not marker.evaluate({"python_version": "3.12", "extra": ""})):
            continue
        found.add(name)
        waiting += metadata.requires(name) or []
    return found


def test_the_image_has_the_compiled_wheel_and_only_its_build_stage_a_compiler() -> None:
    runs = instructions(WORKER, "RUN")
    assert [
        run for run in runs if run.startswith("HATCH_BUILD_HOOK_ENABLE_CUSTOM=true ") and "pip wheel" in run
    ]
    (apt,) = [run for run in runs if "apt-get install" in run]
    assert {"gcc", "libc6-dev"} <= set(apt.split())
    assert {"hatch_build.py", "pyproject.toml"} <= set(copied(WORKER))
    _, _, final = WORKER.read_text().rpartition("\nFROM ")
    assert "RUN" not in final


def test_the_wheel_is_all_that_the_image_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in copied(WORKER):
        if not path.startswith("requirements/"):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).symlink_to(PROJECT / path)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (scripts,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert "promptbus = promptbus.cli:main" in scripts.read_text()

    where = "import promptbus, promptbus_worker as w; print(promptbus.__file__, w.__file__)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "installed")}
    packages = python(environment, tmp_path, "-c", where).split()
    assert all(Path(path).is_relative_to(tmp_path / "installed") for path in packages)
    assert instructions(WORKER, "ENTRYPOINT") == ['["promptbus"]']
    assert instructions(WORKER, "CMD") == ['["worker"]']
    assert "WORKER_PROCESSES" in python(environment, tmp_path, "-m", "promptbus", "worker", "--settings")


def python(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """What this interpreter prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_worker_images_variables_are_settings_or_pythons() -> None:
    (line,) = instructions(WORKER, "ENV")
    names = dict(word.split("=", 1) for word in shlex.split(line))
    assert names["METRICS_PORT"] in instructions(WORKER, "EXPOSE")[0].split()
    assert {name for name in names if not name.startswith(("PYTHON", "PATH"))} == {
        "METRICS_HOST",
        "METRICS_PORT",
        "PROMETHEUS_MULTIPROC_DIR",
    }


def test_the_workers_healthcheck_asks_for_live(tmp_path: Path) -> None:
    healthcheck = compose().services["worker"].healthcheck
    assert healthcheck is not None
    kind, program, *arguments = healthcheck.test
    assert (kind, program) == ("CMD", "python")
    seen = View(at=time.monotonic(), stopping=None, restarts=0, slots=())

    def healthy() -> bool:
        environment = {"METRICS_PORT": str(server.port)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    with HealthServer("127.0.0.1", 0) as server:
        server.serve(lambda: seen, tmp_path)
        assert healthy()
        seen = View(at=time.monotonic() - 3600, stopping=None, restarts=0, slots=())
        assert not healthy(), "its loop stands still"
    assert not healthy(), "nobody listens"
