"""A password that is changed while a worker runs: it says so, waits quietly, and goes on when it may."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptbus_worker import kafka
from promptbus_worker.worker_process import Exit
from stack.triton import Triton
from tests.integration.inside import inside
from tests.integration.secured import PASSWORDS, Secured, rights_of_a_worker
from tests.integration.system import System, eventually, system
from tests.integration.test_logins import worker_settings

USER = "changing"
NEW_PASSWORD = "changed-password-b047"
LOGINS_PER_S = 5.0
"""Of each client: it waits for the broker's refusal, some 0.3 s. One that tries again at once fails hundreds of times."""
CLIENTS = 4
"""The consumer, the producer, with transactions the one that took its place, and who looks whether the login is taken."""
SHARE_OF_A_CORE = 0.5


@pytest.fixture
def place(secured: Secured, shared_triton: Triton, tmp_path: Path) -> Iterator[System]:
    """Where the broker asks for the password again every two seconds."""
    environment = secured.environment(USER, listener="SHORT_LOGINS", KAFKA_SECURITY_PROTOCOL="SASL_SSL")
    with system(secured.kafka, shared_triton, tmp_path, env=environment) as made:
        yield made
    secured.change_password(USER, PASSWORDS[USER])


@pytest.mark.parametrize("delivery", ["at_least_once", "transactional"])
async def test_a_password_changed_in_mid_stream_is_named_waited_for_and_loses_nothing(
    secured: Secured, place: System, delivery: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = worker_settings(place.environment(WORKER_DELIVERY=delivery))
    transactions = kafka.right_to_transactions(settings, f"{settings.instance}-0")
    secured.rules.put(USER, *rights_of_a_worker(place), transactions)

    sentence = f"refuses the login of user {USER!r}: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD"
    asked = itertools.count()

    def ask(count: int) -> None:
        place.ask([f"{next(asked)}" for _ in range(count)])

    def told() -> bool:
        ask(1)  # so that some are under way when the password is asked for again
        warnings = [vars(record) for record in caplog.records if record.levelno >= logging.WARNING]
        return any(sentence in str(warning.get("error")) for warning in warnings)

    async with inside(settings, caplog) as worker:
        await asyncio.to_thread(ask, 20)
        assert (await asyncio.to_thread(place.collect, 20)).codes == {"ok": 20}
        began, spent, failed = time.monotonic(), time.process_time(), secured.failed_logins
        await asyncio.to_thread(secured.change_password, USER, NEW_PASSWORD)
        await asyncio.to_thread(eventually, "it is told", told, 90)
        await asyncio.to_thread(ask, 20)
        await asyncio.to_thread(secured.change_password, USER, PASSWORDS[USER])
        every = next(asked)
        replies = await asyncio.to_thread(place.collect, every)
        assert replies.codes == {"ok": every}
        lasted = time.monotonic() - began
        assert 0 < secured.failed_logins - failed < CLIENTS * LOGINS_PER_S * lasted
        assert time.process_time() - spent < SHARE_OF_A_CORE * lasted
        await asyncio.to_thread(eventually, "every offset is committed", lambda: place.committed() == every)
        assert await worker.end() is Exit.DRAINED
    repeated = (await asyncio.to_thread(place.collected)).repeated
    assert delivery == "at_least_once" or repeated == []
    assert not any(password in caplog.text for password in (NEW_PASSWORD, PASSWORDS[USER]))
