"""Calls to Triton by tritonclient: the reference, the way over TLS, and the switch-back.

Imported only where it is used: with aiohttp and numpy it takes longer to import than all the rest of the worker.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import aiohttp
import rapidjson
from tritonclient.http.aio import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from promptbus.tls import https_problem
from promptbus_worker.model import CALL_TRACEPARENT, BadRow, Inputs, ModelSpec, Row
from promptbus_worker.model_metadata import ModelConfig, ModelMetadata, Statistics
from promptbus_worker.outcomes import CallError, CallFailure, failure_of_status
from promptbus_worker.tensors import decode, encode, requested_outputs


class TritonclientCalls:
    """`address`: "host:port" with the path before /v2, as split_url gives it."""

    def __init__(self, address: str, headers: Mapping[str, str], *, tls: bool, max_connections: int) -> None:
        self._headers = dict(headers)
        self._address = urlsplit(f"//{address}")
        self._client = InferenceServerClient(
            address,
            conn_limit=max_connections,
            conn_timeout=None,  # each call has its own deadline; the session's would undercut long ones
            ssl=tls,
            ssl_context=ssl.create_default_context() if tls else None,
        )
        self._outputs: dict[str, tuple[ModelSpec, list[InferRequestedOutput]]] = {}

    async def describe(self, model: str, version: str) -> tuple[ModelMetadata, ModelConfig]:
        """What Triton says about a model; `version` "" is its choice. Raises CallError, TimeoutError."""
        try:
            return (
                await self._client.get_model_metadata(model, version, headers=self._headers),
                await self._client.get_model_config(model, version, headers=self._headers),
            )
        except TimeoutError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    async def statistics(self, model: str, version: str) -> Statistics:
        """What Triton has counted for a model; `version` "": of each. Raises CallError, TimeoutError."""
        try:
            statistics: Statistics = await self._client.get_inference_statistics(
                model, version, headers=self._headers
            )
        except TimeoutError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        return statistics

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float | None
    ) -> tuple[str, list[Row | BadRow]]:
        """The version that answered, and one row per request in the order of the batch. Raises CallError, TimeoutError."""
        try:
            inputs = encode(spec, batch)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise CallError(
                CallFailure.BAD_REQUEST, f"the batch does not fit the model's inputs: {_text(error)}"
            ) from error
        traceparent = CALL_TRACEPARENT.get()
        traced = {"traceparent": traceparent.decode()} if traceparent is not None else {}
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._client.infer(
                    spec.name,
                    inputs,
                    model_version=spec.version,
                    outputs=self._requested(spec),
                    headers=self._headers | traced,  # a copy: tritonclient adds to it
                )
        except TimeoutError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        try:
            return decode(result, len(batch))
        except Exception as error:  # whatever numpy and struct make of bytes that lie about themselves
            raise CallError(CallFailure.BAD_OUTPUT, _text(error), status=200) from error

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    def _failed(self, error: Exception) -> CallError:
        problem = https_problem(error, self._address.hostname or "")
        if problem is None:
            return _classify(error)
        return CallError(CallFailure.FORBIDDEN, f"Triton at {self._address.netloc} {problem}")

    def _requested(self, spec: ModelSpec) -> list[InferRequestedOutput]:
        known = self._outputs.get(spec.name)
        if known is None or known[0] is not spec:
            known = self._outputs[spec.name] = (spec, requested_outputs(spec))
        return known[1]


def _classify(error: Exception) -> CallError:
    if isinstance(error, InferenceServerException):
        status, text = error.status(), str(error.message())
        if status is None:  # tritonclient itself, about the body of a 200
            return CallError(CallFailure.BAD_OUTPUT, text, status=200)
        return CallError(failure_of_status(int(status), text), text, status=int(status))
    if isinstance(error, aiohttp.ClientConnectorError):
        return CallError(CallFailure.REFUSED, _text(error))
    if isinstance(error, aiohttp.ClientError | OSError):
        return CallError(CallFailure.CONNECTION, _text(error))
    if isinstance(error, rapidjson.JSONDecodeError):
        # Something answered 200, but no inference server: a login page, a proxy's greeting.
        return CallError(CallFailure.CONNECTION, f"the answer is not JSON: {error}", status=200)
    return CallError(CallFailure.BAD_OUTPUT, _text(error), status=200)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
