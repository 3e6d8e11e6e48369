"""The clients' contract against librdkafka's mock cluster."""

from __future__ import annotations

import pytest

from promptbus.settings import KafkaSettings
from tests.unit.client.contract import ClientContract
from tests.unit.client.place import MockCluster


@pytest.fixture(scope="module")
def mock_cluster() -> MockCluster:
    return MockCluster()


class TestClientsOnMockCluster(ClientContract):
    @pytest.fixture
    def place(self, mock_cluster: MockCluster) -> KafkaSettings:
        return mock_cluster.topics()
