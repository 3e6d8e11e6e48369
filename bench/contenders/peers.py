"""Frameworks that could do the same job, each used as its documentation advises, in an environment of its own."""

import json
from functools import partial
from pathlib import Path

from bench import environments, prompts
from bench.contenders.contender import Command, Contender, Place
from stack.ports import free_ports

PROGRAMS = Path(__file__).resolve().parents[1] / "peers"
FASTSTREAM, QUIX, MLSERVER = "peer-faststream", "peer-quix", "peer-mlserver"


def _faststream(mode: str, place: Place) -> Command:
    program = PROGRAMS / "faststream_app.py"
    argv: list[str | Path] = [environments.python_of(FASTSTREAM), "-I", program, *_addresses(place), mode]
    return Command(argv)


def _quix(place: Place) -> Command:
    return Command([environments.python_of(QUIX), "-I", PROGRAMS / "quix_app.py", *_addresses(place)])


def _mlserver(place: Place) -> Command:
    """It reads its settings from a folder, and its runtime through PYTHONPATH."""
    http, grpc, metrics = free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_dir": str(place.folder),
        "debug": False,
        # Its models run in the server's process: what they do here is waiting for Triton.
        "parallel_workers": 0,
        "kafka_enabled": True,
        "kafka_servers": place.bootstrap,
        "kafka_topic_input": place.requests,
        "kafka_topic_output": place.replies,
    }
    model = {
        "name": "triton",
        "implementation": "mlserver_runtime.TritonModel",
        "max_batch_size": 8,
        "max_batch_time": 0.01,
        "parameters": {"extra": {"triton_url": place.triton_url, "triton_model": place.model}},
    }
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    start = "from mlserver.cli import main; main()"
    argv: list[str | Path] = [environments.python_of(MLSERVER), "-c", start, "start", place.folder]
    return Command(argv, {"PYTHONPATH": str(PROGRAMS)})


def _addresses(place: Place) -> list[str]:
    return [place.bootstrap, place.requests, place.replies, place.triton_url, place.model]


_peer = partial(Contender, is_peer=True, may_be_missing=True)
PEERS = (
    _peer(
        "FastStream, per message",
        "a subscriber that answers one record at a time and does not wait for each publish's confirmation",
        partial(_faststream, "message"),
        prepare=partial(environments.install, FASTSTREAM, 50),
    ),
    _peer(
        "FastStream, batch of 8",
        "its batch subscriber, one call to Triton for up to 8 records",
        partial(_faststream, "batch"),
        prepare=partial(environments.install, FASTSTREAM, 50),
    ),
    _peer(
        "Quix Streams",
        "a streaming data frame whose function calls Triton",
        _quix,
        prepare=partial(environments.install, QUIX, 60),
    ),
    _peer(
        "MLServer's Kafka endpoint",
        "a custom runtime that calls Triton, with adaptive batching up to 8",
        _mlserver,
        prepare=partial(environments.install, MLSERVER, 70),
        record=prompts.tensor_request,
        reads_new_only_after="Reading messages from consumer",
    ),
)
