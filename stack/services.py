"""Kafka, Triton and workers for `make up` and `make demo`: our own, or with EXISTING=1 those that are named."""

import http.client
import json
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from promptbus.settings import ClientConfig, KafkaSettings, load
from stack.errors import StackError
from stack.loopback import http_get
from stack.topics import create_topics

MODEL = "gpt4_nano"
ENGINES = ("llama_cpp", "canned")


@dataclass(frozen=True, slots=True)
class Existing:
    """Addresses given with EXISTING=1; empty: start one."""

    bootstrap: str
    triton_url: str

    def __bool__(self) -> bool:
        return bool(self.bootstrap or self.triton_url)


def existing_services() -> Existing:
    """What EXISTING=1 names; nothing without it, whatever else the environment holds. Raises StackError."""
    if os.environ.get("EXISTING", "") in ("", "0"):
        return Existing("", "")
    kafka = os.environ.get("KAFKA_BOOTSTRAP") or os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or ""
    named = Existing(kafka, os.environ.get("TRITON_URL", ""))
    if not named:
        raise StackError("EXISTING=1 needs KAFKA_BOOTSTRAP or TRITON_URL (or both) to say what to use.")
    return named


def chosen_engine() -> str:
    """ENGINE, or the real one. Raises StackError."""
    engine = os.environ.get("ENGINE") or ENGINES[0]
    if engine not in ENGINES:
        raise StackError(f"ENGINE={engine} is not known; it can be {' or '.join(ENGINES)}.")
    return engine


def make_topics(bootstrap: str, *, existing: bool) -> list[str]:
    """Create the topics that are missing; for a named cluster with the log-in that the environment has."""
    local: ClientConfig = {"bootstrap.servers": bootstrap}
    return create_topics(load(KafkaSettings).client_config() if existing else local)


def engines(metrics: str) -> set[str]:
    """The engines that answer, out of Triton's metrics: the running model knows, its configuration may differ."""
    return set(re.findall(r'^gpt4_nano_engine_info\{[^}]*engine="([^"]+)"[^}]*\} 1', metrics, re.MULTILINE))


def own_engines(metrics_port: int) -> set[str]:
    """Of a Triton of ours."""
    answer = http_get(metrics_port, "/metrics")
    return engines(answer.body.decode(errors="replace")) if answer is not None else set()


def existing_engines(triton_url: str) -> set[str]:
    """Of a Triton elsewhere, as its model's configuration says; empty if it does not say.

    Its metrics, which know better, are on a port that nobody named.
    """
    parts = urlsplit(triton_url if "://" in triton_url else f"http://{triton_url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=10)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/v2/models/{MODEL}/config")
        parameters = json.loads(connection.getresponse().read())["parameters"]
        return {str(parameters["engine"]["string_value"])}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return set()
    finally:
        connection.close()
