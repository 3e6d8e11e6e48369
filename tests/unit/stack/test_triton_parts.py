"""What of Triton's start can be seen without one: messages, Docker's command line, engines, the repository."""

from pathlib import Path

import pytest

from stack import docker
from stack.errors import Crashed, PortTaken, StackError, StartFailed
from stack.ports import free_ports
from stack.services import Existing, chosen_engine, engines, existing_services
from stack.triton import MODELS, Triton, _explain
from stack.worker import service_environment

PORTS = (18000, 18001, 18002)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            "stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open",
            "needs libpython3.11.so.1.0",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "Memory ran out"),
        ("No space left on device", "/dev/shm"),
        ("failed to load 'gpt4_nano' version 1: Internal: ValueError: no such engine", "no such engine"),
        ("I all is well", ""),
    ],
)
def test_a_log_is_explained(log: str, says: str) -> None:
    assert says in _explain(log, PORTS)


def test_a_taken_port_in_the_log_is_its_own_error() -> None:
    with pytest.raises(PortTaken, match="Port 18000 "):
        _explain(
            "E failed to start HTTP service: Unavailable - Socket '127.0.0.1:18000' already in use", PORTS
        )


CRASH = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"


def test_a_crash_of_the_python_backend_is_its_own_error() -> None:
    with pytest.raises(Crashed, match="lock_exception"):
        _explain(CRASH, PORTS)


@pytest.mark.parametrize(
    ("failure", "named", "starts"),
    [
        (Crashed, False, 5),
        (Crashed, True, 5),
        (PortTaken, False, 5),
        (PortTaken, True, 1),
        (StartFailed, False, 1),
    ],
)
def test_a_start_is_repeated_where_that_may_help(
    failure: type[StackError], named: bool, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, int, int]] = []

    def launch(_: Triton, on: tuple[int, int, int]) -> None:
        tried.append(on)
        raise failure("no")

    monkeypatch.setattr(Triton, "_launch", launch)
    http, grpc, metrics = free_ports(3)
    ports = (http, grpc, metrics)
    with pytest.raises(failure):
        Triton(ports=ports if named else None).start()
    assert len(tried) == starts
    assert not named or set(tried) == {ports}


def test_a_start_that_succeeds_at_the_second_attempt_is_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Exception | None] = [Crashed("no"), None]

    def launch(_: Triton, __: tuple[int, int, int]) -> None:
        if failure := outcomes.pop(0):
            raise failure

    monkeypatch.setattr(Triton, "_launch", launch)
    triton = Triton().start()
    assert outcomes == []
    assert triton.ports is not None
    triton.close()


def test_only_folders_with_a_configuration_are_models(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "notes").mkdir()
    (tmp_path / "b" / "1").mkdir(parents=True)
    (tmp_path / "b" / "config.pbtxt").write_text("")
    assert Triton(tmp_path).models() == ["b"]


def test_the_project_has_its_model() -> None:
    assert "gpt4_nano" in Triton(MODELS).models()


def test_docker_publishes_on_loopback_only_and_passes_the_models_settings() -> None:
    env = {"GPT4_NANO_ENGINE": "canned", "GPT4_NANO_GGUF": "/here", "SECRET": "x"}
    command = docker.run_command("promptbus_1", Path("/m"), PORTS, env, ["--log-verbose=1"])
    assert "--publish=127.0.0.1:18000:8000" in command
    assert "--publish=127.0.0.1:18002:8002" in command
    assert "--env=GPT4_NANO_ENGINE=canned" in command
    assert not any("SECRET" in part or "GGUF" in part for part in command)
    assert command.index(docker.IMAGE) < command.index("tritonserver") < command.index("--log-verbose=1")


def test_the_running_engines_are_read_from_the_metrics() -> None:
    metrics = '# HELP gpt4_nano_engine_info x\ngpt4_nano_engine_info{engine="llama_cpp"} 1\nother 3\n'
    assert engines(metrics) == {"llama_cpp"}
    assert engines("other 3\n") == set()


class TestExisting:
    def test_is_nothing_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KAFKA_BOOTSTRAP", "production:9092")
        monkeypatch.setenv("TRITON_URL", "production:8000")
        monkeypatch.delenv("EXISTING", raising=False)
        assert existing_services() == Existing("", "")
        seen = service_environment({"KAFKA_BOOTSTRAP": "127.0.0.1:1"}, existing=False)
        assert seen["KAFKA_BOOTSTRAP"] == "127.0.0.1:1"
        assert "TRITON_URL" not in seen

    def test_names_what_the_environment_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXISTING", "1")
        monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "mine:9092")
        monkeypatch.delenv("TRITON_URL", raising=False)
        assert existing_services() == Existing("mine:9092", "")

    def test_must_name_something(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXISTING", "1")
        for name in ("KAFKA_BOOTSTRAP", "KAFKA_BOOTSTRAP_SERVERS", "TRITON_URL"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(Exception, match="EXISTING=1 needs"):
            existing_services()


def test_an_unknown_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", "gpt5")
    with pytest.raises(Exception, match="llama_cpp or canned"):
        chosen_engine()
