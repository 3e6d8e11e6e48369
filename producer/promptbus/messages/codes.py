"""The closed set of error codes a reply can carry, and what each of them means for who handles it.

| code               | retryable | dead-lettered | operator's side |
|--------------------|-----------|---------------|-----------------|
| invalid_request    | no        | no (*)        | no              |
| too_large          | no        | no            | no              |
| model_not_found    | no        | no            | no              |
| expired            | yes       | no            | no              |
| unavailable        | yes       | no            | no              |
| inference_timeout  | yes       | yes           | yes             |
| model_error        | no        | yes           | yes             |
| bad_model_output   | no        | yes           | yes             |
| reply_too_large    | no        | yes           | no              |
| internal           | yes       | yes           | yes             |

(*) A record that is no request at all (`NotARequest`) carries this code and is dead-lettered nevertheless: there
the exception decides, not the code.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a request got an error instead of an answer. The value is what stands on the wire."""

    INVALID_REQUEST = "invalid_request"
    TOO_LARGE = "too_large"
    MODEL_NOT_FOUND = "model_not_found"
    EXPIRED = "expired"
    UNAVAILABLE = "unavailable"
    INFERENCE_TIMEOUT = "inference_timeout"
    MODEL_ERROR = "model_error"
    BAD_MODEL_OUTPUT = "bad_model_output"
    REPLY_TOO_LARGE = "reply_too_large"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether sending the same request again can succeed."""
        return self in _RETRYABLE

    @property
    def dead_lettered(self) -> bool:
        """Whether the record also goes to the dead-letter topic."""
        return self in _DEAD_LETTERED

    @property
    def operator_side(self) -> bool:
        """Whether the cause lies with whoever runs the service; only these count against the dead-letter budget."""
        return self in _OPERATOR_SIDE


_RETRYABLE = frozenset(
    {ErrorCode.EXPIRED, ErrorCode.UNAVAILABLE, ErrorCode.INFERENCE_TIMEOUT, ErrorCode.INTERNAL}
)
_OPERATOR_SIDE = frozenset(
    {
        ErrorCode.INFERENCE_TIMEOUT,
        ErrorCode.MODEL_ERROR,
        ErrorCode.BAD_MODEL_OUTPUT,
        ErrorCode.INTERNAL,
    }
)
_DEAD_LETTERED = _OPERATOR_SIDE | {ErrorCode.REPLY_TOO_LARGE}
