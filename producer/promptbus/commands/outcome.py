"""Exit codes, and how errors are told: one table for every command."""

from __future__ import annotations

import sys
from typing import Final

from promptbus.errors import (
    DeliveryFailed,
    KafkaUnavailable,
    MessageTooLarge,
    NotAllowed,
    PlaceMissing,
    PromptBusError,
    PromptError,
    ReplyTimeout,
    SettingsRefused,
    TopicMissing,
)
from promptbus.messages import InvalidReply, InvalidRequest

OK: Final = 0
ERROR_REPLY: Final = 1
NOT_ALL: Final = 1  # of what was asked for
USAGE: Final = 2
NO_REPLY: Final = 3
INTERRUPTED: Final = 130

# the first that fits
_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (PromptError, ERROR_REPLY),
    (InvalidReply, ERROR_REPLY),
    (PlaceMissing, NOT_ALL),
    (InvalidRequest, USAGE),
    (MessageTooLarge, USAGE),
    (SettingsRefused, USAGE),
    (ReplyTimeout, NO_REPLY),
    (KafkaUnavailable, NO_REPLY),
    (TopicMissing, NO_REPLY),
    (NotAllowed, NO_REPLY),
    (DeliveryFailed, NO_REPLY),
    (PromptBusError, NO_REPLY),
)


def say(sentence: str) -> None:
    """One line on stderr, under the program's name."""
    print(f"promptbus: {sentence}", file=sys.stderr, flush=True)


def explain(error: Exception) -> int:
    """Tell the error in one sentence and return its exit code; what is nobody's mistake but ours is raised on."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            say(str(error))
            return code
    raise error
