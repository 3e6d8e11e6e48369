"""What a worker writes about its partitions' lag is what the supervisor reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from promptbus_worker import lag_files
from promptbus_worker.lag import PartitionLag

NOW = 100.0
MINE = {0: os.getpid()}


def _lag(partition: int, *, since: float = 1.0, records: int = 3) -> PartitionLag:
    return PartitionLag("requests", partition, since, records, 2.5, 1.5, 0.5)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    lags = [_lag(0), _lag(7, records=0)]
    lag_files.write(tmp_path, 0, lags, NOW)
    assert lag_files.read(tmp_path, MINE, NOW + 1) == lags


def test_an_old_file_and_a_dead_process_s_file_count_for_nothing(tmp_path: Path) -> None:
    lag_files.write(tmp_path, 0, [_lag(0)], NOW)
    assert lag_files.read(tmp_path, MINE, NOW + lag_files.STALE_S + 1) == []
    assert lag_files.read(tmp_path, {0: os.getpid() + 1}, NOW) == []
    lag_files.remove(tmp_path, 0)
    assert lag_files.read(tmp_path, MINE, NOW) == []


def test_of_a_partition_that_moved_the_later_owner_is_believed(tmp_path: Path) -> None:
    lag_files.write(tmp_path, 0, [_lag(0, since=5.0, records=1)], NOW)
    lag_files.write(tmp_path, 1, [_lag(0, since=9.0, records=2)], NOW)
    assert lag_files.read(tmp_path, {0: os.getpid(), 1: os.getpid()}, NOW) == [_lag(0, since=9.0, records=2)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    lag_files.write(tmp_path, 0, [_lag(0)], NOW)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert lag_files.read(tmp_path, MINE, NOW) == []
