"""Can these addresses be reached at all? Asked of the system itself, whose answers are clearer than a client's."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Thread

from promptbus.listener import Address
from promptbus_worker.deadline import Deadline


def unreachable(addresses: Sequence[Address], timeout_s: float) -> dict[Address, str]:
    """Those that take no connection within `timeout_s`, each with the reason. All are tried at once."""
    answers: SimpleQueue[tuple[Address, str | None]] = SimpleQueue()
    for address in addresses:
        # Daemons: looking up a name has no time-out of its own, and must not keep the process from ending.
        Thread(
            target=lambda address=address: answers.put((address, _why_not(address, timeout_s))), daemon=True
        ).start()
    away = {address: f"the name {address.host!r} was not resolved in time" for address in addresses}
    deadline = Deadline(timeout_s + 1)
    for _ in addresses:
        try:
            address, why = answers.get(timeout=max(0.01, deadline.remaining_s()))
        except Empty:
            break
        if why is None:
            del away[address]
        else:
            away[address] = why
    return away


def _why_not(address: Address, timeout_s: float) -> str | None:
    try:
        with socket.create_connection(address, timeout=timeout_s):
            return None
    except socket.gaierror:
        return f"the name {address.host!r} is not known"
    except ConnectionRefusedError:
        return "connection refused, nothing listens there"
    except TimeoutError:
        return f"no connection within {timeout_s:g} s"
    except (
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # ValueError: a name that cannot be one, a port too high
        return str(error)
