"""The stack itself, for real: side by side, stopped, killed, started again, in each other's way, and orphaned."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.errors import PortTaken, StartFailed
from stack.kafka import Kafka
from stack.loopback import http_get, kafka_brokers
from stack.ports import HOST, free_ports
from stack.topics import NewTopicSettings, create_topics
from stack.triton import Triton

CONFIGURATION = """\
name: "echo"
backend: "python"
max_batch_size: 8
input [ { name: "prompt" data_type: TYPE_STRING dims: [1] } ]
output [ { name: "response" data_type: TYPE_STRING dims: [1] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""
MODEL = """\
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        prompts = [pb.get_input_tensor_by_name(request, "prompt").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("response", prompt)]) for prompt in prompts]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "config.pbtxt").write_text(CONFIGURATION)
    (folder / "echo" / "1" / "model.py").write_text(MODEL)
    (folder / "README.md").write_text("Files beside the models do no harm.")
    (folder / "Dockerfile").write_text("FROM scratch")
    return folder


@pytest.fixture
def _dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(*pids: int) -> bool:
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def topics(kafka: Kafka) -> set[str]:
    from confluent_kafka.admin import AdminClient

    return set(AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=20).topics)


def shared_memory(triton: Triton) -> list[Path]:
    return list(Path("/dev/shm").glob(triton.shm_prefix + "*"))


class TestKafka:
    def test_two_live_side_by_side_and_come_back_with_their_data(self) -> None:
        with Kafka() as one, Kafka() as other:
            assert one.bootstrap != other.bootstrap
            create_topics({"bootstrap.servers": one.bootstrap}, {"kept": NewTopicSettings(2)})
            assert "kept" in topics(one)
            assert "kept" not in topics(other)
            address = one.bootstrap

            one.stop()
            assert not one.running
            assert kafka_brokers(one.port) == set()
            one.start()
            one.kill()
            assert not one.running
            one.start()

            assert one.bootstrap == address
            assert "kept" in topics(one)
            folders, pids = [one.data_dir, other.data_dir], [one.pid, other.pid]
        assert gone(*pids)
        assert not any(folder is not None and folder.exists() for folder in folders)

    def test_a_named_folder_keeps_its_data(self, tmp_path: Path) -> None:
        with Kafka(tmp_path / "data") as kafka:
            create_topics({"bootstrap.servers": kafka.bootstrap}, {"kept": NewTopicSettings(1)})
        with Kafka(tmp_path / "data") as kafka:
            assert "kept" in topics(kafka)

    def test_one_of_three_may_die(self) -> None:
        with Kafka(brokers=3, heap_mb=384) as kafka:
            create_topics({"bootstrap.servers": kafka.bootstrap}, {"copied": NewTopicSettings(1)})
            kafka.brokers[0].kill()
            wait_for(lambda: kafka_brokers(kafka.brokers[1].port) == {2, 3})
            assert "copied" in topics(kafka)
            kafka.brokers[0].start()
            wait_for(lambda: kafka_brokers(kafka.brokers[1].port) == {1, 2, 3})
            kafka.stop()
            assert not any(broker.running for broker in kafka.brokers)

    def test_a_taken_port_is_told_with_its_holder(self) -> None:
        with socket.socket() as listener:
            listener.bind((HOST, free_ports(1)[0]))
            listener.listen()
            port = listener.getsockname()[1]
            with pytest.raises(
                PortTaken, match=rf"Port {port} on 127\.0\.0\.1, wanted for Kafka, is taken by .*pid"
            ):
                Kafka(port=port).start()

    def test_a_port_lost_between_the_look_and_the_bind_is_replaced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as listener:
            listener.bind((HOST, free_ports(1)[0]))
            listener.listen()
            taken = listener.getsockname()[1]
            real, offered = free_ports, [[taken, *free_ports(1)]]
            monkeypatch.setattr("stack.kafka.free_ports", lambda n: offered.pop() if offered else real(n))
            monkeypatch.setattr("stack.broker.require_free", lambda port, what: None)
            with Kafka() as kafka:
                assert kafka.port != taken
                assert not offered


class TestTriton:
    def test_two_live_side_by_side_and_come_back(self, repository: Path) -> None:
        with Triton(repository) as one, Triton(repository) as other:
            assert one.url != other.url
            assert len(one.stubs()) == len(other.stubs()) == 2
            address = one.url

            one.stop()
            assert shared_memory(one) == []
            assert other.ready
            assert shared_memory(other) != []
            one.start()
            stubs = one.stubs()
            one.kill()
            assert gone(*stubs)
            assert shared_memory(one) == []
            one.start()

            assert one.url == address
            assert one.ready
            pids = [one.pid, other.pid, *one.stubs(), *other.stubs()]
            folders = [one.folder, other.folder]
        assert gone(*pids)
        assert shared_memory(one) + shared_memory(other) == []
        assert not any(folder is not None and folder.exists() for folder in folders)

    def test_killing_the_stubs_reaches_only_its_own(self, repository: Path) -> None:
        with Triton(repository) as one, Triton(repository) as other:
            assert one.kill_stubs() == 2
            wait_for(lambda: one.stubs() == [])
            assert len(other.stubs()) == 2
            assert one.ready  # which is what makes dead stubs hard to see

    def test_a_taken_port_is_told_with_its_holder(self, repository: Path) -> None:
        with socket.socket() as listener:
            listener.bind((HOST, free_ports(1)[0]))
            listener.listen()
            port = listener.getsockname()[1]
            grpc, metrics = free_ports(2)
            with pytest.raises(
                PortTaken, match=rf"Port {port} .* wanted for Triton's HTTP, is taken by .*pid"
            ):
                Triton(repository, ports=(port, grpc, metrics)).start()

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_a_port_lost_between_the_look_and_the_bind_is_replaced(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, which: int
    ) -> None:
        with socket.socket() as listener:
            listener.bind((HOST, free_ports(1)[0]))
            listener.listen()
            taken = listener.getsockname()[1]
            first = free_ports(3)
            first[which] = taken
            offered = [first]
            monkeypatch.setattr(
                "stack.triton.free_ports", lambda n: offered.pop() if offered else free_ports(n)
            )
            with Triton(repository) as triton:
                assert taken not in (triton.ports or ())
                assert not offered

    def test_a_model_that_cannot_load_is_told_with_its_reason(self, repository: Path) -> None:
        (repository / "echo" / "1" / "model.py").write_text("raise RuntimeError('the weights are missing')")
        triton = Triton(repository)
        with pytest.raises(StartFailed, match="the weights are missing"):
            triton.start()
        assert triton.stubs() == []
        assert shared_memory(triton) == []
        assert triton.folder is None

    def test_a_missing_libpython_is_told(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library = "libpython{}.{}.so".format(*sys.version_info)
        # The stub finds another one in the system's own folders on some machines: hide it with a broken one.
        broken = repository / "lib"
        broken.mkdir()
        (broken / f"{library}.1.0").write_bytes(b"")
        triton = Triton(repository, env={"LD_LIBRARY_PATH": str(broken)})
        with pytest.raises(StartFailed, match=rf"needs {library}|libpython"):
            triton.start()


@pytest.mark.usefixtures("_dead_proxy")
def test_a_dead_proxy_disturbs_nothing_on_loopback(repository: Path) -> None:
    with Kafka() as kafka, Triton(repository) as triton:
        assert kafka_brokers(kafka.port) == {1}
        assert triton.ready
        answer = http_get(int(triton.url.rpartition(":")[2]), "/v2/health/ready")
        assert answer is not None
        assert answer.status == 200


# Starts both, prints what runs, and waits to be ended.
STARTER = """
import sys, time
from pathlib import Path
from stack.kafka import Kafka
from stack.triton import Triton
with Kafka() as kafka, Triton(Path(sys.argv[1])) as triton:
    print(kafka.pid, triton.pid, *triton.stubs(), flush=True)
    print(kafka.data_dir, triton.folder, triton.shm_prefix, flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_a_starter_that_is_killed_or_interrupted(
    repository: Path, number: signal.Signals
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, repository],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        data, folder, prefix = starter.stdout.readline().split()
        assert len(pids) == 4
        starter.send_signal(number)
        starter.wait(30)
    wait_for(lambda: gone(*pids))
    wait_for(lambda: not Path(data).exists() and not Path(folder).exists())
    assert list(Path("/dev/shm").glob(prefix + "*")) == []


def test_stubs_do_not_survive_a_server_whose_guard_is_killed(repository: Path) -> None:
    triton = Triton(repository).start()
    try:
        pids = [triton.pid, *triton.stubs()]
        assert triton.process is not None
        os.kill(triton.process.guard_pid, signal.SIGKILL)
        wait_for(lambda: gone(*pids))
    finally:
        triton.close()
        for region in shared_memory(triton):
            region.unlink()
