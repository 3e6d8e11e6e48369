"""Everybody who takes part."""

import sys
from collections.abc import Mapping
from functools import partial

from bench import environments
from bench.contenders import perf_analyzer
from bench.contenders.contender import Command, Contender, Place
from bench.contenders.peers import PEERS
from stack.cache import PROJECT

PROMPTBUS = "promptbus"
PROMPTBUS_2 = "promptbus, 2 processes"
BARE_LOOP = "bare tritonclient loop"
PERF_ANALYZER = "perf_analyzer"
ONE_AT_A_TIME = "one at a time"

_FIND_BENCH = {"PYTHONPATH": str(PROJECT)}


def promptbus_command(processes: int, place: Place, settings: Mapping[str, str] | None = None) -> Command:
    """The worker with its defaults, but for these settings; compiled, if it is."""
    environment = {
        "KAFKA_BOOTSTRAP": place.bootstrap,
        "KAFKA_REQUEST_TOPIC": place.requests,
        "KAFKA_REPLY_TOPIC": place.replies,
        "KAFKA_DEAD_LETTER_TOPIC": place.dead,
        "KAFKA_GROUP_ID": place.group,
        "TRITON_URL": place.triton_url,
        "TRITON_MODEL": place.model,
        "METRICS_PORT": "0",
        "LOG_LEVEL": "warning",
        "WORKER_PROCESSES": str(processes),
    }
    return Command(
        [sys.executable, "-m", "promptbus", "worker"],
        environment | environments.compiled_worker() | dict(settings or {}),
    )


def one_at_a_time_command(place: Place) -> Command:
    """Its program stands beside this file."""
    addresses = [place.bootstrap, place.requests, place.replies, place.triton_url, place.model]
    return Command([sys.executable, "-m", "bench.contenders.one_at_a_time", *addresses], _FIND_BENCH)


def bare_loop_command(place: Place) -> Command:
    """Its program stands beside this file."""
    numbers = [place.concurrency, place.prompt_bytes, place.max_tokens]
    program = [sys.executable, "-m", "bench.contenders.bare_loop", place.triton_url, place.model]
    return Command([*program, *map(str, numbers)], _FIND_BENCH)


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(PROMPTBUS, "the worker with its defaults, one process", partial(promptbus_command, 1)),
        Contender(
            PROMPTBUS_2, "the worker with WORKER_PROCESSES=2", partial(promptbus_command, 2), members=2
        ),
        Contender(
            BARE_LOOP,
            "tritonclient.http.aio on uvloop, batches of 8, at its best concurrency; no Kafka",
            bare_loop_command,
            through_kafka=False,
            sweep=(1, 2, 4, 8, 16, 32),
        ),
        Contender(
            PERF_ANALYZER,
            "NVIDIA's load generator in C++, batches of 8, at its best concurrency; no Kafka",
            perf_analyzer.command,
            through_kafka=False,
            prepare=perf_analyzer.prepare,
            sweep=tuple(range(1, 9)),
            may_be_missing=True,
        ),
        Contender(
            ONE_AT_A_TIME,
            "consume one, infer one, produce one, without a flush for each record",
            one_at_a_time_command,
        ),
        *PEERS,
    )
}
