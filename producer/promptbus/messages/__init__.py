"""The wire contract: requests, replies, dead letters and their headers. Pure: bytes in, values out, no client.

codes.py         the error codes and what each means
json_object.py   bytes to a JSON object, strictly, and back, exactly
request.py       Request, and what is refused
headers.py       record headers; the reply id
reply.py         answers and errors, for the worker that writes them and the client that reads them
dead_letter.py   headers, cutting to size, how large a record is
schemas/         JSON Schema files generated from the types
"""

from .codes import ErrorCode
from .dead_letter import dead_letter_headers, fit_dead_letter, message_bytes
from .headers import Headers, RequestHeaders, read_request_headers, reply_headers, reply_id
from .json_object import Json, JsonObject
from .reply import (
    InvalidReply,
    Reply,
    ReplyError,
    Timings,
    Usage,
    decode_reply,
    encode_answer,
    encode_error,
)
from .request import InvalidRequest, NotARequest, Request, decode_request, encode_request, quoted

__all__ = [
    "ErrorCode",
    "Headers",
    "InvalidReply",
    "InvalidRequest",
    "Json",
    "JsonObject",
    "NotARequest",
    "Reply",
    "ReplyError",
    "Request",
    "RequestHeaders",
    "Timings",
    "Usage",
    "dead_letter_headers",
    "decode_reply",
    "decode_request",
    "encode_answer",
    "encode_error",
    "encode_request",
    "fit_dead_letter",
    "message_bytes",
    "quoted",
    "read_request_headers",
    "reply_headers",
    "reply_id",
]
