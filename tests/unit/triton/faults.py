"""The ways in which the scripted server fails: what real Triton cannot be made to do, or not on demand."""

import asyncio

from tests.unit.triton.scripted_triton import (
    Received,
    Script,
    ScriptedTriton,
    answer_of,
    http,
    outputs_for,
    pack_bytes,
    pack_int32,
    send,
)


async def silent(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Take the request and never answer."""
    await asyncio.Event().wait()


async def drip(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time: no single read ever takes long."""
    for byte in answer_of(outputs_for(request.prompts)):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.01)


async def disconnect(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Close the connection without a word."""
    writer.close()


async def reset(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Break the connection as a killed process does."""
    writer.transport.abort()


async def truncate(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Promise a whole answer and close in the middle of it."""
    writer.write(answer_of(outputs_for(request.prompts))[:-10])
    await writer.drain()
    writer.close()


async def not_http(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
    """Speak another protocol."""
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\x00\xff\r\n\r\n")
    await writer.drain()
    writer.close()


def status(code: int, body: bytes) -> Script:
    """Answer with this status and this body."""

    async def script(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
        await send(writer, code, body)

    return script


def raw(answer: bytes) -> Script:
    """Answer with exactly these bytes."""

    async def script(server: ScriptedTriton, request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return script


HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"

RESPONSE = ("BYTES", [1, 1], pack_bytes([b"an answer"]))
TOKENS = ("INT32", [1, 1], pack_int32([7]))
"""A right answer for one request, to be spoilt."""

BAD_ANSWERS = {
    "no outputs at all": answer_of({}),
    "response is missing": answer_of({"tokens_used": TOKENS}),
    "tokens_used is missing": answer_of({"response": RESPONSE}),
    "200 with an error": http(200, b'{"error": "out of memory"}'),
    "200 with a JSON list": http(200, b"[1, 2]"),
    "200 with an empty object and a header length": http(200, b"{}", header_length=2),
    "a row too many": answer_of(
        {"response": ("BYTES", [2, 1], pack_bytes([b"a", b"b"])), "tokens_used": TOKENS}
    ),
    "a count too many": answer_of(
        {"response": RESPONSE, "tokens_used": ("INT32", [2, 1], pack_int32([1, 2]))}
    ),
    "two values in one row": answer_of(
        {"response": ("BYTES", [1, 2], pack_bytes([b"a", b"b"])), "tokens_used": TOKENS}
    ),
    "no rows": answer_of({"response": ("BYTES", [0, 1], b""), "tokens_used": TOKENS}),
    "the shape promises more than the bytes hold": answer_of(
        {"response": ("BYTES", [3, 1], pack_bytes([b"a"])), "tokens_used": TOKENS}
    ),
    "a length that reaches past the end": answer_of(
        {"response": ("BYTES", [1, 1], b"\xff\xff\xff\x7fabc"), "tokens_used": TOKENS}
    ),
    "a length cut short": answer_of({"response": ("BYTES", [1, 1], b"\x01\x00"), "tokens_used": TOKENS}),
    "counts of half a number": answer_of(
        {"response": RESPONSE, "tokens_used": ("INT32", [1, 1], b"\x01\x00")}
    ),
    "a response of numbers": answer_of({"response": TOKENS, "tokens_used": TOKENS}),
}
"""Answers with status 200 to one request, none of them usable."""
