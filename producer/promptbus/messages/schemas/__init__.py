"""JSON Schema (draft 2020-12) of what stands on the wire, generated from the types in promptbus.messages.

The files beside this one are for programs in other languages; `python -m promptbus.messages.schemas` writes them
and `--check` compares. JSON Schema cannot say everything: it counts characters where `request_id` is limited in
bytes, and takes 1.0 for an integer.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Annotated, Final, Literal, get_args, get_origin

from ..codes import ErrorCode
from ..json_object import Json, JsonObject
from ..limits import Limits
from ..reply import Reply, ReplyError, Timings, Usage
from ..request import Request

FOLDER: Final = Path(__file__).parent

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: Mapping[object, str] = MappingProxyType(
    {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
)

_ON_EVERY_REPLY = ("request_id", "reply_id", "status", "metadata", "timings", "attempts")
_ON_ANSWERS = ("response", "finish_reason", "usage", "model", "model_version")


def schemas() -> dict[str, JsonObject]:
    """Each schema by the name of its file."""
    return {"request.json": _request(), "reply.json": _reply()}


def text_of(schema: JsonObject) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def out_of_date() -> list[str]:
    """Names of the files in FOLDER that are missing, differ from the types, or belong to none."""
    wanted = {name: text_of(schema) for name, schema in schemas().items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def _request() -> JsonObject:
    properties = {name: _schema(hint) for name, hint in Request.__annotations__.items()}
    for name in Request._field_defaults:
        _allow_null(properties[name])
    return {
        "$schema": _DIALECT,
        "title": "promptbus request",
        "description": "The value of a request record. An optional field that is null is the same as absent.",
        "type": "object",
        "properties": {**properties},
        "required": [name for name in properties if name not in Request._field_defaults],
        "additionalProperties": False,
    }


def _reply() -> JsonObject:
    hints = {field.name: field.type for field in fields(Reply)}
    error = _structure(ReplyError, code={"examples": [code.value for code in ErrorCode]})
    answers: JsonObject = {name: _schema(hints[name]) for name in (*_ON_EVERY_REPLY, *_ON_ANSWERS)}
    answers.update(status={"const": "ok"}, response={"type": "string"})
    errors: JsonObject = {name: _schema(hints[name]) for name in (*_ON_EVERY_REPLY, "model")}
    errors.update(status={"const": "error"}, error=error)
    return {
        "$schema": _DIALECT,
        "title": "promptbus reply",
        "description": "The value of a reply record. Readers ignore fields and accept error codes that are new to them.",
        "oneOf": [
            {"title": "answer", "type": "object", "properties": answers, "required": list(answers)},
            {"title": "error", "type": "object", "properties": errors, "required": list(errors)},
        ],
    }


def _schema(hint: object) -> JsonObject:
    """Of one annotation: a scalar, an object, one of our structures, any of these or None, with Limits or without."""
    if get_origin(hint) is Annotated:
        bare, limits = get_args(hint)
        return {**_schema(bare), **_keywords(limits)}
    if get_origin(hint) is Literal:
        return {"type": "string", "enum": list(get_args(hint))}
    if hint == JsonObject:
        return {"type": "object"}
    if hint is Usage or hint is Timings:
        return _structure(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    options = [option for option in get_args(hint) if option is not NoneType]
    if len(options) == 1:
        schema = _schema(options[0])
        _allow_null(schema)
        return schema
    raise TypeError(f"no JSON Schema is known for {hint}")


def _structure(of: type[Usage] | type[Timings] | type[ReplyError], **more: JsonObject) -> JsonObject:
    properties: JsonObject = {
        name: {**_schema(hint), **more.get(name, {})} for name, hint in of.__annotations__.items()
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _keywords(limits: Limits) -> JsonObject:
    found: dict[str, Json] = {
        "description": limits.description,
        "minimum": limits.minimum,
        "maximum": limits.maximum,
        "minLength": limits.min_length,
        "maxLength": limits.max_length,
    }
    return {name: value for name, value in found.items() if value is not None}


def _allow_null(schema: JsonObject) -> None:
    if isinstance(schema["type"], str):
        schema["type"] = [schema["type"], "null"]
