"""What the integration tests see of workers must be theirs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.system import Workers


def test_a_log_that_an_earlier_worker_left_is_not_read(tmp_path: Path) -> None:
    def says(port: int) -> bytes:
        message = f"metrics and health on http://127.0.0.1:{port} (/metrics)"
        return json.dumps({"message": message}).encode() + b"\n"

    log = tmp_path / "worker-0.log"
    log.write_bytes(says(1111))
    workers = Workers({"METRICS_PORT": "none"}, log)
    assert workers.process.wait(60) != 0, "it does not begin with such a setting"
    with log.open("ab") as output:
        output.write(says(2222))
    assert workers.port == 2222
    assert len(workers.lines()) == 1
