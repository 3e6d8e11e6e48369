"""One real Kafka and one real Triton for all tests that do not break them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.secured import Secured, secured_kafka
from tests.integration.system import CLASSIC, CONSUMER, SHORT_SESSIONS, System, system

SHOWN_LINES = 40


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failed test the last lines of its workers' logs are shown (`System.start` names them)."""
    report = yield
    folder = item.funcargs.get("tmp_path")
    if report.failed and isinstance(folder, Path):
        for log in sorted(folder.glob("worker-*.log")):
            lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
            report.sections.append((f"the end of {log.name}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session")
def shared_kafka() -> Iterator[Kafka]:
    """A broker that no test stops."""
    with Kafka(properties=SHORT_SESSIONS) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker with TLS, logins and rules that no test stops."""
    with secured_kafka(tmp_path_factory.mktemp("secured")) as made:
        yield made


@pytest.fixture(scope="session")
def shared_triton() -> Iterator[Triton]:
    """The canned model with its test prompts; no test stops it."""
    with Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton:
        yield triton


@pytest.fixture
def whole(shared_kafka: Kafka, shared_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """The whole system on the shared servers."""
    with system(shared_kafka, shared_triton, tmp_path) as made:
        yield made


@pytest.fixture(params=[CLASSIC, CONSUMER])
def either_protocol(whole: System, request: pytest.FixtureRequest) -> System:
    """The whole system, once with each of Kafka's group protocols."""
    whole.env["KAFKA_GROUP_PROTOCOL"] = request.param
    return whole
