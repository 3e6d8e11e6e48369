"""The engines by name. A new one is a module here with an `open_engine(settings)`, and its line in ENGINES."""

from importlib import import_module

from gpt4_nano.engines.interface import Engine
from gpt4_nano.settings import ConfigurationError, Settings

ENGINES = {
    "canned": "gpt4_nano.engines.canned",
    "llama_cpp": "gpt4_nano.engines.llama_cpp",
}


def open_engine(settings: Settings) -> Engine:
    """Load and start the engine that the settings name; only its own packages are imported.

    Raises ConfigurationError for an unknown name, EngineUnavailable when something it needs is missing.
    """
    module = ENGINES.get(settings.engine)
    if module is None:
        raise ConfigurationError(
            f"there is no engine {settings.engine!r}; GPT4_NANO_ENGINE (or the parameter `engine` in config.pbtxt) "
            f"takes {' or '.join(sorted(ENGINES))}"
        )
    engine: Engine = import_module(module).open_engine(settings)
    return engine
