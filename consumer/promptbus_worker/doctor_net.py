"""Can these addresses be reached at all? Asked of the system itself, whose answers are clearer than a client's."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from promptbus_worker.deadline import Deadline

_DEFAULT_PORT = 9092


class Address(NamedTuple):
    """Where a broker listens; an IPv6 host has no brackets here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses_of(bootstrap: str) -> list[Address]:
    """`KAFKA_BOOTSTRAP` in parts, `PROTOCOL://` in front of one ignored as librdkafka does."""
    addresses: list[Address] = []
    for part in bootstrap.split(","):
        name = part.strip().rpartition("://")[2]
        if not name:
            continue
        host, colon, port = name.rpartition(":")
        if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
            host, port = name, str(_DEFAULT_PORT)
        address = Address(host.strip("[]"), int(port))
        if address not in addresses:
            addresses.append(address)
    return addresses


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
