"""The doctor at transactions: may a worker use its transactional ids?

Only a producer can ask that, and one that gets its answer fences the worker that has the id now. So it asks for more time
than brokers give any transaction: they look at the right first, then refuse the time, and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import KafkaException, Producer

from promptbus_worker.doctor_admin import Admin, text_of
from promptbus_worker.kafka import right_to_transactions
from promptbus_worker.preflight import Finding, judge_rights, ok, warn
from promptbus_worker.settings import Settings

TOO_LONG_MS = 2_000_000_000
"""23 days; `transaction.max.timeout.ms` is 15 minutes where nobody has changed it."""
_DENIED = "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
_ALLOWED = "INVALID_TRANSACTION_TIMEOUT"


def transactional_ids(admin: Admin, settings: Settings) -> Iterator[Finding]:
    """One finding about all of them."""
    slots = range(settings.worker_processes)
    rights = [right_to_transactions(settings, f"{settings.instance}-{slot}") for slot in slots]
    with ThreadPoolExecutor(min(8, len(rights))) as pool:
        answers = list(pool.map(lambda right: _answer(admin, settings, right.name), rights))
    for right, (name, text) in zip(rights, answers, strict=True):
        if name == _DENIED:
            yield from judge_rights(right, frozenset(), settings)  # one rule is enough for all
            return
        if name != _ALLOWED:
            yield warn(f"transactional id {right.name}: {text}", "the right to use it was not checked")
            return
    names = rights[0].name if len(rights) == 1 else f"{rights[0].name} and {len(rights) - 1} more"
    yield ok(f"this user may use the transactional id {names}")


def _answer(admin: Admin, settings: Settings, transactional_id: str) -> tuple[str, str]:
    """The name and the text of the error that a worker with this id would meet, or of the one that is wanted."""
    config = {
        **settings.client_config(),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": TOO_LONG_MS,
    }
    try:
        producer = Producer(config, logger=admin.logger)
        while True:
            try:
                producer.init_transactions(admin.call_s())
            except KafkaException as error:
                if not error.args[0].retriable() or admin.out_of_time:
                    raise
            else:
                return _ALLOWED, ""  # brokers that give so much time to anybody
    except KafkaException as error:
        return error.args[0].name(), text_of(error)
