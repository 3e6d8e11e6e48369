"""A small inference server over real sockets that answers as Triton does, or fails in one scripted way.

Without a script it is a well-behaved server with one model, gpt4_nano, whose answers carry the prompt's fingerprint
as those of the real model's `canned` engine do, and which knows the same test prompts: `[[fail]]`, `[[bad-utf8]]`,
`[[no-output]]`, `[[wrong-rows]]`, `[[slow:MS]]`. Requests are parsed and answers are built here byte by byte, not with tritonclient,
so that a defect of the client's codec cannot hide in both.
"""

import asyncio
import json
import re
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.fingerprint import fingerprint

Tensor = tuple[str, list[int], bytes]
"""Datatype, shape, raw bytes."""

MAX_BATCH_SIZE = 8

_INPUTS = {"prompt": "BYTES", "max_tokens": "INT32", "temperature": "FP32", "top_p": "FP32"}
_OUTPUTS = {
    "response": "BYTES",
    "tokens_used": "INT32",
    "prompt_tokens": "INT32",
    "completion_tokens": "INT32",
    "finish_reason": "BYTES",
}

METADATA = {
    "name": "gpt4_nano",
    "versions": ["1"],
    "platform": "python",
    "inputs": [{"name": name, "datatype": kind, "shape": [-1, 1]} for name, kind in _INPUTS.items()],
    "outputs": [{"name": name, "datatype": kind, "shape": [-1, 1]} for name, kind in _OUTPUTS.items()],
}
CONFIG = {
    "name": "gpt4_nano",
    "max_batch_size": MAX_BATCH_SIZE,
    "input": [{"name": name, "dims": [1], "optional": name != "prompt"} for name in _INPUTS],
    "instance_group": [{"count": 2, "kind": "KIND_CPU", "gpus": []}],
}


def pack_bytes(values: Sequence[bytes]) -> bytes:
    """BYTES elements as they lie in a binary tensor: a 4-byte little-endian length before each."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def unpack_bytes(raw: bytes) -> list[bytes]:
    """The reverse of pack_bytes."""
    values = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        values.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return values


@dataclass
class Received:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    inputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def prompts(self) -> list[bytes]:
        """The values of the input `prompt`."""
        return unpack_bytes(self.inputs["prompt"][2])

    def parse_inputs(self) -> None:
        """Read the tensors that follow the JSON header."""
        length = int(self.headers["inference-header-content-length"])
        header, rest = json.loads(self.body[:length]), self.body[length:]
        for tensor in header["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            self.inputs[tensor["name"]] = (tensor["datatype"], tensor["shape"], rest[:size])
            rest = rest[size:]
        assert not rest, "bytes after the last tensor"


Script = Callable[["ScriptedTriton", Received, asyncio.StreamWriter], Awaitable[None]]


class ScriptedTriton:
    """Listens on a free port of the loopback interface while its context is open.

    `scripts` are used up in order, one per inference call, before the server behaves well again.
    """

    def __init__(self) -> None:
        self.scripts: deque[Script] = deque()
        self.received: list[Received] = []
        self.metadata: object = METADATA
        self.config: object = CONFIG
        self.describe_with: Script | None = None
        self.counted = [0, 0]  # calls that ran, nanoseconds that they took
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """ "host:port"."""
        return f"127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Received]:
        """The inference calls that arrived."""
        return [request for request in self.received if request.method == "POST"]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; a second time on the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def count(self, began_ns: int) -> None:
        """A call that began then ran; whether the model failed does not matter to Triton."""
        self.counted[0] += 1
        self.counted[1] += time.monotonic_ns() - began_ns

    def statistics(self) -> dict[str, object]:
        """Of the one version, which never lets anything wait."""
        calls, ns = self.counted
        none, all_ns = {"count": calls, "ns": 0}, {"count": calls, "ns": ns}
        counted = {"success": all_ns, "fail": {"count": 0, "ns": 0}, "queue": none, "compute_infer": all_ns}
        return {
            "name": "gpt4_nano",
            "version": "1",
            "inference_stats": counted | {"compute_input": none, "compute_output": none},
        }

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while not writer.is_closing():
                await self._answer(await _read(reader), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client or the test has had enough
        finally:
            self._connections.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.received.append(request)
        model = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/(\d+))?(/config|/stats|/infer)?", request.path)
        if request.method == "GET" and self.describe_with is not None:
            await self.describe_with(self, request, writer)
        elif model is None or model[1] != "gpt4_nano" or model[2] not in (None, "1"):
            await send(
                writer, 404, json.dumps({"error": f"Request for unknown model: {request.path}"}).encode()
            )
        elif model[3] == "/stats":
            await send(writer, 200, json.dumps({"model_stats": [self.statistics()]}).encode())
        elif model[3] != "/infer":
            described = self.config if model[3] else self.metadata
            await send(writer, 200, json.dumps(described).encode())
        else:
            request.parse_inputs()
            script = self.scripts.popleft() if self.scripts else behave
            await script(self, request, writer)


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


async def send(
    writer: asyncio.StreamWriter, status: int, body: bytes, *, header_length: int | None = None
) -> None:
    """One HTTP answer; with `header_length` the body is JSON of that length and raw tensors after it."""
    writer.write(http(status, body, header_length=header_length))
    await writer.drain()


def http(status: int, body: bytes, *, header_length: int | None = None) -> bytes:
    """The bytes of one HTTP answer."""
    extra = f"Inference-Header-Content-Length: {header_length}\r\n" if header_length is not None else ""
    return f"HTTP/1.1 {status} Scripted\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def answer_of(outputs: Mapping[str, Tensor], **envelope: object) -> bytes:
    """The bytes of a 200 with these output tensors."""
    described = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, (datatype, shape, raw) in outputs.items()
    ]
    header = json.dumps(
        {"model_name": "gpt4_nano", "model_version": "1", "outputs": described} | envelope
    ).encode()
    return http(200, header + b"".join(raw for _, _, raw in outputs.values()), header_length=len(header))


def outputs_for(prompts: Sequence[bytes]) -> dict[str, Tensor]:
    """What the well-behaved model returns: each prompt's fingerprint, and words counted as tokens."""
    size = len(prompts)
    texts = [
        b"\xff\xfe" if b"[[bad-utf8]]" in prompt else f"[{fingerprint(prompt)}] It depends.".encode()
        for prompt in prompts
    ]
    asked = [len(prompt.split()) for prompt in prompts]
    answered = [len(text.split()) for text in texts]
    return {
        "response": ("BYTES", [size, 1], pack_bytes(texts)),
        "tokens_used": (
            "INT32",
            [size, 1],
            pack_int32([sum(pair) for pair in zip(asked, answered, strict=True)]),
        ),
        "prompt_tokens": ("INT32", [size, 1], pack_int32(asked)),
        "completion_tokens": ("INT32", [size, 1], pack_int32(answered)),
        "finish_reason": ("BYTES", [size, 1], pack_bytes([b"stop"] * size)),
    }


def pack_int32(values: Sequence[int]) -> bytes:
    """INT32 elements as they lie in a binary tensor."""
    return struct.pack(f"<{len(values)}i", *values)


async def behave(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Answer as the real Triton with the real model does."""
    began, prompts = time.monotonic_ns(), request.prompts
    joined = b"\n".join(prompts)
    unknown = set(request.inputs) - set(_INPUTS)
    if len(prompts) > MAX_BATCH_SIZE:
        text = f"[request id: <id_unknown>] inference request batch-size must be <= {MAX_BATCH_SIZE} for 'gpt4_nano'"
        await send(writer, 400, json.dumps({"error": text}).encode())
    elif unknown:
        text = f"unexpected inference input '{unknown.pop()}' for model 'gpt4_nano'"
        await send(writer, 400, json.dumps({"error": text}).encode())
    elif b"[[fail]]" in joined:
        trace = "".join(f"\n  /models/gpt4_nano/1/model.py({line}): execute" for line in range(100))
        text = (
            f"Failed to process the request(s) for model 'gpt4_nano_0_0', message: ValueError\n\nAt:{trace}"
        )
        server.count(began)
        await send(writer, 500, json.dumps({"error": text}).encode())
    else:
        slow = re.search(rb"\[\[slow:(\d+)\]\]", joined)
        if slow:
            early_s = 0.001  # by so much uvloop's timers may end before their time
            await asyncio.sleep(int(slow[1]) / 1000 + early_s)
        outputs = outputs_for(prompts)
        if b"[[no-output]]" in joined:
            del outputs["response"]
        if b"[[wrong-rows]]" in joined:
            outputs = outputs_for(prompts[:-1])
        server.count(began)
        writer.write(answer_of(outputs))
        await writer.drain()
