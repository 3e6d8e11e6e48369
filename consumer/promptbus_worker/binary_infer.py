"""Calls to Triton over plain http: its binary tensor format built and read without numpy, and a model's metadata.

The protocol is the KServe v2 one with Triton's extension for binary tensor data: a JSON header, then the tensors' raw
bytes in its order; `Inference-Header-Content-Length` says where the header ends. BYTES elements have their length
before them, 4 bytes, little-endian; numbers are little-endian.

tritonclient (tritonclient_calls.py, tensors.py) is the reference: both pass the same tests.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NotRequired, TypedDict
from urllib.parse import quote

import orjson

from promptbus_worker.answer_rows import OUTPUTS, UnreadableOutput, rows_of
from promptbus_worker.http_protocol import Answer, BrokenConnection, NotConnected, Pool
from promptbus_worker.model import CALL_TRACEPARENT, BadRow, Inputs, ModelSpec, Row
from promptbus_worker.model_metadata import ModelConfig, ModelMetadata, Statistics
from promptbus_worker.outcomes import CallError, CallFailure, failure_of_status

_Templates = dict[tuple[int | str, ...], "_Template"]
"""By the batch's size, followed by its inputs' names."""

_FORMATS: Mapping[str, str] = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH = struct.Struct("<I")
_pack_length, _unpack_length = _LENGTH.pack, _LENGTH.unpack_from
_SIZE_DIGITS = 10
"""Sizes are padded with spaces, which JSON allows: so the header's own length never changes."""
_TEMPLATES = 256
"""Templates kept per model: batch sizes times the combinations of inputs that come up."""
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "inference-header-content-length",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""What a request says of itself; headers of the operator's by these names are tritonclient's business."""


class _Parameters(TypedDict, total=False):
    binary_data_size: int


class _Output(TypedDict):
    name: str
    datatype: str
    shape: list[int]
    parameters: NotRequired[_Parameters]
    data: NotRequired[list[object]]


class _Envelope(TypedDict, total=False):
    model_version: str
    outputs: list[_Output]


class _Template(NamedTuple):
    """A request less its values. `head` takes the body's length and then the size of each BYTES tensor."""

    head: bytes
    fixed_size: int
    inputs: Sequence[tuple[str, Callable[..., bytes] | None]]  # None: BYTES


class BinaryCalls:
    """Calls over one pool, which is closed with it. `address`: "host:port" with the path before /v2, as split_url gives it."""

    def __init__(self, pool: Pool, address: str, headers: Mapping[str, str]) -> None:
        host, _, path = address.partition("/")
        self._pool = pool
        self._path = f"/{path}/v2/models/" if path else "/v2/models/"
        # IDNA, as for looking the name up
        lines = [b"Host: " + (host.encode() if host.isascii() else host.encode("idna"))]
        lines += [f"{name}: {value}".encode() for name, value in headers.items()]
        self._headers = b"\r\n".join(lines)
        self._templates: dict[str, tuple[ModelSpec, _Templates]] = {}

    async def describe(self, model: str, version: str) -> tuple[ModelMetadata, ModelConfig]:
        """What Triton says about a model; `version` "" is its choice. Raises CallError."""
        path = self._model_path(model, version)
        return await self._get(path), await self._get(f"{path}/config")

    async def statistics(self, model: str, version: str) -> Statistics:
        """What Triton has counted for a model; `version` "": of each. Raises CallError."""
        statistics: Statistics = await self._get(f"{self._model_path(model, version)}/stats")
        return statistics

    async def close(self) -> None:
        """Break every connection."""
        await self._pool.close()

    async def infer(
        self, spec: ModelSpec, batch: Sequence[Inputs], timeout_s: float | None
    ) -> tuple[str, list[Row | BadRow]]:
        """The version that answered, and one row per request in the order of the batch. Raises CallError, TimeoutError."""
        try:
            request = self.request(spec, batch)
        except (KeyError, ValueError, TypeError, OverflowError, struct.error) as error:
            raise CallError(
                CallFailure.BAD_REQUEST, f"the batch does not fit the model's inputs: {_text(error)}"
            ) from error
        return read_answer(await self._send(request, timeout_s), len(batch))

    async def _get(self, path: str) -> Any:
        answer = await self._send(b"GET %s HTTP/1.1\r\n%s\r\n\r\n" % (path.encode(), self._headers))
        _check_encoding(answer)
        try:
            return orjson.loads(answer.body)
        except orjson.JSONDecodeError as error:
            raise _no_json(error) from error

    async def _send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        """The answer, if it is a 200."""
        try:
            answer = await self._pool.send(request, timeout_s)
        except NotConnected as error:
            raise CallError(CallFailure.REFUSED, _text(error)) from error
        except BrokenConnection as broken:
            raise CallError(CallFailure.CONNECTION, _text(broken)) from broken
        if answer.status == 200:
            return answer
        text = _error_text(answer)
        raise CallError(
            failure_of_status(answer.status, text),
            text,
            status=answer.status,
            retry_after_s=_retry_after_s(answer),
        )

    def request(self, spec: ModelSpec, batch: Sequence[Inputs]) -> bytes:
        """The whole HTTP request. Each tensor has the shape [n, 1].

        Raises KeyError for an input that the model does not have, or that not all requests of the batch have;
        ValueError, TypeError, OverflowError or struct.error for a value that its datatype does not take.
        """
        size, first = len(batch), batch[0]
        known = self._templates.get(spec.name)
        template = known[1].get((size, *first)) if known is not None and known[0] is spec else None
        if template is None:
            template = self._learn_template(spec, size, tuple(first))
        parts, sizes, total = [b""], [], template.fixed_size
        for name, pack in template.inputs:
            if pack is not None:
                parts.append(pack(*[inputs[name] for inputs in batch]))
                continue
            tensor_size = _LENGTH.size * size
            for inputs in batch:
                value = inputs[name]
                if not isinstance(value, bytes):
                    raise TypeError(f"input {name} takes bytes")
                length = len(value)
                tensor_size += length
                parts += (_pack_length(length), value)
            sizes.append(tensor_size)
            total += tensor_size
        head = template.head % (total, *sizes)
        traceparent = CALL_TRACEPARENT.get()
        if traceparent is not None:
            head = head.replace(b"\r\n", b"\r\ntraceparent: %b\r\n" % traceparent, 1)
        parts[0] = head
        return b"".join(parts)

    def _learn_template(self, spec: ModelSpec, size: int, names: tuple[str, ...]) -> _Template:
        known = self._templates.get(spec.name)
        if known is None or known[0] is not spec:
            known = self._templates[spec.name] = (spec, {})
        if len(known[1]) >= _TEMPLATES:
            known[1].clear()
        template = known[1][(size, *names)] = self._new_template(spec, size, names)
        return template

    def _new_template(self, spec: ModelSpec, size: int, names: tuple[str, ...]) -> _Template:
        inputs: list[tuple[str, Callable[..., bytes] | None]] = []
        tensors, fixed_size = [], 0
        for name in names:
            datatype = spec.inputs[name].datatype
            described = {"name": name, "shape": [size, 1], "datatype": datatype}
            tensor = orjson.dumps(described)[:-1].replace(b"%", b"%%")
            if datatype == "BYTES":
                inputs.append((name, None))
                binary_size = b"%%%dd" % _SIZE_DIGITS
            else:
                numbers = _numbers(size, datatype)
                inputs.append((name, numbers.pack))
                fixed_size += numbers.size
                binary_size = b"%d" % numbers.size
            tensors.append(tensor + b',"parameters":{"binary_data_size":' + binary_size + b"}}")
        outputs = [{"name": n, "parameters": {"binary_data": True}} for n in OUTPUTS if n in spec.outputs]
        header = b'{"inputs":[%s],"outputs":%s}' % (b",".join(tensors), orjson.dumps(outputs))
        header_size = len(header % tuple([0] * sum(pack is None for _, pack in inputs)))
        path = f"{self._model_path(spec.name, spec.version)}/infer"
        lines = b"POST %s HTTP/1.1\r\n%s\r\nContent-Type: application/octet-stream\r\n" % (
            path.encode(),
            self._headers,
        )
        lines += b"Inference-Header-Content-Length: %d\r\n" % header_size
        head = lines.replace(b"%", b"%%") + b"Content-Length: %d\r\n\r\n" + header
        return _Template(head, header_size + fixed_size, inputs)

    def _model_path(self, model: str, version: str) -> str:
        chosen = f"/versions/{quote(version, safe='')}" if version else ""
        return quote(self._path, safe="/%:@!$&'()*+,;=~") + quote(model, safe="") + chosen


@lru_cache(_TEMPLATES)
def _numbers(size: int, datatype: str) -> struct.Struct:
    return struct.Struct(f"<{size}{_FORMATS[datatype]}")


def read_answer(answer: Answer, size: int) -> tuple[str, list[Row | BadRow]]:
    """The body of a 200 as one row per request. Raises CallError: BAD_OUTPUT, or CONNECTION if it is no JSON."""
    try:
        _, headers, body = answer
        _check_encoding(answer)
        length = headers.get(b"inference-header-content-length")
        header_size = len(body) if length is None else int(length)
        if not 0 <= header_size <= len(body):
            raise UnreadableOutput(f"a header of {header_size} bytes in an answer of {len(body)}")
        envelope = _json(body[:header_size])
        columns = _columns(envelope, body, header_size, size)
        return str(envelope.get("model_version", "")), rows_of(columns, size, envelope)
    except CallError:
        raise
    except Exception as error:  # whatever bytes lead to that are not what they say they are
        raise CallError(CallFailure.BAD_OUTPUT, _text(error), status=200) from error


def _json(header: bytes) -> _Envelope:
    try:
        envelope: _Envelope = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        header.decode()  # not UTF-8: the model's doing. Everything else is no inference server: a login page
        raise _no_json(error) from error
    return envelope


def _no_json(error: ValueError) -> CallError:
    return CallError(CallFailure.CONNECTION, f"the answer is not JSON: {error}", status=200)


def _check_encoding(answer: Answer) -> None:
    if answer.headers.get(b"content-encoding", b"identity") != b"identity":
        raise CallError(CallFailure.CONNECTION, "the answer is compressed, unasked", status=200)


def _columns(envelope: _Envelope, body: bytes, at: int, size: int) -> dict[str, Sequence[object]]:
    """The values of the outputs that we read. `at`: where the binary data begins, in the order of the outputs."""
    columns: dict[str, Sequence[object]] = {}
    expected = [size, 1]
    for output in envelope.get("outputs") or ():
        begin, name = at, output["name"]
        raw_size = output.get("parameters", {}).get("binary_data_size")
        if raw_size is not None:
            at += raw_size
            if raw_size < 0 or at > len(body):
                raise UnreadableOutput(f"output {name} reaches past the end of the answer")
        if name not in OUTPUTS:
            continue
        shape = output["shape"]
        if shape != expected and (shape[:1] != [size] or any(extent != 1 for extent in shape[1:])):
            raise UnreadableOutput(f"output {name} has shape {shape} for {size} requests")
        if raw_size is None:
            columns[name] = _flat(output.get("data", []), size)
        elif output["datatype"] == "BYTES":
            columns[name] = _strings(name, body, begin, at, size)
        else:
            numbers = _numbers(size, output["datatype"])
            if numbers.size != raw_size:
                raise UnreadableOutput(f"output {name} has {raw_size} bytes for {size} requests")
            columns[name] = numbers.unpack_from(body, begin)
    return columns


def _strings(name: str, body: bytes, at: int, end: int, size: int) -> list[bytes]:
    values = []
    for _ in range(size):
        begin = at + _LENGTH.size
        if begin > end:
            raise UnreadableOutput(f"output {name} has fewer than {size} values")
        at = begin + _unpack_length(body, at)[0]
        values.append(body[begin:at])
    if at != end:
        raise UnreadableOutput(f"output {name}'s lengths do not fit its bytes")
    return values


def _flat(data: Sequence[object], size: int) -> list[object]:
    # A server that answers in JSON although binary was asked for; rows can be lists of one.
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]
    if len(values) != size:
        raise UnreadableOutput(f"an output has {len(values)} values for {size} requests")
    return values


def _error_text(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        target = answer.headers.get(b"location", b"?").decode(errors="replace")
        return f"the server points to {target} and redirects are not followed. Set TRITON_URL to the right place."
    try:
        return str(orjson.loads(answer.body)["error"])
    except (ValueError, TypeError, KeyError):
        return answer.body.decode(errors="replace") or "no text with it"


def _retry_after_s(answer: Answer) -> float:
    """In the form of seconds; the other one, a date, would need clocks that agree."""
    value = answer.headers.get(b"retry-after", b"")
    return float(value) if value.isdigit() and len(value) < 10 else 0.0


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
