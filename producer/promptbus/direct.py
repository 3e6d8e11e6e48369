"""One prompt straight to Triton over HTTP, without Kafka: to see whether the model answers at all.

Triton's HTTP v2 JSON form (KServe's "predict protocol, version 2"), with the standard library only.
"""

from __future__ import annotations

import time
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request as HttpRequest

import orjson

from promptbus.masking import masked, secrets_of
from promptbus.messages import Json, JsonObject, Request
from promptbus.plain_http import UNREACHABLE, opener, why_unreachable
from promptbus.settings import TritonSettings

DETAIL_CHARS = 500


class TritonUnreachable(Exception):
    """Triton gave no answer at all."""


class TritonRefused(Exception):
    """Triton answered with an error, or with something that is no answer."""


class DirectAnswer(NamedTuple):
    """What the model said. Counts and reason are None where the model has no such output."""

    response: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    model: str
    model_version: str
    inference_ms: float


def ask_triton(settings: TritonSettings, request: Request, timeout_s: float) -> DirectAnswer:
    """One inference call of a batch of one. Raises TritonUnreachable, TritonRefused."""
    model = request.model or settings.models[0]
    path = f"/v2/models/{quote(model, safe='')}"
    if settings.triton_model_version is not None:
        path += f"/versions/{quote(settings.triton_model_version, safe='')}"
    started = time.monotonic()
    body = _call(settings, f"{path}/infer", timeout_s, orjson.dumps({"inputs": _inputs(request)}))
    inference_ms = (time.monotonic() - started) * 1000
    try:
        answer = orjson.loads(body)
        outputs = {output["name"]: output["data"][0] for output in answer["outputs"]}
        response = outputs["response"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as problem:
        raise TritonRefused(f"Triton's answer has no usable output `response` ({problem!r})") from None
    return DirectAnswer(
        response=str(response),
        finish_reason=outputs.get("finish_reason"),
        prompt_tokens=outputs.get("prompt_tokens"),
        completion_tokens=outputs.get("completion_tokens"),
        total_tokens=outputs.get("tokens_used"),
        model=str(answer.get("model_name", model)),
        model_version=str(answer.get("model_version", "")),
        inference_ms=round(inference_ms, 3),
    )


def why_not_ready(settings: TritonSettings, timeout_s: float = 1.0) -> str | None:
    """A sentence if Triton is not ready as seen from here, else None."""
    try:
        _call(settings, "/v2/health/ready", timeout_s)
    except TritonUnreachable as problem:
        return str(problem)
    except TritonRefused:
        return f"Triton at {settings.base_url} (TRITON_URL) says that it is not ready"
    return None


def _inputs(request: Request) -> list[JsonObject]:
    def tensor(name: str, datatype: str, value: Json) -> JsonObject:
        return {"name": name, "shape": [1, 1], "datatype": datatype, "data": [value]}

    tensors = [tensor("prompt", "BYTES", request.prompt)]
    if request.max_tokens is not None:
        tensors.append(tensor("max_tokens", "INT32", request.max_tokens))
    if request.temperature is not None:
        tensors.append(tensor("temperature", "FP32", request.temperature))
    return tensors


def _call(settings: TritonSettings, path: str, timeout_s: float, body: bytes | None = None) -> bytes:
    url = settings.base_url + path
    if urlsplit(url).scheme not in ("http", "https"):
        raise TritonUnreachable(
            f"TRITON_URL is {settings.triton_url!r}: it must be host:port, http://… or https://…"
        )
    request = HttpRequest(url, body, {"content-type": "application/json", **settings.http_headers})  # noqa: S310 - scheme checked above
    try:
        with opener(url).open(request, timeout=timeout_s) as answer:
            content: bytes = answer.read()
            return content
    except HTTPError as refusal:
        with refusal:
            said = masked(_detail(refusal.read()), secrets_of(settings))
        hint = "; check TRITON_API_KEY and TRITON_HEADERS__<NAME>" if refusal.code in (401, 403, 407) else ""
        raise TritonRefused(f"Triton answered {refusal.code}: {said}{hint}") from None
    except TimeoutError:
        raise TritonUnreachable(
            f"Triton at {settings.base_url} (TRITON_URL) did not answer within {timeout_s:g} s"
        ) from None
    except UNREACHABLE as problem:
        misunderstood = _tls_problem(problem, url)
        if misunderstood is not None:
            where = f"Triton at {settings.base_url} (TRITON_URL)"
            raise TritonUnreachable(f"{where} {misunderstood}") from None
        raise TritonUnreachable(
            f"Triton at {settings.base_url} (TRITON_URL) cannot be reached: "
            f"{why_unreachable(problem, timeout_s)}; is it running?"
        ) from None


def _tls_problem(error: Exception, url: str) -> str | None:
    # only now: an answer comes without Python's ssl
    from promptbus.tls import http_problem, https_problem

    parts = urlsplit(url)
    host = parts.hostname or ""
    return https_problem(error, host) if parts.scheme == "https" else http_problem(host, parts.port or 80)


def _detail(body: bytes) -> str:
    try:
        text = str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = body.decode(errors="replace")
    text = " ".join(text.split())
    return text if len(text) <= DETAIL_CHARS else text[: DETAIL_CHARS - 1] + "…"
