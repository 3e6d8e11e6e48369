"""`/live`, `/ready`, and the port that serves them."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

from promptbus_worker.health import SlotView, View, not_live, not_ready
from promptbus_worker.health_server import HealthServer
from promptbus_worker.heartbeat import Heartbeat
from tests.unit.worker.scripted import get, until

# -- /live and /ready ------------------------------------------------------------------------------------------------

HEALTHY = SlotView(
    slot=0, running=True, heard_at=100.0, heartbeat=Heartbeat(True, 0.1), starts_at=None, last_end=""
)


def seen(*slots: SlotView, stopping: str | None = None) -> View:
    return View(at=100.0, stopping=stopping, restarts=0, slots=slots)


def test_live_and_ready_when_all_is_well() -> None:
    assert not_live(seen(HEALTHY), 100.1) == []
    assert not_ready(seen(HEALTHY), 100.1) == []


def test_ready_says_what_each_slot_waits_for() -> None:
    waiting = replace(HEALTHY, heartbeat=Heartbeat(False, 0.1, waiting_for="Triton at localhost:8000"))
    starting = replace(HEALTHY, slot=1, heartbeat=None)
    restarting = SlotView(
        2, running=False, heard_at=None, heartbeat=None, starts_at=103.0, last_end="was killed by SIGKILL"
    )
    leaving = replace(HEALTHY, slot=3, heartbeat=Heartbeat(True, 0.1, stopping="producer is fenced"))
    view = seen(waiting, starting, restarting, leaving)
    assert not_ready(view, 100.0) == [
        "slot 0: waiting for Triton at localhost:8000",
        "slot 1: starting",
        "slot 2: was killed by SIGKILL, starts in 3.0 s",
        "slot 3: stopping: producer is fenced",
    ]
    assert not_live(view, 100.0) == [], "waiting for others or for a restart is no reason to be killed"


def test_draining_is_live_and_not_ready() -> None:
    old = replace(HEALTHY, heard_at=0.0)
    assert not_live(seen(old, stopping="asked to stop"), 100.0) == []
    assert not_ready(seen(HEALTHY, stopping="asked to stop"), 100.0) == ["stopping: asked to stop"]


def test_a_silent_worker_a_stuck_consumer_and_a_stuck_supervisor_are_not_live() -> None:
    assert not_live(seen(replace(HEALTHY, heard_at=9.0)), 100.0) == ["slot 0: no heartbeat for 91 s"]
    stuck = replace(HEALTHY, heartbeat=Heartbeat(True, 91.0))
    assert not_live(seen(stuck), 100.0) == ["slot 0: its Kafka consumer has made no progress for 91 s"]
    mended = replace(HEALTHY, heard_at=39.0)
    assert not_live(seen(mended), 100.0) == [], "the supervisor is about to start another one"
    assert not_live(seen(HEALTHY), 111.0) == ["the supervisor has made no progress for 11 s"]


# -- the HTTP port ---------------------------------------------------------------------------------------------------


def test_the_port_answers_and_hangs_on_nobody(tmp_path: Path) -> None:
    with HealthServer("127.0.0.1", 0) as server:
        server.serve(lambda: replace(seen(HEALTHY), at=time.monotonic()), tmp_path)
        silent = socket.create_connection(("127.0.0.1", server.port))  # sends nothing, blocks nobody
        with silent:
            assert get(server.address, "/ready") == (200, "ok\n")
            assert get(server.address, "/nothing")[0] == 404
            status, body = get(server.address, "/metrics?x=1")
            assert status == 200
            assert "promptbus_workers 1.0" in body


def test_a_flood_of_connections_is_turned_away_and_forgotten(tmp_path: Path) -> None:
    with HealthServer("127.0.0.1", 0) as server:
        server.serve(lambda: seen(HEALTHY), tmp_path)
        before = threading.active_count()
        flood = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        until(lambda: any(closed(connection) for connection in flood), "some turned away")
        assert threading.active_count() - before <= 32
        for connection in flood:
            connection.close()
        until(lambda: answers(server.address), "room again")


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(address: str) -> bool:
    try:
        return get(address, "/ready")[0] == 200
    except OSError:
        return False
