"""The table of Triton's failures is total and holds to the rules of flow and failure."""

import pytest

from promptbus.messages import ErrorCode
from promptbus_worker.outcomes import (
    DETAIL_CHARS,
    VERDICTS,
    Action,
    CallError,
    CallFailure,
    ModelUnusable,
    failure_of_status,
    sentence,
)


def test_every_failure_has_its_verdict() -> None:
    assert set(VERDICTS) == set(CallFailure)


@pytest.mark.parametrize("failure", CallFailure)
def test_what_did_not_run_is_never_charged(failure: CallFailure) -> None:
    ran = failure in {
        CallFailure.TIMEOUT,
        CallFailure.CONNECTION,
        CallFailure.MODEL_ERROR,
        CallFailure.BAD_OUTPUT,
    }
    assert VERDICTS[failure].counts_attempt is ran


@pytest.mark.parametrize("failure", CallFailure)
def test_only_failures_of_the_content_are_narrowed(failure: CallFailure) -> None:
    verdict = VERDICTS[failure]
    narrowed = failure in {CallFailure.MODEL_ERROR, CallFailure.BAD_OUTPUT, CallFailure.BAD_REQUEST}
    assert (verdict.action in {Action.BISECT, Action.SPLIT}) is narrowed
    assert (verdict.retry_reason == "bisect") is narrowed


@pytest.mark.parametrize("failure", CallFailure)
def test_a_breaker_that_trips_burns_no_prompt(failure: CallFailure) -> None:
    verdict = VERDICTS[failure]
    if verdict.trips_breaker:
        assert verdict.action is Action.PUT_BACK
        assert not verdict.counts_attempt
        assert verdict.final_code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize("failure", CallFailure)
def test_a_request_that_never_ran_ends_as_unavailable_not_in_the_dead_letters(failure: CallFailure) -> None:
    verdict = VERDICTS[failure]
    if verdict.action in {Action.PUT_BACK, Action.REREAD} and not verdict.counts_attempt:
        assert verdict.final_code is ErrorCode.UNAVAILABLE
    else:
        assert verdict.final_code.dead_lettered


def test_every_status_is_some_failure() -> None:
    for status in [*range(100, 600), 0, 999]:
        assert isinstance(failure_of_status(status, ""), CallFailure)


@pytest.mark.parametrize(
    "text",
    [
        "Stub process 'gpt4_nano_0_1' is not healthy.",
        "Stub process is not healthy.",
        "Stub process is unhealthy and it will be restarted.",
        "Failed to obtain the health mutex.",
        "Failed to process the request(s) for model instance 'gpt4_nano_0', message: Stub process is not healthy.",
        "Failed to process the request(s) for model instance 'm_0_0', message: Stub process 'm_0_0' is not healthy.",
        "[request id: <id_unknown>] Stub process 'm_0_0' is not healthy.",
        "in ensemble 'chat', Stub process 'm_0_0' is not healthy.",
        "[500] in ensemble 'chat', Stub process 'm_0_0' is not healthy.",
        "in ensemble 'chat', Failed to process the request(s) for model instance 'm_0', message: Failed to obtain the "
        "health mutex.",
    ],
)
def test_a_dead_model_process_is_told_from_a_model_that_raised(text: str) -> None:
    assert failure_of_status(500, text) is CallFailure.MODEL_UNHEALTHY
    assert failure_of_status(400, text) is CallFailure.MODEL_UNHEALTHY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Failed to process the request(s) for model 'm_0_0', message: ValueError: Stub process 'm' is not healthy.",
        "Failed to process the request(s) for model 'm_0_0', message: RuntimeError: bad prompt\n\nAt:\n  model.py(3)",
        "Stub process 'm' is not healthy.\n\nAt:\n  model.py(3): execute",
        "cannot answer: Stub process 'm' is not healthy.",
        "Stub process 'm' is not healthy. And neither am I",
    ],
)
def test_a_prompt_quoted_by_the_model_cannot_pass_for_a_dead_process(text: str) -> None:
    assert failure_of_status(500, text) is CallFailure.MODEL_ERROR


def test_an_overloaded_server_is_believed_whatever_it_writes() -> None:
    assert failure_of_status(503, "Stub process 'm_0_0' is not healthy.") is CallFailure.OVERLOADED


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_sentence_of_ours(code: ErrorCode) -> None:
    assert sentence(code).endswith(".")
    assert "Triton" not in sentence(code)


def test_a_detail_is_cut_and_the_error_names_its_failure() -> None:
    error = CallError(CallFailure.MODEL_ERROR, "x" * 10_000, status=500)
    assert len(error.detail) == DETAIL_CHARS
    assert str(error).startswith("model_error (HTTP 500): x")
    assert str(CallError(CallFailure.TIMEOUT, "late")) == "timeout: late"


def test_an_unusable_model_is_waited_for_like_one_that_is_not_there() -> None:
    error = ModelUnusable("Model m has no input `prompt`.")
    assert error.sentence == "Model m has no input `prompt`."
    assert VERDICTS[error.failure].action is Action.REREAD
