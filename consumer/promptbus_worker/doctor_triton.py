"""The doctor at Triton: is it there, is the model ready, do its tensors fit, and does one real prompt come back."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator

import aiohttp

from promptbus.listener import Address
from promptbus.tls import http_problem, https_problem
from promptbus_worker.deadline import Deadline
from promptbus_worker.doctor_net import unreachable
from promptbus_worker.model import BadRow, ModelSpec, TensorValue
from promptbus_worker.outcomes import CallError, CallFailure, ModelUnusable
from promptbus_worker.preflight import Finding, fail, judge_batch_size, ok, warn
from promptbus_worker.settings import Settings
from promptbus_worker.triton import TritonClient, split_url

_CONNECT_S = 3.0
_CALL_S = 5.0
_PROMPT = b"Say hello."
_PROMPT_TOKENS = 8


class TritonCheckup:
    """One visit. Everything together takes at most `budget_s`."""

    def __init__(self, settings: Settings, budget_s: float = 13.0) -> None:
        self._settings = settings
        self._deadline = Deadline(budget_s)

    async def findings(self) -> AsyncIterator[Finding]:
        """Each as soon as it is known."""
        for url in self._settings.triton_urls:
            async for finding in self._server(url):
                yield finding

    async def _server(self, url: str) -> AsyncIterator[Finding]:
        try:
            address, tls = split_url(url)
            client = TritonClient(url, headers=self._settings.http_headers)
        except ValueError as error:
            yield fail(str(error), "correct the TRITON_… variable it names")
            return
        try:
            # Before the client tries: a name that does not resolve would block its resolver's thread, and our exit.
            away = await asyncio.to_thread(
                unreachable, [_address(address)], self._deadline.remaining_s(_CONNECT_S)
            )
            if away:
                (why,) = away.values()
                yield fail(f"Triton {url}: {why}", "is Triton running, and is TRITON_URL its HTTP port?")
                yield fail("models were not checked", "they need a Triton that answers")
                return
            base = f"{'https' if tls else 'http'}://{address}"
            timeout = aiohttp.ClientTimeout(total=_CALL_S)
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
            async with aiohttp.ClientSession(
                headers=self._settings.http_headers, timeout=timeout, connector=connector
            ) as session:
                try:
                    async with session.get(f"{base}/v2/health/live") as response:
                        status = response.status
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    where = _address(address)
                    problem = https_problem(error, where.host)
                    if not tls:
                        problem = await asyncio.to_thread(http_problem, where.host, where.port) or problem
                    if problem is not None:
                        yield fail(f"Triton {url} {problem}", "")
                        return
                    yield fail(
                        f"Triton {url} does not answer: {_clean(error)}",
                        "is TRITON_URL the HTTP port (8000 by default; not gRPC, not metrics), and http:// or https:// right?",
                    )
                    return
                if status != 200:
                    yield fail(f"Triton {url} says it is not live (HTTP {status})", _mend_status(status))
                    return
                yield ok(f"Triton {url} is live")
                for model in self._settings.models:
                    async for finding in self._model(client, session, base, model):
                        yield finding
        finally:
            await client.close()

    async def _model(
        self, client: TritonClient, session: aiohttp.ClientSession, base: str, model: str
    ) -> AsyncIterator[Finding]:

        version = self._settings.triton_model_version
        try:
            spec = await client.read_spec(
                model, version, timeout_s=max(0.1, self._deadline.remaining_s(_CALL_S))
            )
        except ModelUnusable as error:
            yield fail(error.sentence, "or name another model in TRITON_MODEL")
            return
        except CallError as error:
            if error.failure in (CallFailure.NOT_FOUND, CallFailure.BAD_REQUEST):
                yield fail(
                    f"model {model}{f' version {version}' if version else ''} is not served: {await _known(session, base, model)}",
                    "load it (Triton's log says why it does not), or correct TRITON_MODEL and TRITON_MODEL_VERSION",
                )
            else:
                yield _call_failed(model, "its description cannot be read", error)
            return
        outputs = ", ".join(sorted(spec.outputs))
        yield ok(
            f"model {model} version {spec.version or 'latest'}: {', '.join(sorted(spec.inputs))} → {outputs}; "
            f"batches up to {spec.max_batch_size}, {spec.instances} instance{'s' * (spec.instances != 1)}"
        )
        for finding in judge_batch_size(model, spec.max_batch_size, self._settings):
            yield finding
        yield await self._one_inference(client, spec)

    async def _one_inference(self, client: TritonClient, spec: ModelSpec) -> Finding:

        budget_s = max(0.1, self._deadline.remaining_s(self._settings.triton_timeout_s))
        begun = time.monotonic()
        try:
            _, rows = await client.infer(spec, [self._inputs(spec)], budget_s)
        except CallError as error:
            return _call_failed(spec.name, "one real prompt failed", error)
        took_s = time.monotonic() - begun
        (row,) = rows
        if isinstance(row, BadRow):
            return fail(f"model {spec.name}: its answer is unusable: {row.reason}", "correct the model")
        what = (
            f"model {spec.name} answered a real prompt in {took_s * 1000:.0f} ms ({row.total_tokens} tokens)"
        )
        if took_s > self._settings.triton_timeout_s / 2:
            return warn(
                what, f"TRITON_TIMEOUT_S is {self._settings.triton_timeout_s:g}: longer answers will time out"
            )
        return ok(what)

    def _inputs(self, spec: ModelSpec) -> dict[str, TensorValue]:
        ours: dict[str, TensorValue] = {
            "prompt": _PROMPT,
            "max_tokens": min(_PROMPT_TOKENS, self._settings.request_max_tokens),
            "temperature": self._settings.request_temperature,
        }
        return {name: value for name, value in ours.items() if name in spec.inputs}


async def _known(session: aiohttp.ClientSession, base: str, model: str) -> str:
    """What Triton's repository says about `model`, or which models it has instead."""
    try:
        async with session.post(f"{base}/v2/repository/index", json={}) as response:
            models: list[dict[str, str]] = await response.json(content_type=None)
        for entry in models:
            if entry["name"] == model and entry.get("state") != "READY":
                return f"{entry.get('state', 'not loaded')}: {_clean(entry.get('reason', ''))}"
        names = sorted({entry["name"] for entry in models})
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return "Triton does not know it"
    return f"Triton has {', '.join(names[:10]) or 'no model'}"


def _call_failed(model: str, what: str, error: CallError) -> Finding:
    mends = {
        CallFailure.FORBIDDEN: "set TRITON_API_KEY or TRITON_HEADERS__<NAME>",
        CallFailure.OVERLOADED: "Triton is full: try again, or give it more instances",
        CallFailure.MODEL_UNHEALTHY: "restart Triton: the model's process is dead",
        CallFailure.TIMEOUT: "is the model busy or stuck? Triton's log says",
        CallFailure.BAD_REQUEST: "the model's inputs are not what prompts need: see models/README.md",
        CallFailure.BAD_OUTPUT: "the model's outputs are not what answers need: see models/README.md",
    }
    return fail(
        f"model {model}: {what}: {error.failure} ({_clean(error.detail)})",
        mends.get(error.failure, "Triton's log says why"),
    )


def _mend_status(status: int) -> str:
    if status in (401, 403, 407):
        return "set TRITON_API_KEY or TRITON_HEADERS__<NAME>"
    if status == 404:
        return "is TRITON_URL the HTTP port of a Triton server?"
    return "wait until it has started; its log says what it waits for"


def _address(host_port_path: str) -> Address:
    host, _, port = host_port_path.partition("/")[0].rpartition(":")
    return Address(host.strip("[]"), int(port))


def _clean(what: object) -> str:
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= 200 else text[:200] + "…"
