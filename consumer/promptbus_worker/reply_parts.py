"""What replies work with, however they get to the broker.

Not in replies.py, which is compiled: a compiled dataclass looks the types of its fields up, and metrics must not be imported
by whoever imports replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptbus_worker.deadline import Clock
from promptbus_worker.record import Pending, Record
from promptbus_worker.reply_records import ReplyRecords
from promptbus_worker.tracing import OFF, Tracing

if TYPE_CHECKING:
    from promptbus_worker.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyParts:
    """`on_answered` hears of outcomes (of requests of one model, all the same) and when; `on_settled`, of records whose
    outcomes are on the broker; `on_stop`, why the worker cannot go on, and whether a restart may mend it. The clocks give
    seconds.
    """

    records: ReplyRecords
    metrics: Metrics
    on_answered: Callable[[Sequence[Pending], float], None]
    on_settled: Callable[[list[Record]], None]
    on_stop: Callable[[str, bool], None]
    tracing: Tracing = OFF
    clock: Clock
    wall_clock: Clock
