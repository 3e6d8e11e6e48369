"""The table of codes, as the contract states it."""

import pytest

from promptbus.messages import ErrorCode

# code, retryable, dead-lettered, counts against the operator's budget
TABLE = [
    ("invalid_request", False, False, False),
    ("too_large", False, False, False),
    ("model_not_found", False, False, False),
    ("expired", True, False, False),
    ("unavailable", True, False, False),
    ("inference_timeout", True, True, True),
    ("model_error", False, True, True),
    ("bad_model_output", False, True, True),
    ("reply_too_large", False, True, False),
    ("internal", True, True, True),
]


def test_the_table_is_the_whole_set() -> None:
    assert [row[0] for row in TABLE] == [code.value for code in ErrorCode]


@pytest.mark.parametrize(("value", "retryable", "dead_lettered", "operator_side"), TABLE)
def test_what_a_code_means(value: str, retryable: bool, dead_lettered: bool, operator_side: bool) -> None:
    code = ErrorCode(value)
    assert (code.retryable, code.dead_lettered, code.operator_side) == (
        retryable,
        dead_lettered,
        operator_side,
    )
