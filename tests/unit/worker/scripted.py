"""Tiny programs in place of the worker, and waiting without sleeping blindly."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

# What every scripted worker begins with; `beat()` sends a heartbeat, `drained` is set by SIGTERM or the end of stdin.
PRELUDE = """
import os, signal, sys, threading, time
from promptbus_worker.heartbeat import DRAINING, Heartbeat, HeartbeatWriter
writer = HeartbeatWriter.from_environment()
slot = int(os.environ["PROMPTBUS_SLOT"])
drained = threading.Event()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: drained.set())
threading.Thread(target=lambda: (sys.stdin.read(), drained.set()), daemon=True).start()
def beat(ready=True, age=0.0, **more):
    writer.write(Heartbeat(ready, age, **more))
def serve():
    while not drained.wait(0.02):
        beat()
"""
GOOD = PRELUDE + "serve(); sys.exit(0)"


def worker(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def get(address: str, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
