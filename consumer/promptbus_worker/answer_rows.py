"""An answer's outputs as one row per request, whichever way they came. Pure."""

from collections.abc import Mapping, Sequence

from promptbus_worker.model import BadRow, Row
from promptbus_worker.model_metadata import (
    COMPLETION_TOKENS,
    FINISH_REASON,
    PROMPT_TOKENS,
    RESPONSE,
    TOTAL_TOKENS,
)

OUTPUTS = (RESPONSE, TOTAL_TOKENS, PROMPT_TOKENS, COMPLETION_TOKENS, FINISH_REASON)
"""The outputs that are read, where the model has them."""


class UnreadableOutput(Exception):
    """The answer as a whole cannot be given to the requests of the batch: an output is missing or misshapen."""


def rows_of(
    columns: Mapping[str, Sequence[object] | None], size: int, envelope: object
) -> list[Row | BadRow]:
    """One row per request from the outputs' values by name, `size` each. `envelope` is for the error's text.

    Raises UnreadableOutput if an output that every answer needs is missing or is no text.
    """
    texts, totals = columns.get(RESPONSE), columns.get(TOTAL_TOKENS)
    if texts is None or totals is None:
        missing = RESPONSE if texts is None else TOTAL_TOKENS
        raise UnreadableOutput(f"output {missing} is missing; the answer says {str(envelope)[:300]}")
    return [
        text if isinstance(text, BadRow) else Row(text, total, prompt, completion, reason)
        for text, total, prompt, completion, reason in zip(
            [_text(text) for text in texts],
            _counts(totals, size),
            _counts(columns.get(PROMPT_TOKENS), size),
            _counts(columns.get(COMPLETION_TOKENS), size),
            _reasons(columns.get(FINISH_REASON), size),
            strict=True,
        )
    ]


def _text(value: object) -> str | BadRow:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            return BadRow(f"output {RESPONSE} is not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(value, str):  # a server that answers in JSON although binary was asked for
        return value
    raise UnreadableOutput(f"output {RESPONSE} is no text")


def _counts(column: Sequence[object] | None, size: int) -> Sequence[int | None]:
    if column is None:
        return [None] * size
    return [value if isinstance(value, int) and value >= 0 else None for value in column]


def _reasons(column: Sequence[object] | None, size: int) -> Sequence[str | None]:
    if column is None:
        return [None] * size
    # A reason that cannot be read costs the reason, not the answer.
    return [
        (value.decode(errors="replace") if isinstance(value, bytes) else str(value)) if value else None
        for value in column
    ]
