"""The worker's settings: where they come from, what contradicts what, what may not be set, what never prints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from promptbus.settings import REFUSED_OVERRIDES, load
from promptbus_worker.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the machine's variables nor its `.env` are ours."""
    for name in os.environ:
        if name.startswith(
            ("KAFKA_", "TRITON_", "BATCH_", "WORKER_", "REQUEST_", "CONCURRENCY_", "METRICS_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def sentence(**environment: str) -> str:
    """Why these are refused."""
    with pytest.raises(ValidationError) as refusal:
        from_environment(**environment)
    (error,) = refusal.value.errors()
    return str(error["msg"])


def from_environment(**environment: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return only_environment()


def only_environment() -> Settings:
    return Settings(_env_file=None)


# -- where they come from


@pytest.mark.parametrize("name", ["KAFKA_BOOTSTRAP", "KAFKA_BOOTSTRAP_SERVERS"])
def test_both_names_of_the_brokers_are_understood(name: str) -> None:
    assert from_environment(**{name: "k1:9092,k2:9092"}).kafka_bootstrap == "k1:9092,k2:9092"


def test_the_shorter_name_wins() -> None:
    both = from_environment(KAFKA_BOOTSTRAP="short:1", KAFKA_BOOTSTRAP_SERVERS="long:1")
    assert both.kafka_bootstrap == "short:1"


def test_the_environment_beats_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TRITON_MODEL=from_file\nBATCH_MAX_SIZE=3\n")
    monkeypatch.setenv("TRITON_MODEL", "from_environment")
    settings = load(Settings)
    assert settings.models == ("from_environment",)
    assert settings.batch_max_size == 3


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert from_environment(TRITON_MODEL="", BATCH_MAX_SIZE="", WORKER_INSTANCE="").models == ("gpt4_nano",)


def test_unrelated_variables_are_left_alone() -> None:
    from_environment(KAFKA_HOME="/opt/kafka", TRITON_SOMETHING="else")


def test_models_are_a_list_and_the_first_is_the_default() -> None:
    assert from_environment(TRITON_MODEL=" a, b ,c").models == ("a", "b", "c")


def test_the_instance_is_named_after_host_and_port_unless_named() -> None:
    assert from_environment(METRICS_PORT="8123").instance.endswith("-8123")
    assert from_environment(WORKER_INSTANCE="pod-7").instance == "pod-7"


def test_a_legitimate_call_never_counts_as_stuck_by_default() -> None:
    assert from_environment().stuck_s == 60
    assert from_environment(TRITON_TIMEOUT_S="300").stuck_s == 330
    assert from_environment(TRITON_TIMEOUT_S="300", WORKER_STUCK_S="301").stuck_s == 301


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = only_environment()
    with pytest.raises(ValidationError):
        settings.triton_url = "elsewhere:1"


def test_metrics_are_for_this_machine_alone_by_default() -> None:
    assert only_environment().metrics_host == "127.0.0.1"


# -- contradictions


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (
            {"CONCURRENCY_MIN": "5", "CONCURRENCY_MAX": "4"},
            ["CONCURRENCY_MIN (5)", "CONCURRENCY_MAX (4)"],
        ),
        (
            {"BATCH_MAX_BYTES": "1000", "REQUEST_MAX_BYTES": "1001"},
            ["BATCH_MAX_BYTES (1000)", "REQUEST_MAX_BYTES (1001)"],
        ),
        (
            {"WORKER_REVOKE_S": "10", "KAFKA_SESSION_TIMEOUT_MS": "10000"},
            ["WORKER_REVOKE_S (10 s)", "KAFKA_SESSION_TIMEOUT_MS (10000 ms)"],
        ),
        (
            {"WORKER_STUCK_S": "30", "TRITON_TIMEOUT_S": "30"},
            ["WORKER_STUCK_S (30 s)", "TRITON_TIMEOUT_S (30 s)"],
        ),
        (
            {"KAFKA_REQUEST_TOPIC": "same", "KAFKA_REPLY_TOPIC": "same"},
            ["KAFKA_REQUEST_TOPIC", "KAFKA_REPLY_TOPIC"],
        ),
        (
            {"KAFKA_REQUEST_TOPIC": "same", "KAFKA_DEAD_LETTER_TOPIC": "same"},
            ["KAFKA_REQUEST_TOPIC", "KAFKA_DEAD_LETTER_TOPIC"],
        ),
        (
            {"KAFKA_REPLY_TOPIC": "same", "KAFKA_DEAD_LETTER_TOPIC": "same"},
            ["KAFKA_REPLY_TOPIC", "KAFKA_DEAD_LETTER_TOPIC"],
        ),
        (
            {"KAFKA_REPLY_TOPICS_ALLOWED": "a, inference-requests"},
            ["KAFKA_REPLY_TOPICS_ALLOWED", "KAFKA_REQUEST_TOPIC"],
        ),
        (
            {"KAFKA_REPLY_TOPICS_ALLOWED": "inference-requests.dlq"},
            ["KAFKA_REPLY_TOPICS_ALLOWED", "KAFKA_DEAD_LETTER_TOPIC"],
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "PLAIN"},
            ["KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_USERNAME"],
        ),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, ["KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_MECHANISM"]),
        (
            {"KAFKA_GROUP_PROTOCOL": "consumer", "KAFKA_SESSION_TIMEOUT_MS": "45000"},
            ["KAFKA_GROUP_PROTOCOL=consumer", "KAFKA_SESSION_TIMEOUT_MS"],
        ),
        (
            {"KAFKA_GROUP_PROTOCOL": "consumer", "KAFKA_CONSUMER__HEARTBEAT_INTERVAL_MS": "500"},
            ["KAFKA_GROUP_PROTOCOL=consumer", "KAFKA_CONSUMER__HEARTBEAT_INTERVAL_MS"],
        ),
        (
            {"KAFKA_GROUP_PROTOCOL": "consumer", "KAFKA_CLIENT__GROUP_PROTOCOL_TYPE": "consumer"},
            ["KAFKA_GROUP_PROTOCOL=consumer", "KAFKA_CLIENT__GROUP_PROTOCOL_TYPE"],
        ),
        (
            {"KAFKA_CONSUMER__GROUP_REMOTE_ASSIGNOR": "range"},
            ["KAFKA_GROUP_PROTOCOL=classic", "KAFKA_CONSUMER__GROUP_REMOTE_ASSIGNOR"],
        ),
        (
            {"WORKER_DELIVERY": "transactional", "METRICS_PORT": "0"},
            ["WORKER_DELIVERY=transactional", "METRICS_PORT=0", "WORKER_INSTANCE"],
        ),
        (
            {"WORKER_DELIVERY": "transactional", "KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS": "60000"},
            ["KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS (60000)", "KAFKA_SESSION_TIMEOUT_MS (45000)"],
        ),
        (
            {"WORKER_DELIVERY": "transactional", "KAFKA_PRODUCER__MESSAGE_TIMEOUT_MS": "10001"},
            [
                "KAFKA_PRODUCER__MESSAGE_TIMEOUT_MS (10001)",
                "KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS (10000)",
            ],
        ),
        ({"TRITON_MODEL": "a,b,a"}, ["TRITON_MODEL"]),
        ({"TRITON_MODEL": " , "}, ["TRITON_MODEL"]),
    ],
)
def test_a_contradiction_is_refused_in_a_sentence_that_names_both(
    environment: dict[str, str], named: list[str]
) -> None:
    message = sentence(**environment)
    assert all(name in message for name in named), message


@pytest.mark.parametrize(
    "environment",
    [
        {"CONCURRENCY_MIN": "4", "CONCURRENCY_MAX": "4"},
        {"BATCH_MAX_BYTES": "1000", "REQUEST_MAX_BYTES": "1000"},
        {"WORKER_REVOKE_S": "9.9", "KAFKA_SESSION_TIMEOUT_MS": "10000"},
        # How long a session is is the brokers' matter then.
        {"WORKER_REVOKE_S": "60", "KAFKA_GROUP_PROTOCOL": "consumer"},
        {"KAFKA_GROUP_PROTOCOL": "consumer", "KAFKA_CONSUMER__GROUP_REMOTE_ASSIGNOR": "range"},
        {"KAFKA_CONSUMER__HEARTBEAT_INTERVAL_MS": "500"},
        {"WORKER_STUCK_S": "30.1", "TRITON_TIMEOUT_S": "30"},
        {"WORKER_DELIVERY": "transactional", "METRICS_PORT": "0", "WORKER_INSTANCE": "pod-0"},
        {
            "WORKER_DELIVERY": "transactional",
            "KAFKA_SESSION_TIMEOUT_MS": "6000",
            "KAFKA_PRODUCER__TRANSACTION_TIMEOUT_MS": "6000",
            "KAFKA_PRODUCER__MESSAGE_TIMEOUT_MS": "6000",
        },
        {"METRICS_PORT": "0"},
        {"TRITON_TIMEOUT_S": "3600"},
        {"KAFKA_REPLY_TOPICS_ALLOWED": "inference-results, other"},
    ],
)
def test_what_just_fits_together_is_taken(environment: dict[str, str]) -> None:
    from_environment(**environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_MAX_SIZE", "0"),
        ("BATCH_LINGER_MS", "-1"),
        ("TRITON_TIMEOUT_S", "0"),
        ("REQUEST_TEMPERATURE", "2.1"),
        ("REQUEST_MAX_TOKENS", "2147483648"),
        ("KAFKA_START", "middle"),
        ("KAFKA_GROUP_PROTOCOL", "share"),
        ("KAFKA_SESSION_TIMEOUT_MS", "5999"),
        ("WORKER_PROCESSES", "0"),
        ("WORKER_DELIVERY", "exactly_once"),
        ("WORKER_ORDERING", "partition"),
        ("METRICS_PORT", "65536"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        from_environment(**{name: value})


def test_a_mistake_is_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONCURRENCY_MIN", "99")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter2")
    with pytest.raises(SystemExit) as stopped:
        load(Settings)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("promptbus: CONCURRENCY_MIN (99) is above CONCURRENCY_MAX (32)")
    assert "hunter2" not in printed


# -- overrides


@pytest.mark.parametrize("key", sorted(REFUSED_OVERRIDES))
@pytest.mark.parametrize("scope", ["CLIENT", "CONSUMER", "PRODUCER"])
def test_what_carries_a_promise_may_not_be_overridden(scope: str, key: str) -> None:
    variable = f"KAFKA_{scope}__{key.upper().replace('.', '_')}"
    message = sentence(**{variable: "1"})
    assert variable in message
    assert key in message


def test_other_librdkafka_settings_are_passed_on_in_its_spelling() -> None:
    settings = from_environment(
        KAFKA_CLIENT__SOCKET_TIMEOUT_MS="6000",
        KAFKA_CONSUMER__FETCH_MIN_BYTES="7",
        KAFKA_PRODUCER__LINGER_MS="5",
    )
    assert settings.client_config()["socket.timeout.ms"] == "6000"
    assert settings.consumer_overrides() == {"fetch.min.bytes": "7"}
    assert settings.producer_overrides() == {"linger.ms": "5"}


# -- secrets

SECRETS = {
    "KAFKA_SASL_PASSWORD": "hunter-a",
    "KAFKA_SSL_KEY_PASSWORD": "hunter-b",
    "KAFKA_CLIENT__SASL_OAUTHBEARER_CLIENT_SECRET": "hunter-c",
    "KAFKA_CONSUMER__SSL_KEY_PEM": "hunter-d",
    "KAFKA_PRODUCER__SASL_PASSWORD": "hunter-e",
    "TRITON_API_KEY": "hunter-f",
    "TRITON_HEADERS__X_TOKEN": "hunter-g",
}


def test_no_secret_is_ever_printed() -> None:
    settings = from_environment(**SECRETS)
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hunter" not in text


def test_secrets_reach_the_clients_all_the_same() -> None:
    settings = from_environment(
        **SECRETS, KAFKA_SASL_USERNAME="u", KAFKA_SASL_MECHANISM="PLAIN", KAFKA_SECURITY_PROTOCOL="SASL_SSL"
    )
    config = settings.client_config()
    assert config["sasl.password"] == "hunter-a"
    assert config["ssl.key.password"] == "hunter-b"
    assert config["sasl.oauthbearer.client.secret"] == "hunter-c"
    assert settings.http_headers == {"x-token": "hunter-g", "authorization": "Bearer hunter-f"}
