import os
import re
import socket
import sys

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


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_ports(1)[0]) == ""


def test_a_kafka_that_is_not_there_has_no_brokers() -> None:
    assert kafka_brokers(free_ports(1)[0]) == set()
