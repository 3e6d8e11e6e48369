"""Runs `promptbus` as a program of its own, as people do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 60


def promptbus(
    arguments: Sequence[str], environment: dict[str, str], cwd: Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "promptbus", *arguments],
        env=environment,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def started(arguments: Sequence[str], environment: dict[str, str], cwd: Path) -> subprocess.Popen[bytes]:
    """Start it; for what ends by a signal or a closed pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "promptbus", *arguments],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Ctrl-C; its exit code, stdout and stderr."""
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err
