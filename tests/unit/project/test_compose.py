"""docker-compose.yml names ports, files, variables, versions and commands: each is what the code says."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from promptbus_worker.fleet import _KILL_MARGIN_S
from promptbus_worker.preflight import DEAD_LETTER_EXTRA_BYTES, Partition, Topic, judge_sizes
from promptbus_worker.settings import Settings
from stack.contents import COORDINATES
from stack.services import ENGINES, MODEL
from stack.topics import FILE as TOPICS_FILE
from stack.topics import project_topics
from tests.unit.project.compose import FILE, PROJECT, VARIABLE, compose, listeners, read, seconds

SERVICES = compose().services
KAFKA, TOPICS, TRITON, WORKER = (SERVICES[name] for name in ("kafka", "topics", "triton", "worker"))
PROMETHEUS, GRAFANA = SERVICES["prometheus"], SERVICES["grafana"]


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's variables nor its `.env` are the container's."""
    for name in os.environ:
        if name.lower() in Settings.model_fields or name.startswith(("KAFKA_", "TRITON_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def worker_settings(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the worker reads in its container."""
    for name, value in WORKER.environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


# -- variables, versions, what the top comment promises --------------------------------------------------------------


def test_the_top_comment_lists_every_variable_with_its_default() -> None:
    head = FILE.read_text().partition("\nname:")[0]
    documented = dict(re.findall(r"^#   ([A-Z][A-Z0-9_]+) +(\S+) ", head, re.MULTILINE))
    used = set(VARIABLE.findall(FILE.read_text()))
    assert used == set(documented.items())
    assert FILE.read_text().count("$") == len(VARIABLE.findall(FILE.read_text())), "each has a default"


def test_the_top_comment_lists_every_published_port() -> None:
    head = FILE.read_text().partition("\n# Variables")[0]
    named: set[int] = set()
    for first, last in re.findall(r"\b(\d{4})(?:-(\d{4}))?\b", head):
        named |= set(range(int(first), int(last or first) + 1))
    assert named == {port for service in SERVICES.values() for port in service.inner_ports}


def test_every_image_has_a_version() -> None:
    for name, service in SERVICES.items():
        if name != "worker":  # built here from this very version
            assert re.search(r":v?\d+(\.\d+)+$", service.image), service.image
    assert KAFKA.image == TOPICS.image
    (broker,) = re.findall(r"^org\.apache\.kafka:kafka_2\.13:(.*)$", COORDINATES.read_text(), re.MULTILINE)
    assert KAFKA.image == f"apache/kafka:{broker}", "the version that the tests use"


def test_triton_is_new_enough_and_the_version_that_the_dockerfile_names() -> None:
    assert TRITON.build is not None
    version = TRITON.build.args["TRITON_VERSION"]
    assert tuple(map(int, version.split("."))) >= (25, 7)
    assert f"ARG TRITON_VERSION={version}\n" in (PROJECT / "models" / "Dockerfile").read_text()
    assert TRITON.image.endswith(f":{version}")
    other = read({"TRITON_VERSION": "99.01"}).services["triton"]
    assert other.build is not None
    assert (other.image, other.build.args["TRITON_VERSION"]) == ("promptbus-triton:99.01", "99.01")


def test_the_model_gets_an_engine_that_exists() -> None:
    assert TRITON.environment == {"GPT4_NANO_ENGINE": ENGINES[0]}
    assert "canned" in ENGINES, "the other one that the top comment names"


# -- security --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    for port in SERVICES[name].ports:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_keeps_or_gains_privileges(name: str) -> None:
    assert SERVICES[name].cap_drop == ["ALL"]
    assert SERVICES[name].security_opt == ["no-new-privileges:true"]


def test_the_worker_is_nobody_and_can_write_to_memory_only() -> None:
    dockerfile = (PROJECT / "consumer" / "Dockerfile").read_text()
    assert WORKER.user is not None
    assert f"\nUSER {WORKER.user}\n" in dockerfile
    assert int(WORKER.user.partition(":")[0]) >= 1000
    assert WORKER.read_only
    assert WORKER.volumes == []
    assert [mount.partition(":")[0] for mount in WORKER.tmpfs] == ["/tmp"]
    # /dev/shm is a memory file system of every container, read-only or not.
    assert "PROMETHEUS_MULTIPROC_DIR=/dev/shm/" in dockerfile
    assert "PROMETHEUS_MULTIPROC_DIR" not in WORKER.environment


def test_triton_is_nobody_and_loads_no_model_by_request() -> None:
    dockerfile = (PROJECT / "models" / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert int(user) >= 1000
    assert '"--model-control-mode=none"' in dockerfile
    assert TRITON.command == []
    assert TRITON.volumes == []


# -- files and volumes -----------------------------------------------------------------------------------------------


def test_mounted_files_are_in_the_repository_and_read_only() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name, service in SERVICES.items():
        for volume in service.volumes:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert volume.endswith(":ro"), f"{name}: {volume}"
                path = source.removeprefix("./")
                assert re.search(rf"^{re.escape(path)}(/|$)", tracked.stdout, re.MULTILINE), path
                # Read by another user in the container.
                readable = (PROJECT / path).stat().st_mode & stat.S_IROTH
                assert readable, path
            else:
                assert source in compose().volumes


def test_every_volume_is_where_its_service_writes() -> None:
    assert KAFKA.mounts == {KAFKA.environment["KAFKA_LOG_DIRS"]: "kafka-data"}
    (storage,) = [c.partition("=")[2] for c in PROMETHEUS.command if c.startswith("--storage.tsdb.path=")]
    assert PROMETHEUS.mounts[storage] == "prometheus-data"
    assert GRAFANA.mounts["/var/lib/grafana"] == "grafana-data"
    assert set(compose().volumes) == {"kafka-data", "prometheus-data", "grafana-data"}


def test_our_own_images_are_built_from_the_root_and_never_pulled() -> None:
    built = {name: service.build for name, service in SERVICES.items() if service.build}
    assert set(built) == {"triton", "worker"}
    for name, build in built.items():
        assert SERVICES[name].pull_policy == "build"
        assert build.context == "."
        assert (PROJECT / build.dockerfile).is_file()


# -- the worker ------------------------------------------------------------------------------------------------------


def test_the_workers_variables_are_settings_and_load(worker_settings: Settings) -> None:
    assert {name.lower() for name in WORKER.environment} <= set(Settings.model_fields)
    assert worker_settings.models == (MODEL,)
    assert worker_settings.log_format == "json"


def test_variables_of_the_file_default_to_the_settings_defaults(worker_settings: Settings) -> None:
    defaults = Settings.model_construct()
    passed_on = [name for name, _ in VARIABLE.findall(FILE.read_text()) if name in WORKER.environment]
    assert passed_on == ["WORKER_PROCESSES", "LOG_LEVEL"]
    for name in passed_on:
        assert getattr(worker_settings, name.lower()) == getattr(defaults, name.lower())
    other = read({"WORKER_PROCESSES": "4", "LOG_LEVEL": "debug"}).services["worker"].environment
    assert (other["WORKER_PROCESSES"], other["LOG_LEVEL"]) == ("4", "debug")


def test_docker_waits_for_the_drain_and_for_the_supervisors_margin(worker_settings: Settings) -> None:
    assert seconds(WORKER.stop_grace_period) > worker_settings.worker_drain_s + _KILL_MARGIN_S


def test_the_worker_finds_triton_and_kafka(worker_settings: Settings) -> None:
    host, _, port = worker_settings.triton_url.removeprefix("http://").partition(":")
    assert host in SERVICES
    assert int(port) == 8000
    assert int(port) in TRITON.inner_ports
    assert worker_settings.kafka_bootstrap == "kafka:19092"


def test_the_workers_port_is_the_one_that_is_published(worker_settings: Settings) -> None:
    assert WORKER.inner_ports == {worker_settings.metrics_port} == exposed("consumer")
    assert worker_settings.metrics_host == "0.0.0.0", "reachable from outside of its container"


def exposed(folder: str) -> set[int]:
    """A Dockerfile's EXPOSE."""
    (line,) = re.findall(r"^EXPOSE (.*)$", (PROJECT / folder / "Dockerfile").read_text(), re.MULTILINE)
    return set(map(int, line.split()))


# -- order of start, health ------------------------------------------------------------------------------------------


def test_services_wait_for_what_says_that_it_is_healthy_or_done() -> None:
    for name, service in SERVICES.items():
        for other, dependency in service.depends_on.items():
            if dependency.condition == "service_healthy":
                assert SERVICES[other].healthcheck is not None, f"{name} would wait for {other} for ever"
            else:
                assert dependency.condition == "service_completed_successfully"
                assert SERVICES[other].restart == "no", "it would never be complete"
    assert set(WORKER.depends_on) == {"topics", "triton"}
    assert set(TOPICS.depends_on) == {"kafka"}


def test_every_service_that_stays_has_a_healthcheck_on_a_port_of_its_own() -> None:
    for name, service in SERVICES.items():
        if service.restart == "no":
            continue
        assert service.restart == "unless-stopped"
        assert service.healthcheck is not None, name
        command = " ".join(service.healthcheck.test)
        ports = {int(port) for port in re.findall(r":(\d{4,5})\b", command)}
        if name == "worker":
            assert "os.environ['METRICS_PORT']" in command
        elif name == "kafka":
            assert ports == {listeners(KAFKA.environment["KAFKA_LISTENERS"])["INSIDE"][1]}
        else:
            assert ports <= service.inner_ports
            assert len(ports) == 1


@pytest.mark.parametrize(("name", "folder"), [("worker", "consumer"), ("triton", "models")])
def test_the_healthchecks_are_those_of_the_images(name: str, folder: str) -> None:
    dockerfile = (PROJECT / folder / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", dockerfile, re.MULTILINE)
    healthcheck = SERVICES[name].healthcheck
    assert healthcheck is not None
    assert ["CMD", *json.loads(command)] == healthcheck.test


# -- Kafka and its topics --------------------------------------------------------------------------------------------


def test_kafka_sends_each_client_to_the_address_it_can_reach() -> None:
    listening = listeners(KAFKA.environment["KAFKA_LISTENERS"])
    advertised = listeners(KAFKA.environment["KAFKA_ADVERTISED_LISTENERS"])
    inside = WORKER.environment["KAFKA_BOOTSTRAP"]
    assert advertised == {"INSIDE": ("kafka", 19092), "OUTSIDE": ("localhost", 9092)}
    assert "{}:{}".format(*advertised["INSIDE"]) == inside == TOPICS.command[2]
    assert "{}:{}".format(*advertised["OUTSIDE"]) == Settings.model_fields["kafka_bootstrap"].default
    assert KAFKA.inner_ports == {advertised["OUTSIDE"][1]}, "the inner listener is not published"
    assert {name: port for name, (_, port) in listening.items() if name != "CONTROLLER"} == {
        name: port for name, (_, port) in advertised.items()
    }
    protocols = KAFKA.environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    assert {pair.partition(":")[0] for pair in protocols.split(",")} == set(listening)


def test_kafkas_controller_is_its_own_and_nobody_elses() -> None:
    host, port = listeners(KAFKA.environment["KAFKA_LISTENERS"])["CONTROLLER"]
    node = KAFKA.environment["KAFKA_NODE_ID"]
    assert KAFKA.environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"{node}@{host}:{port}"
    assert host == "127.0.0.1"


def test_the_cluster_id_is_one() -> None:
    cluster_id = KAFKA.environment["CLUSTER_ID"]
    assert not cluster_id.startswith("-")
    assert len(base64.urlsafe_b64decode(cluster_id + "==")) == 16


def test_the_topics_service_creates_what_make_up_creates(tmp_path: Path) -> None:
    shell, script, bootstrap, file = TOPICS.command
    assert shell == "bash"
    local = {target: PROJECT / source for target, source in TOPICS.mounts.items()}
    assert local[file] == TOPICS_FILE
    calls = tmp_path / "calls"
    stand_in = tmp_path / "kafka-topics.sh"
    # It reads its standard input, as a careless program might.
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncat > /dev/null\n')
    stand_in.chmod(0o755)
    subprocess.run(
        [shell, local[script], bootstrap, local[file]],
        env={**os.environ, "KAFKA_TOPICS_COMMAND": str(stand_in)},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert calls.read_text().splitlines() == [
        f"--bootstrap-server {bootstrap} --create --if-not-exists --topic {name} --partitions {topic.partitions}"
        + "".join(f" --config {key}={value}" for key, value in topic.configuration.items())
        for name, topic in project_topics().items()
    ]


def test_a_topic_that_cannot_be_created_fails_the_service(tmp_path: Path) -> None:
    _, script, bootstrap, file = TOPICS.command
    done = subprocess.run(
        ["bash", PROJECT / TOPICS.mounts[script], bootstrap, PROJECT / TOPICS.mounts[file]],
        env={**os.environ, "KAFKA_TOPICS_COMMAND": "false"},
        check=False,
    )
    assert done.returncode != 0


def test_the_topics_are_those_of_the_settings_and_large_enough(worker_settings: Settings) -> None:
    topics = project_topics()
    request, reply, dead_letter = (
        worker_settings.kafka_request_topic,
        worker_settings.kafka_reply_topic,
        worker_settings.kafka_dead_letter_topic,
    )
    assert list(topics) == [request, reply, dead_letter]
    limits = {name: int(topic.configuration["max.message.bytes"]) for name, topic in topics.items()}
    assert limits[request] >= worker_settings.request_max_bytes + 4096, "its key and headers fit, too"
    assert limits[dead_letter] >= limits[request] + DEAD_LETTER_EXTRA_BYTES
    seen = {name: Topic(name, [Partition(0, 1, 1, 1)], None, limits[name], 1) for name in topics}
    assert judge_sizes(seen, worker_settings) == [], "the doctor has nothing to say"
    assert f"more than {topics[request].partitions}," in FILE.read_text(), (
        "the top comment on WORKER_PROCESSES"
    )
