"""`make demo`: a real Kafka, a real Triton, workers and a real language model answer a few prompts; then all is stopped.

Exit 0 only if a real model answered every prompt. EXISTING=1 uses what KAFKA_BOOTSTRAP and TRITON_URL name.
"""

import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptbus import PromptBusError, PromptClient, Reply, ReplyTimeout
from stack.errors import StackError
from stack.kafka import Kafka
from stack.ports import free_ports
from stack.process import end_like_an_interrupt, tail
from stack.services import (
    Existing,
    chosen_engine,
    existing_engines,
    existing_services,
    make_topics,
    own_engines,
)
from stack.triton import Triton
from stack.worker import service_environment, start_worker

# What a model of 135 million parameters answers well.
PROMPTS = (
    "What is the opposite of hot?",
    "Name three fruits.",
    "What do plants need to grow? Answer in one sentence.",
    "Suggest a name for a cat.",
    "What is a library?",
    "Write one sentence about the sea.",
)
MAX_TOKENS = 80
# The likeliest words: with chance, so small a model strays.
TEMPERATURE = 0.0
ANSWER_TIMEOUT_S = 120.0
WIDTH = 100


@dataclass(slots=True)
class Services:
    bootstrap: str
    engines: set[str]
    logs: dict[str, Path]


def main() -> int:
    end_like_an_interrupt()
    folder = Path(tempfile.mkdtemp(prefix="promptbus-demo-"))
    started = time.monotonic()
    logs: dict[str, Path] = {}
    try:
        existing = existing_services()
        with ExitStack() as undo:
            services = _start(existing, folder, logs, undo)
            failures = _ask(services, existing, folder)
            _say("Stopping …")
        print(f"\nAll stopped, {time.monotonic() - started:.0f} s in all.")
    except StackError as error:
        return _failed(str(error), logs)
    except PromptBusError as error:
        return _failed(f"Kafka: {error}", logs)
    except KeyboardInterrupt:
        print("\nStopped: nothing of it runs any more.", file=sys.stderr)
        return 130
    else:
        if failures:
            return _failed("\n".join(failures), logs)
        print('Next: make up          then: .venv/bin/promptbus ask "What is Kafka?"')
        return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(existing: Existing, folder: Path, logs: dict[str, Path], undo: ExitStack) -> Services:
    """Whatever is started here is ended by `undo`."""
    engine = chosen_engine()
    _say("Starting Kafka, Triton and two workers on free ports; everything is temporary.\n")
    if existing.bootstrap:
        bootstrap = existing.bootstrap
    else:
        logs["Kafka"] = folder / "kafka" / "node-1" / "kafka.log"
        kafka = Kafka(folder / "kafka")
        undo.callback(kafka.close)
        with _timed("Apache Kafka 4.3.1"):
            kafka.start()
        bootstrap = kafka.bootstrap
    make_topics(bootstrap, existing=bool(existing.bootstrap))
    if existing.triton_url:
        triton_url, engines = existing.triton_url, existing_engines(existing.triton_url)
    else:
        logs["Triton"] = folder / "triton" / "triton.log"
        (folder / "triton").mkdir()
        triton = Triton(engine=engine, folder=folder / "triton")
        undo.callback(triton.close)
        with _timed(f"Triton 2.51, engine {engine}"):
            triton.start()
        triton_url, engines = triton.url, own_engines(triton.ports[2] if triton.ports else 0)
    (metrics_port,) = free_ports(1)
    addresses = {"KAFKA_BOOTSTRAP": bootstrap, "TRITON_URL": triton_url, "WORKER_PROCESSES": "2"}
    environment = service_environment(addresses, existing=bool(existing))
    logs["worker"] = folder / "worker.log"
    with _timed("two workers"):
        cwd = Path.cwd() if existing else folder
        worker = start_worker(environment, metrics_port, logs["worker"], cwd, remove_if_orphaned=[folder])
    undo.callback(worker.stop)
    return Services(bootstrap, engines, logs)


def _ask(services: Services, existing: Existing, folder: Path) -> list[str]:
    """Send every prompt, print the answers as they arrive. Returns what went wrong, in sentences."""
    if not existing:
        # The client reads the environment and `.env`, and neither shall matter here.
        for name in [n for n in os.environ if n.startswith(("KAFKA_", "TRITON_"))]:
            del os.environ[name]
        os.chdir(folder)
    failures = []
    with PromptClient(services.bootstrap, timeout_s=ANSWER_TIMEOUT_S) as client:
        _say(f"\n{len(PROMPTS)} prompts go to the topic inference-requests; the answers, as they arrive:\n")
        sent: dict[Future[Reply], tuple[str, float]] = {}
        for prompt in PROMPTS:
            asked = client.submit(prompt, max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
            sent[asked] = (prompt, time.monotonic())
        for future in as_completed(sent):
            prompt, at = sent[future]
            try:
                failures += _show(prompt, future.result(), time.monotonic() - at)
            except ReplyTimeout as late:
                failures.append(f"“{prompt}” got no answer: {client.explain(late)}")
    answered = len(PROMPTS) - len(failures)
    _say(f"{answered} of {len(PROMPTS)} prompts answered by {_model(services.engines)}.")
    if not services.engines:
        failures.append(
            "It could not be found out which engine answers: is the model gpt4_nano loaded there?"
        )
    if "canned" in services.engines:
        failures.append("The answers are prepared ones (engine canned): no real model was asked.")
    return failures


def _model(engines: set[str]) -> str:
    if engines == {"llama_cpp"}:
        return "SmolLM2-135M-Instruct, a real (and very small) language model, so do not trust its facts"
    return f"the engine {', '.join(sorted(engines)) or 'unknown'}"


def _show(prompt: str, reply: Reply, seconds: float) -> list[str]:
    print(f"  ▸ {prompt}")
    if reply.status != "ok" or reply.response is None:
        sentence = f"{reply.error.code}: {reply.error.message}" if reply.error else "an empty reply"
        print(f"    ✗ {sentence}\n")
        return [f"“{prompt}” was answered with an error: {sentence}."]
    print(
        textwrap.fill(
            " ".join(reply.response.split()), WIDTH, initial_indent="    ", subsequent_indent="    "
        )
    )
    usage = reply.usage
    counts = ""
    if usage is not None and usage.total_tokens is not None:
        counts = f"{usage.prompt_tokens} + {usage.completion_tokens} = {usage.total_tokens} tokens · "
    cut = f", cut at {MAX_TOKENS} tokens" if reply.finish_reason == "length" else ""
    print(f"    {counts}{seconds * 1000:.0f} ms from sent to read{cut}\n", flush=True)
    return []


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"  {what:<32}", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print()
        raise
    print(f"ready after {time.monotonic() - began:.1f} s", flush=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _failed(text: str, logs: dict[str, Path]) -> int:
    print(f"\n✗ {text}", file=sys.stderr)
    for name, log in logs.items():
        end = tail(log, 15)
        if end:
            print(f"\n--- the end of {name}'s log ---\n{end}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
