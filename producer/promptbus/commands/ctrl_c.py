"""Ctrl-C while a command publishes: between two records, or while it waits for the next one.

Python raises KeyboardInterrupt wherever it is, also in a delivery callback. There Kafka's client loses it (a SystemError
comes out of `poll`), and nobody knows what has become of the record.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class CtrlC:
    """A context manager, for the main thread. A second Ctrl-C does not wait for anything."""

    def __init__(self) -> None:
        self._pressed = False
        self._waiting = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def pressed(self) -> bool:
        """To be asked where it is safe to stop."""
        return self._pressed

    def while_waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items. Raises KeyboardInterrupt while it waits for the next one."""
        iterator = iter(items)
        while True:
            self._waiting = True
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self._waiting or self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
