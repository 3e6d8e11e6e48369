"""Requests for who has no backlog: always some more than are answered, and never so many that it chokes on them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contenders.contender import Contender, Place
from bench.services import Services
from bench.workloads import Workload

AHEAD = 2_000
PAUSE_S = 0.05


@contextmanager
def fed(contender: Contender, workload: Workload, services: Services, place: Place) -> Iterator[None]:
    """While the block runs, between AHEAD and twice as many requests wait."""
    ended = threading.Event()

    def feed() -> None:
        sent = 0
        while not ended.is_set():
            if sent - services.written(place.replies) < AHEAD:
                services.fill(place.requests, workload, contender.record, range(sent, sent + AHEAD))
                sent += AHEAD
            else:
                ended.wait(PAUSE_S)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        ended.set()
        feeder.join()
