"""Calls to Triton: a model's description and statistics, and one inference call with one row of output per request.

Everything that can go wrong comes out as a CallError with one of the failures of outcomes.py. What happens to the
requests then is not decided here, and nothing is repeated here: a POST goes out once, by either transport.

Plain http goes through http_protocol.py and binary_infer.py. tritonclient is the reference: TLS goes through it always,
and `transport="tritonclient"` brings everything back to it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol
from urllib.parse import urlsplit

from promptbus.settings import NO_CREDENTIALS
from promptbus.tls import http_problem
from promptbus_worker.binary_infer import RESERVED_HEADERS, BinaryCalls
from promptbus_worker.http_protocol import Pool
from promptbus_worker.model import BadRow, Inputs, ModelSpec, ModelStatistics, Row, TensorSpec, TensorValue
from promptbus_worker.model_metadata import ModelConfig, ModelMetadata, Statistics, describe, sum_up
from promptbus_worker.outcomes import CallError, CallFailure

__all__ = [
    "BadRow",
    "Inputs",
    "ModelSpec",
    "Row",
    "TensorSpec",
    "TensorValue",
    "Transport",
    "TritonClient",
    "split_url",
]

Transport = Literal["binary", "tritonclient"]

STATISTICS_S = 2.0
"""How long Triton may take to tell its statistics, which it does from memory."""
PROBE_S = 1.0
"""How long a connection may take after a call timed out, to tell a slow server from one that is gone."""


def split_url(url: str) -> tuple[str, bool]:
    """`TRITON_URL` as tritonclient wants it, "host:port" with the path before /v2 if there is one; and whether TLS.

    Raises ValueError with a sentence that says what is wrong.
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"TRITON_URL {url!r} cannot be read: {error}. Give host:port.") from error
    if parts.scheme not in ("", "http", "https"):
        raise ValueError(f"TRITON_URL {url!r} has to be host:port, http://... or https://...")
    if parts.username is not None or parts.password is not None:
        raise ValueError(NO_CREDENTIALS)
    if parts.query or parts.fragment:
        raise ValueError(f"TRITON_URL {url!r} must not hold a query or a fragment.")
    if not host or (port is None and not parts.scheme):
        raise ValueError(f"TRITON_URL {url!r} lacks its {'port' if host else 'host'}. Give host:port.")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}{parts.path.rstrip('/')}", parts.scheme == "https"


class TritonCalls(Protocol):
    """One way to make calls. Its methods raise CallError, or TimeoutError when time ran out (`timeout_s`, or the caller's)."""

    async def describe(self, model: str, version: str) -> tuple[ModelMetadata, ModelConfig]: ...
    async def statistics(self, model: str, version: str) -> Statistics: ...
    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float | None
    ) -> tuple[str, list[Row | BadRow]]: ...
    async def close(self) -> None: ...


class TritonClient:
    """Triton's HTTP port.

    Belongs to the event loop in which it is made, and is closed there. `url`: see split_url. `headers` go with
    every call. `max_connections` has to be at least the number of calls that can be in flight: a call that waits
    for a connection does so within its own time-out. Proxies of the environment never apply.

    `transport` is what calls go through; "binary" is for plain http and for headers that do not describe
    the request itself (RESERVED_HEADERS): with others, and over TLS, it is tritonclient all the same.

    Raises ValueError with a sentence for an unusable url or header.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        max_connections: int = 64,
        transport: Transport = "binary",
    ) -> None:
        address, self._tls = split_url(url)
        for name, value in headers.items():
            if any(char in name + value for char in "\r\n\0"):
                raise ValueError(f"The header {name!r} for Triton must not hold line breaks or NUL.")
        own_headers = {name.lower(): headers[name] for name in headers}
        # aiohttp offers gzip by itself; Triton takes the offer for JSON and proxies for error pages, which
        # tritonclient does not unpack.
        sent = {"accept-encoding": "identity"} | own_headers
        self._address = urlsplit(f"//{address}")
        if transport == "binary" and not self._tls and RESERVED_HEADERS.isdisjoint(own_headers):
            host, port = self._address.hostname, self._address.port
            assert host is not None
            assert port is not None
            self._calls: TritonCalls = BinaryCalls(Pool(host, port, size=max_connections), address, sent)
        else:
            from promptbus_worker.tritonclient_calls import TritonclientCalls

            self._calls = TritonclientCalls(address, sent, tls=self._tls, max_connections=max_connections)
        self._closed = False

    async def read_spec(
        self, model: str, version: str | None = None, *, timeout_s: float = 10.0
    ) -> ModelSpec:
        """What Triton says about the model now.

        Raises CallError, or ModelUnusable with a sentence for the operator if the model's tensors do not fit.
        """
        self._check_open()
        version = version or ""
        try:
            async with asyncio.timeout(timeout_s):
                metadata, config = await self._calls.describe(model, version)
        except TimeoutError as error:
            raise await self._late(timeout_s) from error
        except CallError as error:
            raise (await self._wrong_scheme(error) or error) from error
        return describe(metadata, config, version=version)

    async def statistics(self, model: str, version: str | None = None) -> dict[str, ModelStatistics]:
        """What Triton has done for the model since it was loaded, by this server's address. Raises CallError."""
        self._check_open()
        try:
            async with asyncio.timeout(STATISTICS_S):
                statistics = await self._calls.statistics(model, version or "")
            return {self._address.netloc + self._address.path: sum_up(statistics)}
        except TimeoutError as error:
            raise CallError(CallFailure.TIMEOUT, f"no statistics within {STATISTICS_S:g} s") from error
        except ValueError as error:
            raise CallError(CallFailure.BAD_OUTPUT, str(error), status=200) from error

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float
    ) -> tuple[str, list[Row | BadRow]]:
        """One call: the version that answered, and one row per request in the order of the batch.

        `batch` is not empty; all its requests have the same inputs. `timeout_s` bounds everything from waiting
        for a connection to the last byte of the answer. Raises CallError.
        """
        self._check_open()
        try:
            return await self._calls.infer(spec, batch, timeout_s)
        except TimeoutError as error:
            raise await self._late(timeout_s) from error

    async def close(self) -> None:
        """Close every connection. Calls still under way fail; later ones raise RuntimeError."""
        self._closed = True
        await self._calls.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this TritonClient is closed")

    async def _late(self, timeout_s: float) -> CallError:
        # The call's one deadline cannot tell "connected, but slow" from "no host there any more", and the second
        # must not be charged to a request.
        if await self._accepts_connections():
            return CallError(CallFailure.TIMEOUT, f"no complete answer within {timeout_s:.3f} s")
        return CallError(
            CallFailure.REFUSED, f"no answer within {timeout_s:.3f} s, and no connection comes about"
        )

    async def _wrong_scheme(self, failed: CallError) -> CallError | None:
        """The better error if plain http met a port with TLS: some of those hang up, some answer 400."""
        host, port = self._address.hostname, self._address.port
        if self._tls or failed.failure not in (CallFailure.CONNECTION, CallFailure.BAD_REQUEST):
            return None
        problem = await asyncio.to_thread(http_problem, host or "", port or 0)
        if problem is None:
            return None
        return CallError(CallFailure.FORBIDDEN, f"Triton at {self._address.netloc} {problem}")

    async def _accepts_connections(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        except OSError:  # TimeoutError is one
            return False
        writer.transport.abort()
        return True
