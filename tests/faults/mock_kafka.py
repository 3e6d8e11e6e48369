"""librdkafka's in-memory Kafka, told which request to fail, how and when.

The client's own library is asked by its C interface (rdkafka_mock.h), for the Python client shows none of this. The
cluster lives in a handle of its own; workers and tests reach it by its address, over real sockets.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka  # loads the library that is meant

BROKER = 1
DISCONNECT = -195
"""As the error of a request: the broker closes the connection in place of an answer (RD_KAFKA_RESP_ERR__TRANSPORT)."""
_PRODUCER = 0


class Api(IntEnum):
    """Kafka's numbers of the requests that a worker's clients send."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22


def _library() -> ctypes.CDLL:
    assert confluent_kafka.libversion()
    maps = Path("/proc/self/maps").read_text()
    path = next(line.split(maxsplit=5)[5] for line in maps.splitlines() if "librdkafka" in line)
    library = ctypes.CDLL(path)  # the copy that is loaded already
    handle, text, number, short = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int16
    signatures: dict[str, tuple[object, list[object]]] = {
        "rd_kafka_conf_new": (handle, []),
        "rd_kafka_conf_set": (ctypes.c_int, [handle, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (handle, [ctypes.c_int, handle, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [handle]),
        "rd_kafka_mock_cluster_new": (handle, [handle, ctypes.c_int]),
        "rd_kafka_mock_cluster_destroy": (None, [handle]),
        "rd_kafka_mock_cluster_bootstraps": (text, [handle]),
        "rd_kafka_mock_topic_create": (ctypes.c_int, [handle, text, ctypes.c_int, ctypes.c_int]),
        "rd_kafka_mock_topic_set_error": (None, [handle, text, ctypes.c_int]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [handle, number]),
        "rd_kafka_mock_broker_set_down": (ctypes.c_int, [handle, number]),
        "rd_kafka_mock_broker_set_up": (ctypes.c_int, [handle, number]),
        "rd_kafka_mock_broker_error_stack_cnt": (
            ctypes.c_int,
            [handle, number, short, ctypes.POINTER(ctypes.c_size_t)],
        ),
        # The pairs of error and delay that follow are variadic.
        "rd_kafka_mock_broker_push_request_error_rtts": (
            ctypes.c_int,
            [handle, number, short, ctypes.c_size_t],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_rdkafka = _library()


class MockKafka:
    """One broker. It is gone with its block."""

    def __init__(self) -> None:
        reason = ctypes.create_string_buffer(512)
        config = _rdkafka.rd_kafka_conf_new()
        _rdkafka.rd_kafka_conf_set(config, b"log_level", b"0", reason, len(reason))
        self._handle = _rdkafka.rd_kafka_new(_PRODUCER, config, reason, len(reason))
        assert self._handle, reason.value
        self._cluster = _rdkafka.rd_kafka_mock_cluster_new(self._handle, 1)
        assert self._cluster
        _rdkafka.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap = str(_rdkafka.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _rdkafka.rd_kafka_mock_cluster_destroy(self._cluster)
        _rdkafka.rd_kafka_destroy(self._handle)

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic."""
        assert _rdkafka.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1) == 0

    def fail(self, api: Api, *errors: int, delay_ms: int = 0) -> None:
        """The next requests of this kind, whoever sends them, are answered so; 0 is no error, but may be late."""
        pairs = [ctypes.c_int(number) for error in errors for number in (error, delay_ms)]
        refused = _rdkafka.rd_kafka_mock_broker_push_request_error_rtts(
            self._cluster, BROKER, api, len(errors), *pairs
        )
        assert refused == 0

    def left(self, api: Api) -> int:
        """How many of those have not been used up."""
        count = ctypes.c_size_t()
        refused = _rdkafka.rd_kafka_mock_broker_error_stack_cnt(
            self._cluster, BROKER, api, ctypes.byref(count)
        )
        assert refused == 0
        return count.value

    def fail_topic(self, topic: str, error: int) -> None:
        """What metadata and records say of this topic, until it is 0 again."""
        _rdkafka.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), error)

    def down(self) -> None:
        """Close every connection and refuse new ones."""
        assert _rdkafka.rd_kafka_mock_broker_set_down(self._cluster, BROKER) == 0

    def up(self) -> None:
        """Take connections again."""
        assert _rdkafka.rd_kafka_mock_broker_set_up(self._cluster, BROKER) == 0
