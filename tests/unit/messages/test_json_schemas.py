"""The JSON Schema files are current, and say what the code does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from promptbus.messages import (
    ErrorCode,
    InvalidRequest,
    Timings,
    Usage,
    decode_request,
    encode_answer,
    encode_error,
)
from promptbus.messages.schemas import FOLDER

SOURCES = Path(__file__).resolve().parents[3] / "producer"


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_files_are_what_the_types_say() -> None:
    # Compiled types do not know what was written in their annotations any more, so it is the sources that are asked.
    command = [sys.executable, "-m", "promptbus.messages.schemas", "--check"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


FULL = {
    "request_id": "r-1",
    "prompt": "What is Kafka?",
    "max_tokens": 150,
    "temperature": 0.7,
    "model": "gpt4_nano",
    "parameters": {"top_p": 0.9},
    "metadata": {"any": "object, echoed back"},
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"request_id": None, "max_tokens": None, "temperature": None, "model": None},
        {"parameters": None, "metadata": None},
        {"prompt": None},
        {"prompt": ""},
        {"request_id": ""},
        {"request_id": "x" * 257},
        {"max_tokens": 0},
        {"max_tokens": 2**31},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": 2},
        {"temperature": 2.1},
        {"temperature": "1"},
        {"model": ""},
        {"parameters": []},
        {"metadata": "x"},
        {"unknown": 1},
    ],
)
def test_the_request_schema_agrees_with_the_decoder(change: dict[str, object]) -> None:
    body = {**FULL, **change}
    try:
        decode_request(json.dumps(body).encode())
        accepted = True
    except InvalidRequest:
        accepted = False
    assert validator("request.json").is_valid(body) == accepted


def test_replies_satisfy_the_reply_schema() -> None:
    check = validator("reply.json")
    answer = json.loads(
        encode_answer(
            request_id="r",
            reply_id="i",
            response="yes",
            finish_reason=None,
            usage=Usage(None, None, 3),
            model="m",
            model_version="1",
            metadata={},
            timings=Timings(-1.0, 2.0, 3.0),
            attempts=1,
        )
    )
    check.validate(answer)
    check.validate({**answer, "new": "field"})
    assert not check.is_valid({**answer, "response": None})
    assert not check.is_valid({**answer, "status": "error"})
    for code in ErrorCode:
        error = json.loads(
            encode_error(
                request_id="r",
                reply_id="i",
                code=code,
                message="m",
                metadata={},
                timings=Timings(0.0, 0.0, 0.0),
                attempts=0,
            )
        )
        check.validate(error)
        assert not check.is_valid({**error, "status": "ok"})
