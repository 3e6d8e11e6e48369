"""The model as a program, without Triton: for trying an engine, a prompt or new weights."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt4_nano.engines import ENGINES, open_engine
from gpt4_nano.engines.interface import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    EngineUnavailable,
    Prompt,
    Refused,
    problem_of,
)
from gpt4_nano.settings import ConfigurationError, read_settings

MODEL = Path(__file__).resolve().parent.parent / "model.py"
PROJECT = MODEL.parents[3]


def main(arguments: Sequence[str]) -> int:
    """Exit code 0: answered · 1: no answer · 2: usage. The answer goes to stdout, all else to stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    prompt = Prompt(options.prompt, options.max_tokens, options.temperature, options.top_p)
    problem = problem_of(prompt)
    if problem:
        parser.error(problem)
    try:
        # Half of the cores, as each of the two instances in Triton: on a busy machine llama.cpp with a thread per core
        # is many times slower than with half of them.
        settings = read_settings(os.environ, {}, instances=2)
        engine = open_engine(replace(settings, engine=options.engine or settings.engine))
    except ConfigurationError as error:
        parser.error(str(error))
    except EngineUnavailable as error:
        _continue_with_what_setup_installed(arguments)
        print(f"{parser.prog}: {error}\n{_advice(options.engine)}", file=sys.stderr)
        return 1
    try:
        (outcome,) = engine.answer([prompt])
    finally:
        engine.close()
    if isinstance(outcome, Refused):
        print(f"{parser.prog}: {outcome.reason}", file=sys.stderr)
        return 1
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # stdout is a TextIOWrapper here
    print(outcome.text)
    print(
        f"({outcome.prompt_tokens} prompt + {outcome.completion_tokens} completion tokens, {outcome.finish_reason})",
        file=sys.stderr,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="model.py",
        description="Answer one prompt with an engine of gpt4_nano, without Triton.",
        epilog='example: python models/gpt4_nano/1/model.py "What is AI?" --max-tokens 60',
    )
    parser.add_argument("prompt", help="what to ask")
    parser.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        help="llama_cpp: a real, small language model; canned: prepared answers, for tests "
        "(default: GPT4_NANO_ENGINE, or llama_cpp)",
    )
    number = "(default: %(default)s)"
    parser.add_argument(
        "--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, metavar="N", help=f"at least 1 {number}"
    )
    parser.add_argument(
        "--temperature", type=float, default=DEFAULT_TEMPERATURE, metavar="T", help=f"0 to 2 {number}"
    )
    parser.add_argument(
        "--top-p", type=float, default=DEFAULT_TOP_P, metavar="P", help=f"above 0, at most 1 {number}"
    )
    return parser


def _continue_with_what_setup_installed(arguments: Sequence[str]) -> None:
    """In a checkout after `make setup`: run again with the interpreter and the files that were installed for Triton.

    Does not return if that is possible.
    """
    if not (PROJECT / "stack" / "contents.py").is_file():
        return
    sys.path.append(str(PROJECT))
    from stack import contents

    environment, files = contents.triton_environment(), contents.model_files()
    if not (environment.present and files.present):
        return
    python = environment.path / "venv" / "bin" / "python3"
    found = {
        "GPT4_NANO_GGUF": str(files.path / contents.GGUF),
        "TIKTOKEN_CACHE_DIR": str(files.path / "tiktoken"),
    }
    if Path(sys.executable) == python and all(os.environ.get(name) for name in found):
        return
    missing = {name: path for name, path in found.items() if not os.environ.get(name)}
    os.execve(python, [str(python), str(MODEL), *arguments], {**os.environ, **missing})  # noqa: S606 - our own file, and no shell is wanted


def _advice(engine: str | None) -> str:
    advice = "In a checkout of promptbus, `make setup` and then .venv/bin/python brings everything."
    if engine != "canned":
        advice += (
            "\nWithout a language model: --engine canned gives prepared answers (it needs tiktoken only)."
        )
    return advice
