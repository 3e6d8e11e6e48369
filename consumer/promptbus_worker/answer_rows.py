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
    absent = (None,) * size
    rows: list[Row | BadRow] = []
    for text, total, prompt, completion, reason in zip(
        texts,
        totals,
        columns.get(PROMPT_TOKENS) or absent,
        columns.get(COMPLETION_TOKENS) or absent,
        columns.get(FINISH_REASON) or absent,
        strict=True,
    ):
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                rows.append(BadRow(f"output {RESPONSE} is not UTF-8: {error.reason} at byte {error.start}"))
                continue
        elif not isinstance(text, str):  # str: a server that answers in JSON although binary was asked for
            raise UnreadableOutput(f"output {RESPONSE} is no text")
        # Row(...) is a function in Python and would cost more than all of its values.
        row = tuple.__new__(
            Row,
            (
                text,
                total if isinstance(total, int) and total >= 0 else None,
                prompt if isinstance(prompt, int) and prompt >= 0 else None,
                completion if isinstance(completion, int) and completion >= 0 else None,
                _reason(reason) if reason else None,
            ),
        )
        rows.append(row)
    return rows


def _reason(value: object) -> str:
    # A reason that cannot be read costs the reason, not the answer.
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
