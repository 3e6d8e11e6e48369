"""Keeps the worker processes running: starts them, reaps them, restarts them with back-off, ends
stuck ones, drains them.

Theory of operation. One loop, woken by a heartbeat, a request to stop, or 0.2 s. Every slot has a process or a time at
which the next one starts. It runs until it stops for a reason (it was asked to, a worker that no restart can mend, a
slot that never comes up); then it only waits for its workers to drain, for `drain_s` and a margin, and kills what is
left. Asked a second time, it kills at once.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from promptbus_worker import in_flight_file, lag_files
from promptbus_worker.crash_suspects import CrashSuspects
from promptbus_worker.freeze import FreezeGuard
from promptbus_worker.health import SlotView, View
from promptbus_worker.heartbeat import DRAINING
from promptbus_worker.stuck import Watch
from promptbus_worker.worker_process import Backoff, Exit, WorkerProcess, describe_exit, is_crash

log = logging.getLogger(__name__)

_TICK_S = 0.2
# Beyond WORKER_DRAIN_S the worker still flushes, commits and leaves the group.
_KILL_MARGIN_S = 10.0


class _Slot:
    """A place for one worker process after another."""

    def __init__(self, number: int, backoff: Backoff) -> None:
        self.number = number
        self.backoff = backoff
        self.process: WorkerProcess | None = None
        self.watch: Watch | None = None
        self.start_at: float | None = 0.0
        self.last_end = ""


class Fleet:
    """`processes` workers. `run` belongs to one thread; `stop` and `view` are safe from any."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        processes: int,
        drain_s: float,
        stuck_s: float,
        metrics_dir: Path,
        kill_margin_s: float = _KILL_MARGIN_S,
        backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`command` with `env` is a worker; it gets its slot, its heartbeat pipe and `metrics_dir` on top.

        `stuck_s`: how long one may stand still (`stuck.Watch`).
        """
        self._command = command
        self._env = {**env, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)}
        self._metrics_dir = metrics_dir
        self._drain_s = drain_s
        self._stuck_s = stuck_s
        self._kill_margin_s = kill_margin_s
        self._clock = clock
        self._freeze = FreezeGuard(clock())
        self._slots = [_Slot(number, backoff()) for number in range(processes)]
        self._suspects = CrashSuspects()
        self._restarts = 0
        self._result = 0
        self._stop_requests = 0
        self._stopping: str | None = None
        self._kill_at = float("inf")
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self.view = self._snapshot()

    def stop(self) -> None:
        """First call: drain. Second: kill at once. Safe in a signal handler."""
        self._stop_requests += 1
        try:
            self._wake_writer.send(b"\0")
        except OSError:  # full: the loop wakes anyway; closed: it has ended
            return

    def run(self) -> int:
        """Start the workers and stay until all are gone. The exit code."""
        try:
            while self._stopping is None or any(slot.process for slot in self._slots):
                self._start_due()
                self.view = self._snapshot()
                self._listen()
                self._reap()
                self._judge()
                self._obey()
        finally:
            self._kill_all()
            self._close()
        return self._result

    # -- one turn of the loop, in its order ----------------------------------------------------------------------

    def _start_due(self) -> None:
        if self._stopping is not None:
            return
        for slot in self._slots:
            now = self._clock()
            if slot.start_at is None or slot.start_at > now:
                continue
            slot.start_at = None
            slot.watch = Watch(self._stuck_s, self._drain_s + self._kill_margin_s)
            try:
                slot.process = WorkerProcess(slot.number, self._command, self._env, now)
            except OSError as error:
                self._failed(slot, f"could not be started: {error}", lived_s=0.0, was_ready=False)
                continue
            if slot.process.heartbeat_fd is not None:
                self._selector.register(slot.process.heartbeat_fd, selectors.EVENT_READ, slot)
            log.info("worker started", extra={"worker": slot.number, "worker_pid": slot.process.pid})

    def _listen(self) -> None:
        ready = self._selector.select(self._wait_s())
        self._freeze.tick(self._clock())
        for key, _ in ready:
            slot = key.data
            if slot is None:
                self._wake_reader.recv(4096)
            elif slot.process is not None and not slot.process.listen(self._clock()):
                # It closed its end: most likely it has just exited. A pipe at its end is always readable, so look
                # at it no more, and soon at the process instead.
                self._selector.unregister(key.fd)

    def _reap(self) -> None:
        for slot in self._slots:
            process = slot.process
            if process is None or (code := process.exit_code()) is None:
                continue
            self._release(slot, process)
            reason = process.heartbeat.stopping if process.heartbeat else None
            if is_crash(code):
                self._note_crash(slot)
            in_flight_file.remove(self._metrics_dir, slot.number)
            slot.last_end = (
                f"was stuck ({process.stuck}) and killed" if process.stuck else describe_exit(code)
            )
            if reason and reason != DRAINING and not process.stuck:
                slot.last_end += f" ({reason})"
            if self._stopping is not None:
                self._ended_in_drain(slot, process, code)
            elif code in (Exit.GAVE_UP, Exit.CONFIGURATION):
                self._result = code
                why = reason or "its last log line says why"
                self._begin_drain(f"worker {slot.number} gave up and a restart would not help: {why}")
            else:
                lived_s = self._clock() - process.started_at
                self._failed(slot, slot.last_end, lived_s=lived_s, was_ready=process.was_ready)

    def _note_crash(self, slot: _Slot) -> None:
        """Before the next process starts: it must know what to run alone."""
        in_flight = in_flight_file.read(self._metrics_dir, slot.number)
        if not in_flight:
            return
        self._suspects.crashed(in_flight)
        log.warning(
            "what the crashed worker was working on is run alone from now on",
            extra={"worker": slot.number, "records": len(in_flight), "suspects": sorted(in_flight)[:5]},
        )
        try:
            self._suspects.save(self._metrics_dir)
        except OSError as error:
            log.error("the crash suspects could not be written down", extra={"error": str(error)})

    def _judge(self) -> None:
        for slot in self._slots:
            process, now = slot.process, self._clock()
            if process is None or slot.watch is None:
                continue
            # While all drain, `_obey` has the last word.
            if process.stuck is None and self._stopping is None:
                why = slot.watch.why_stuck(process.heartbeat, process.heard_at, self._freeze, now)
                if why is not None:
                    process.give_up(why, now)
            process.kill_if_due(now)

    def _obey(self) -> None:
        if self._stop_requests and self._stopping is None:
            self._begin_drain("asked to stop", expected=True)
        running = [slot for slot in self._slots if slot.process is not None]
        if not running:
            return
        if self._stop_requests >= 2:
            log.warning(
                "asked a second time to stop: killing the workers; what they had in hand is redelivered"
            )
            self._result = self._result or Exit.DRAIN_TIMED_OUT
            self._kill_all()
        elif self._clock() >= self._kill_at:
            for slot in running:
                log.error(
                    "worker did not drain within WORKER_DRAIN_S and %g s more: killing it",
                    self._kill_margin_s,
                    extra={"worker": slot.number},
                )
            self._result = self._result or Exit.DRAIN_TIMED_OUT
            self._kill_all()

    # -- what happens to slots -----------------------------------------------------------------------------------

    def _failed(self, slot: _Slot, how: str, *, lived_s: float, was_ready: bool) -> None:
        slot.last_end = how
        wait_s = slot.backoff.failed(lived_s, was_ready=was_ready)
        # While others serve, one slot that cannot is worth an alert, not an outage.
        others_ready = any(other.process and other.process.was_ready for other in self._slots)
        if slot.backoff.hopeless and not others_ready:
            self._result = Exit.GAVE_UP
            self._begin_drain(
                f"worker {slot.number} ended {slot.backoff.hopeless_after} times in a row without ever being ready; "
                f"the last time it {how}"
            )
            return
        self._restarts += 1
        slot.start_at = self._clock() + wait_s
        log.error(
            "worker %s after %.1f s; starting it again in %g s",
            how,
            lived_s,
            wait_s,
            extra={"worker": slot.number},
        )

    def _ended_in_drain(self, slot: _Slot, process: WorkerProcess, code: int) -> None:
        # Killed by our SIGTERM before its first heartbeat, it had not begun: there was nothing to drain.
        never_began = code == -signal.SIGTERM and process.heartbeat is None
        if code == Exit.DRAINED or never_began:
            log.info("worker drained", extra={"worker": slot.number})
            return
        late = code == Exit.DRAIN_TIMED_OUT
        log.error(
            "worker %s%s",
            slot.last_end,
            "" if late else " instead of draining",
            extra={"worker": slot.number},
        )
        if self._result == 0:
            self._result = code if code in (Exit.GAVE_UP, Exit.CONFIGURATION) else Exit.DRAIN_TIMED_OUT

    def _begin_drain(self, reason: str, *, expected: bool = False) -> None:
        self._stopping = reason
        self._kill_at = self._clock() + self._drain_s + self._kill_margin_s
        log.log(
            logging.INFO if expected else logging.ERROR,
            "%s; draining the workers, up to %g s",
            reason,
            self._drain_s,
        )
        for slot in self._slots:
            slot.start_at = None
            if slot.process is not None:
                slot.process.drain()

    def _release(self, slot: _Slot, process: WorkerProcess) -> None:
        process.listen(self._clock())  # its last words may still lie in the pipe
        if process.heartbeat_fd is not None and process.heartbeat_fd in self._selector.get_map():
            self._selector.unregister(process.heartbeat_fd)
        process.release()
        slot.process = None
        # Before the next process of this slot opens its files: only then are the gauges of the dead one gone.
        lag_files.remove(self._metrics_dir, slot.number)
        mark_process_dead(slot.number, path=str(self._metrics_dir))  # type: ignore[no-untyped-call] # untyped there

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.kill()
        for slot in self._slots:
            if slot.process is not None:
                self._release(slot, slot.process)

    def _wait_s(self) -> float:
        gone_soon = any(
            slot.process and slot.process.heartbeat_fd not in self._selector.get_map() for slot in self._slots
        )
        return 0.01 if gone_soon else _TICK_S

    def _snapshot(self) -> View:
        return View(
            at=self._clock(),
            stopping=self._stopping,
            stuck_s=self._stuck_s,
            restarts=self._restarts,
            slots=tuple(
                SlotView(
                    slot=slot.number,
                    running=slot.process is not None,
                    heard_at=slot.process.heard_at if slot.process else None,
                    heartbeat=slot.process.heartbeat if slot.process else None,
                    starts_at=slot.start_at,
                    last_end=slot.last_end,
                    pid=slot.process.pid if slot.process else None,
                )
                for slot in self._slots
            ),
        )

    def _close(self) -> None:
        self.view = self._snapshot()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()
