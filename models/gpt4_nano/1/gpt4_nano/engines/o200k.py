"""Counting tokens with o200k_base, the vocabulary of OpenAI's GPT-4o and later models, from a file on disk."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

from gpt4_nano.engines.interface import EngineUnavailable

# tiktoken looks for the vocabulary under the SHA-1 of the address from which it would fetch it.
RANKS_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"

# tiktoken's regular expression overflows its stack on some 400,000 spaces in a row; it is sure to work on this many
# characters, in time that grows linearly (100 KB of one letter: 25 ms).
SEGMENT_CHARS = 65_536


class Vocabulary(Protocol):
    """The part of tiktoken.Encoding that is used."""

    def encode_ordinary(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


def count_tokens(vocabulary: Vocabulary, text: str) -> int:
    """Exact up to SEGMENT_CHARS characters; beyond, each cut can add one or two tokens."""
    if len(text) <= SEGMENT_CHARS:
        return len(vocabulary.encode_ordinary(text))
    return sum(
        len(vocabulary.encode_ordinary(text[start : start + SEGMENT_CHARS]))
        for start in range(0, len(text), SEGMENT_CHARS)
    )


def load_vocabulary(environ: Mapping[str, str] = os.environ) -> Vocabulary:
    """Raises EngineUnavailable if tiktoken or its file is missing. Never downloads: a model that starts must not."""
    folder = environ.get("TIKTOKEN_CACHE_DIR", "")
    try:
        tiktoken = import_module("tiktoken")
    except ImportError:
        raise EngineUnavailable(
            "the engine canned counts tokens with the Python package tiktoken, which is not installed here; "
            "get it with: python -m pip install tiktoken"
        ) from None
    if not folder or not Path(folder, RANKS_FILE).is_file():
        raise EngineUnavailable(
            f"the vocabulary o200k_base is missing: TIKTOKEN_CACHE_DIR is {folder or 'not set'!r} and should be a folder "
            f"with the file {RANKS_FILE}; where there is internet this fetches it: "
            "TIKTOKEN_CACHE_DIR=<folder> python -c \"import tiktoken; tiktoken.get_encoding('o200k_base')\""
        )
    vocabulary: Vocabulary = tiktoken.get_encoding("o200k_base")
    return vocabulary
