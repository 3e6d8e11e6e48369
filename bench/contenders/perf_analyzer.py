"""NVIDIA's load generator, in C++: how fast Triton itself can go on this machine, whoever asks.

It comes with the wheel of an older tritonclient, in an environment of its own. It is counted like everybody else, at
Triton: its own table would need longer windows until it calls them stable.
"""

import json
from pathlib import Path

from bench import environments, prompts
from bench.contenders.contender import Command, Place

NAME = "perf-analyzer"
BATCH = 8
PREPARED = 256


def prepare() -> None:
    """Raises StackError."""
    environments.install(NAME, 40)
    environments.install_libb64()


def command(place: Place) -> Command:
    """It sends the same prompts in turn until it is killed."""
    data = place.folder / "prompts.json"
    rows = [
        {
            "prompt": [prompts.prompt(number, place.prompt_bytes)],
            "max_tokens": [place.max_tokens],
            "temperature": [0.7],
        }
        for number in range(PREPARED)
    ]
    data.write_text(json.dumps({"data": rows}))
    folder = environments.environment(NAME).require()
    libraries = [str(found) for found in folder.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")]
    libb64 = environments.libb64_folder()
    libraries += [str(libb64)] if libb64 else []
    argv: list[str | Path] = [
        folder / "bin" / "perf_analyzer",
        *("-m", place.model, "-u", place.triton_url, "-i", "http", "-b", str(BATCH)),
        *("--input-data", data, "--concurrency-range", str(place.concurrency)),
        # One measurement that does not end before we end it.
        *("--measurement-interval", "600000", "--max-trials", "1"),
    ]
    return Command(argv, {"LD_LIBRARY_PATH": ":".join(libraries)})
