"""Ask one prompt and print its answer, alone, on stdout.

exit codes: 0 answered · 1 error reply · 2 usage · 3 no reply in time (stderr names what is missing)

examples:
  promptbus ask "What is Kafka?"
  promptbus ask - < question.txt
  promptbus ask --json "What is Kafka?" | jq .usage
  promptbus ask --direct "Does the model answer at all?"
"""

from __future__ import annotations

import argparse
import sys

from promptbus.commands.outcome import ERROR_REPLY, NO_REPLY, OK, USAGE, say
from promptbus.errors import ReplyTimeout
from promptbus.messages import Reply, Request
from promptbus.prompts import DEFAULT_TIMEOUT_S

SUMMARY = "ask one prompt, print the answer"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the prompt; `-` reads it from stdin")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of the answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 to 2")
    parser.add_argument("--model", metavar="NAME", help="one of the models that the workers serve")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds to wait for the reply (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the whole reply")
    parser.add_argument(
        "--direct", action="store_true", help="call Triton (TRITON_URL, TRITON_MODEL) without Kafka"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tokens and latency on stderr")


def run(arguments: argparse.Namespace) -> int:
    prompt = _read_prompt(arguments.prompt)
    if prompt is None:
        return USAGE
    request = Request(
        prompt=prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        model=arguments.model,
    )
    if arguments.direct:
        return _ask_directly(request, arguments)
    return _ask_through_kafka(request, arguments)


def _ask_through_kafka(request: Request, arguments: argparse.Namespace) -> int:
    from promptbus.client import PromptClient
    from promptbus.printable import write_bytes, write_text
    from promptbus.settings import KafkaSettings, load

    settings = load(KafkaSettings)
    timeout_s: float = arguments.timeout
    with PromptClient(
        settings=settings, timeout_s=timeout_s, connect_timeout_s=min(5.0, timeout_s)
    ) as client:
        future = client.submit(request)
        try:
            reply = future.result()
        except ReplyTimeout as late:
            return _tell_what_is_missing(client.explain(late))
        if arguments.json:
            write_bytes((future.value or b"").replace(b"\n", b" "))
        elif reply.response is not None:
            write_text(reply.response)
    if reply.error is not None:
        say(f"{reply.error.code}: {reply.error.message}")
    if arguments.verbose:
        _tell_costs(reply)
    return OK if reply.ok else ERROR_REPLY


def _ask_directly(request: Request, arguments: argparse.Namespace) -> int:
    import orjson

    from promptbus.direct import TritonRefused, TritonUnreachable, ask_triton
    from promptbus.messages import encode_request
    from promptbus.printable import write_bytes, write_text
    from promptbus.settings import TritonSettings, load

    encode_request(request)  # the same limits as on the wire
    try:
        answer = ask_triton(load(TritonSettings), request, arguments.timeout)
    except TritonUnreachable as problem:
        say(str(problem))
        return NO_REPLY
    except TritonRefused as problem:
        say(str(problem))
        return ERROR_REPLY
    if arguments.json:
        write_bytes(orjson.dumps(answer._asdict()))
    else:
        write_text(answer.response)
    if arguments.verbose:
        tokens = _tokens(answer.prompt_tokens, answer.completion_tokens, answer.total_tokens)
        say(
            f"{tokens} · {answer.inference_ms:,.0f} ms · {answer.model} {answer.model_version} · without Kafka"
        )
    return OK


def _tell_what_is_missing(late: ReplyTimeout) -> int:
    from promptbus.direct import why_not_ready
    from promptbus.settings import TritonSettings, load

    say(str(late))
    if late.consumers:
        problem = why_not_ready(load(TritonSettings))
        if problem is not None:
            say(f"seen from here, {problem}")
    return NO_REPLY


def _tell_costs(reply: Reply) -> None:
    usage, timings = reply.usage, reply.timings
    say(
        f"{_tokens(*usage)} · {timings.total_ms:,.0f} ms (waiting {timings.queue_ms:,.0f}, "
        f"inference {timings.inference_ms:,.0f}) · {reply.model or 'no model'} {reply.model_version or ''} · "
        f"request {reply.request_id}"
    )


def _tokens(prompt: int | None, completion: int | None, total: int | None) -> str:
    if prompt is not None and completion is not None:
        return f"{prompt} + {completion} = {total if total is not None else prompt + completion} tokens"
    return f"{total} tokens" if total is not None else "tokens not counted"


def _read_prompt(argument: str) -> str | None:
    if argument == "-":
        raw = sys.stdin.buffer.read()
        try:
            prompt = raw.decode()
        except UnicodeDecodeError as problem:
            say(f"stdin is not UTF-8 ({problem.reason} at byte {problem.start})")
            return None
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    else:
        prompt = argument
        try:
            prompt.encode()
        except UnicodeEncodeError:
            say("the prompt is not UTF-8")
            return None
    if not prompt:
        say("the prompt is empty")
        return None
    return prompt


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError("must be above 0 and at most 86400 seconds")
    return seconds
