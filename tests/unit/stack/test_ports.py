import os
import re
import socket
import sys
import threading

import pytest

from stack.errors import PortTaken
from stack.loopback import kafka_brokers
from stack.ports import HOST, free_ports, holder, is_free, require_free


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_free(port) for port in ports)


def test_a_taken_port_is_told_with_its_holder() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(PortTaken, match=f"Port {port} on {HOST}, wanted for a test, is taken") as caught:
            require_free(port, "a test")
        if sys.platform == "linux":
            assert re.search(rf"\(pid {os.getpid()}\)", holder(port))
            assert f"(pid {os.getpid()})" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="it cannot be known there")
def test_a_holder_that_opens_and_closes_files_meanwhile_is_found() -> None:
    end = threading.Event()

    def busy() -> None:
        while not end.is_set():
            for fd in [os.dup(0) for _ in range(50)]:
                os.close(fd)

    thread = threading.Thread(target=busy)
    lower = [os.dup(0) for _ in range(50)]  # they are looked at before the listener's
    with socket.socket() as listener:
        for fd in lower:
            os.close(fd)
        listener.bind((HOST, 0))
        listener.listen()
        thread.start()
        try:
            found = {holder(listener.getsockname()[1]) for _ in range(30)}
        finally:
            end.set()
            thread.join()
    assert len(found) == 1
    assert f"(pid {os.getpid()})" in found.pop()


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_ports(1)[0]) == ""


def test_a_kafka_that_is_not_there_has_no_brokers() -> None:
    assert kafka_brokers(free_ports(1)[0]) == set()
