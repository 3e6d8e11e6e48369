"""How a broker tells clients where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.broker import Broker
from stack.kafka import Kafka


def test_a_broker_behind_a_proxy_advertises_it_to_those_who_came_through_it() -> None:
    kafka = Kafka(brokers=2, stand_ins=[7001, 7002])
    broker = Broker(2, Path("node-2"), 5000, 5001, [])
    broker.proxied_port = 5002
    kafka.brokers.append(broker)
    properties = kafka._server_properties(broker)
    assert "PROXIED://127.0.0.1:5002" in properties["listeners"].split(",")
    advertised = properties["advertised.listeners"].split(",")
    assert advertised == ["PLAINTEXT://127.0.0.1:5000", "PROXIED://127.0.0.1:7002"]
    assert properties["inter.broker.listener.name"] == "PLAINTEXT"


def test_a_broker_without_a_proxy_has_no_second_listener() -> None:
    kafka = Kafka()
    broker = Broker(1, Path("node-1"), 5000, 5001, [])
    kafka.brokers.append(broker)
    properties = kafka._server_properties(broker)
    assert "PROXIED://" not in properties["listeners"]
    assert "advertised.listeners" not in properties


def test_every_broker_needs_its_proxy() -> None:
    with pytest.raises(ValueError, match="every broker needs a proxy"):
        Kafka(brokers=3, stand_ins=[7001])
