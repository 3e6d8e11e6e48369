"""Secrets never show: not in logs, errors or reprs, nor where settings are printed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from promptbus import cli
from promptbus.masking import MASK, masked, secrets_of
from promptbus.settings import load
from promptbus_worker.logs import JsonFormatter, TextFormatter
from promptbus_worker.settings import Settings

SECRETS = {
    "KAFKA_SASL_PASSWORD": 'sasl"secret\\1',
    "KAFKA_SSL_KEY_PASSWORD": "key-secret-2",
    "KAFKA_CLIENT__SSL_KEY_PEM": "pem-secret-3",
    "KAFKA_CONSUMER__SASL_OAUTHBEARER_CLIENT_SECRET": "oauth-secret-4",
    "TRITON_API_KEY": "api-secret-5",
    "TRITON_HEADERS__X_AUTH": "header-secret-6",
}
LOGIN = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "alice",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (SECRETS | LOGIN).items():
        monkeypatch.setenv(name, value)


def none_in(text: str) -> bool:
    return not any(secret in text for secret in SECRETS.values())


def test_every_secret_is_known_and_ordinary_values_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_CLIENT__SOCKET_TIMEOUT_MS", "30000")
    monkeypatch.setenv("TRITON_HEADERS__X_TENANT", "acme")
    found = secrets_of(load(Settings))
    assert set(SECRETS.values()) <= found
    assert found.isdisjoint({"30000", "acme", "alice"})


def test_what_is_within_another_secret_leaves_nothing_of_it() -> None:
    assert masked("the key is abcdef", {"abcd", "abcdef"}) == f"the key is {MASK}"


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_a_line_masks_them_in_message_fields_and_traceback(
    formatter: type[JsonFormatter] | type[TextFormatter],
) -> None:
    everything = " ".join(SECRETS.values())
    record = logging.LogRecord("x", logging.ERROR, "", 0, "message %s", (everything,), None)
    record.detail = everything
    try:
        raise RuntimeError(everything)
    except RuntimeError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = formatter(secrets=secrets_of(load(Settings))).format(record)
    assert none_in(line)
    assert line.count(MASK) >= 3 * len(SECRETS)
    assert 'sasl\\"secret' not in line


@pytest.mark.parametrize("command", ["worker", "doctor"])
def test_show_settings_prints_what_is_set_and_masks_secrets(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_MAX_SIZE", "3")
    assert cli.main([command, "--show-settings"]) == 0
    out = capsys.readouterr().out
    assert none_in(out)
    lines = out.splitlines()
    for name in SECRETS:
        assert f"{name}={MASK}" in lines
    assert "BATCH_MAX_SIZE=3" in lines
    assert "KAFKA_SASL_USERNAME=alice" in lines
    assert "KAFKA_GROUP_ID=promptbus" in lines


def test_settings_do_not_print_their_secrets() -> None:
    settings = load(Settings)
    assert none_in(repr(settings) + str(settings) + str(settings.model_dump()) + settings.model_dump_json())


def test_the_error_about_one_setting_does_not_quote_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_REPLY_TOPIC", "inference-requests")
    with pytest.raises(ValidationError) as refusal:
        Settings(_env_file=None)
    assert none_in(str(refusal.value) + repr(refusal.value))
    with pytest.raises(SystemExit):
        load(Settings)
    assert none_in(capsys.readouterr().err)


@pytest.mark.parametrize(
    "url", ["http://user:hunter22@host:8000", "user:hunter22@host:8000", "//u:hunter22@h:x"]
)
def test_credentials_in_the_url_are_refused_and_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_URL", url)
    with pytest.raises(SystemExit):
        load(Settings)
    err = capsys.readouterr().err
    assert "TRITON_API_KEY" in err
    assert "hunter22" not in err
