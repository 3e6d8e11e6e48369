"""Ctrl-C is held back between two records, and only there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from promptbus.commands.ctrl_c import CtrlC


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_is_noted_and_raised_only_by_the_second_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    with CtrlC() as ctrl_c:
        assert not ctrl_c.pressed()
        press()
        assert ctrl_c.pressed()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_is_raised_while_the_next_item_is_waited_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        press()
        yield 2

    with CtrlC() as ctrl_c:
        waiting = ctrl_c.while_waiting(items())
        assert next(waiting) == 1
        with pytest.raises(KeyboardInterrupt):
            next(waiting)
        assert not ctrl_c.pressed()


def test_all_items_come() -> None:
    with CtrlC() as ctrl_c:
        assert list(ctrl_c.while_waiting(range(3))) == [0, 1, 2]
