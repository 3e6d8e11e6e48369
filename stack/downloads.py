"""Fetching with pip and jgo: announced, with progress, and a clear sentence when it fails."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stack.errors import StackError

QUIET_S = 5.0
# Without these it looks for a linear-algebra library, which no model here needs.
NUMPY_BUILD_OPTIONS = ("--config-settings=setup-args=-Dallow-noblas=true",)


class DownloadFailed(StackError):
    """Nothing of it is kept."""


def announce(what: str, megabytes: int) -> None:
    print(f"→ {what} (about {megabytes} MB to download)", flush=True)


def failed_sentence(what: str, output: str) -> str:
    """What to tell when a download ended badly; the last lines of its output go with it."""
    lines = [line for line in output.splitlines() if line.strip()]
    if "No space left" in output:
        advice = "The disk is full: free some space and run `make setup` again."
    elif "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        advice = "What came is not what requirements/ promises, so nothing was installed. Is a proxy changing files?"
    elif "No matching distribution" in output and "Connection" not in output and "Max retries" not in output:
        advice = "The package index has no file for this Python or machine; setup's requirements are in requirements/."
    else:
        proxies = [n for n in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy") if os.environ.get(n)]
        through = f" through the proxy in {proxies[0]}" if proxies else ""
        advice = f"Is the network{through} reachable? Then run `make setup` again."
    return "\n".join([f"Downloading {what} failed. {advice}", *(f"    {line[:300]}" for line in lines[-4:])])


def run(
    argv: Sequence[str | Path],
    what: str,
    folder: Path,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a downloader that writes into `folder`. Raises DownloadFailed.

    How much has come is said in one changing line on a terminal, otherwise in a line every few seconds.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".scratch", dir=folder))
    environment = dict(os.environ, TMPDIR=str(scratch), **(env or {}))
    output = scratch / "output.txt"
    try:
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(a) for a in argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                cwd=cwd,
            )
            try:
                _follow(process, folder)
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode != 0:
            raise DownloadFailed(failed_sentence(what, output.read_text(errors="replace")))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _follow(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    started = time.monotonic()
    terminal = sys.stdout.isatty()
    while True:
        try:
            process.wait(0.5 if terminal else QUIET_S)
        except subprocess.TimeoutExpired:
            line = f"  {time.monotonic() - started:3.0f} s, {_megabytes(folder):.0f} MB written"
            print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True)
        else:
            if terminal:
                print("\r" + " " * 40 + "\r", end="", flush=True)
            return


def _megabytes(folder: Path) -> float:
    total = 0
    for parent, _, names in os.walk(folder):  # not rglob, which fails at a folder that is removed meanwhile
        for name in names:
            with suppress(OSError):  # moved while we looked
                total += Path(parent, name).lstat().st_size
    return total / 1e6


def pip(python: Path, *arguments: str | Path) -> list[str | Path]:
    """The command line of a Python's pip."""
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def pip_install(
    pip_python: Path,
    requirements: Path,
    what: str,
    folder: Path,
    *,
    into: Path,
    target: bool,
    compiled: Sequence[str] = (),
) -> None:
    """`pip install` of a hashed requirements file, by a Python that has pip.

    `into` is another environment's Python, or with `target` a folder that receives the files without dependencies.
    `compiled` names packages that are built here, with what is in that environment, because no wheel exists.
    """
    options: list[str | Path] = ["--progress-bar=off", "--no-warn-script-location", "--only-binary=:all:"]
    options += ["--require-hashes", "-r", requirements]
    environment = None
    if compiled:
        options += [f"--no-binary={','.join(compiled)}", "--no-build-isolation", *NUMPY_BUILD_OPTIONS]
        environment = {"PATH": f"{into.parent}:{os.environ.get('PATH', os.defpath)}"}
    if target:
        command = pip(pip_python, "install", "--no-deps", "--no-compile", f"--target={into}", *options)
    else:
        command = pip(pip_python, f"--python={into}", "install", *options)
    run(command, what, folder, env=environment)
