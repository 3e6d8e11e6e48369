"""Triton behind TLS and a key: it works, and each way in which it does not has its sentence and costs no prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import SecretStr

from promptbus.direct import TritonRefused, TritonUnreachable, ask_triton
from promptbus.messages import Request
from promptbus.settings import TritonSettings
from promptbus_worker import startup
from promptbus_worker.doctor_triton import TritonCheckup
from promptbus_worker.outcomes import CallError, CallFailure
from promptbus_worker.preflight import Level
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Refused, wait_for_surroundings
from promptbus_worker.triton import TritonClient
from stack.kafka import Kafka
from stack.triton import Triton
from tests.integration.certificates import Certificates
from tests.integration.gateway import Gateway, gateway
from tests.integration.system import System, eventually, system

KEY = "api-key-4e9d21c7"
TENANT_TOKEN = "tenant-token-b8820f"
ECHO = f'{{"error":"the key {KEY} of {TENANT_TOKEN} is not known"}}'.encode()
"""Some gateways quote the key that they refuse."""


class Doors(NamedTuple):
    """Ways to the same Triton."""

    certificates: Certificates
    good: Gateway
    expired: Gateway
    plain: Gateway


@pytest.fixture(scope="module")
def doors(shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with ExitStack() as stack:
        good, expired, plain = (
            stack.enter_context(gateway(shared_triton.url, certificate))
            for certificate in (certificates.server, certificates.expired, None)
        )
        yield Doors(certificates, good, expired, plain)


@pytest.fixture(autouse=True)
def _open(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins with doors that let everybody in whom they can understand."""
    monkeypatch.setenv("SSL_CERT_FILE", str(doors.certificates.ca))
    yield
    for door in (doors.good, doors.expired, doors.plain):
        door.refusal = None


def test_a_worker_answers_through_tls_with_key_and_headers_and_a_refused_key_costs_no_prompt(
    doors: Doors, shared_kafka: Kafka, tmp_path: Path
) -> None:
    door = doors.good
    environment = {
        "SSL_CERT_FILE": str(doors.certificates.ca),
        "TRITON_API_KEY": KEY,
        "TRITON_HEADERS__X_TENANT_TOKEN": TENANT_TOKEN,
        "LOG_LEVEL": "debug",
        "KAFKA_CLIENT__DEBUG": "all",
    }
    with system(shared_kafka, f"https://{door.address}", tmp_path, env=environment) as whole:
        workers = whole.start().ready(180)
        door.headers.clear()
        whole.ask([f"before-{number}" for number in range(20)])
        assert whole.collect(20).codes == {"ok": 20}
        assert door.headers
        for headers in door.headers:
            assert headers["authorization"] == f"Bearer {KEY}"
            assert headers["x-tenant-token"] == TENANT_TOKEN
        for status in (401, 403):
            door.refusal = status, ECHO
            whole.ask([f"{status}-{number}" for number in range(20)])
            said = f"forbidden (HTTP {status}): check TRITON_API_KEY and TRITON_HEADERS__<NAME>"
            eventually(
                "the log says what to check",
                lambda said=said: any(said in line.get("error", "") for line in workers.lines()),  # type: ignore[misc]
            )
            eventually("calls stop", lambda: workers.metrics().get("promptbus_breaker_open") == 1)
            door.refusal = None
            eventually("calls go on", lambda: workers.metrics().get("promptbus_breaker_open") == 0)
        replies = whole.collect(60)
        assert replies.codes == {"ok": 60}
        assert not whole.all_dead_letters()
        assert workers.terminate() == 0
        text = workers.log.read_text()
    assert "********" in text, "what the gateway quoted"
    for secret in (KEY, TENANT_TOKEN):
        assert secret not in text


class Mistake(NamedTuple):
    """What is set wrongly, and what has to be in the sentence about it."""

    url: Callable[[Doors], str]
    says: tuple[str, ...]
    ca: Callable[[Certificates], Path] = lambda certificates: certificates.ca
    status: int | None = None


MISTAKES = {
    "unknown CA": Mistake(
        lambda doors: f"https://{doors.good.address}",
        ("a certificate of a CA that is not known here", "SSL_CERT_FILE"),
        ca=lambda certificates: certificates.other_ca,
    ),
    "a CA file that is not there": Mistake(
        lambda doors: f"https://{doors.good.address}",
        ("SSL_CERT_FILE names", "nowhere.pem, which does not exist"),
        ca=lambda certificates: certificates.ca.with_name("nowhere.pem"),
    ),
    "another host name": Mistake(
        lambda doors: f"https://{doors.good.address}".replace("127.0.0.1", "localhost"),
        ("a certificate that is not for 'localhost'", "TRITON_URL"),
    ),
    "expired certificate": Mistake(
        lambda doors: f"https://{doors.expired.address}", ("a certificate that has expired", "renew it")
    ),
    "plaintext to a TLS port": Mistake(
        lambda doors: f"http://{doors.good.address}", ("speaks TLS", "write https:// in TRITON_URL")
    ),
    "TLS to a plaintext port": Mistake(
        lambda doors: f"https://{doors.plain.address}", ("does not speak TLS", "write http:// in TRITON_URL")
    ),
    "no key": Mistake(lambda doors: f"https://{doors.good.address}", ("TRITON_API_KEY",), status=401),
    "a key without rights": Mistake(
        lambda doors: f"https://{doors.good.address}", ("TRITON_API_KEY",), status=403
    ),
}


@pytest.fixture(params=MISTAKES)
def mistake(
    request: pytest.FixtureRequest, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> tuple[Mistake, str]:
    """One of them, and the URL."""
    made = MISTAKES[request.param]
    monkeypatch.setenv("SSL_CERT_FILE", str(made.ca(doors.certificates)))
    if made.status is not None:
        doors.good.refusal = made.status, ECHO
    return made, made.url(doors)


def check(said: str, mistake: Mistake) -> None:
    for fragment in mistake.says:
        assert fragment in said


async def test_each_mistake_is_told_by_the_worker_and_blamed_on_no_prompt(
    mistake: tuple[Mistake, str],
) -> None:
    made, url = mistake
    client = TritonClient(url)
    try:
        with pytest.raises(CallError) as refusal:
            await client.read_spec("gpt4_nano")
    finally:
        await client.close()
    assert refusal.value.failure is CallFailure.FORBIDDEN
    check(str(refusal.value), made)


async def test_each_mistake_is_told_by_the_doctor(mistake: tuple[Mistake, str]) -> None:
    made, url = mistake
    settings = Settings(_env_file=None, triton_url=url, triton_api_key=SecretStr(KEY))
    lines = [
        finding.line() async for finding in TritonCheckup(settings).findings() if finding.level is Level.FAIL
    ]
    check("\n".join(lines), made)
    assert KEY not in "\n".join(lines)


def test_each_mistake_is_told_by_a_direct_question(mistake: tuple[Mistake, str]) -> None:
    made, url = mistake
    settings = TritonSettings(_env_file=None, triton_url=url, triton_api_key=SecretStr(KEY))
    with pytest.raises((TritonRefused, TritonUnreachable)) as refusal:
        ask_triton(settings, Request(prompt="hello"), 20)
    check(str(refusal.value), made)
    assert KEY not in str(refusal.value)


def test_a_direct_question_goes_through_tls(doors: Doors) -> None:
    url = f"https://{doors.good.address}"
    settings = TritonSettings(_env_file=None, triton_url=url, triton_api_key=SecretStr(KEY))
    assert ask_triton(settings, Request(prompt="hello"), 60).response
    assert doors.good.headers[-1]["authorization"] == f"Bearer {KEY}"


async def test_the_doctor_goes_through_tls(doors: Doors) -> None:
    settings = Settings(_env_file=None, triton_url=f"https://{doors.good.address}")
    assert [f.line() async for f in TritonCheckup(settings).findings() if f.level is Level.FAIL] == []


def test_a_worker_whose_key_stays_refused_stops_with_the_sentence(
    doors: Doors, whole: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "REFUSED_S", 0.5)
    doors.good.refusal = 401, b"{}"
    for name, value in whole.environment(TRITON_URL=f"https://{doors.good.address}").items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)

    async def start() -> None:
        triton = TritonClient(settings.triton_url, headers=settings.http_headers)
        try:
            await wait_for_surroundings(settings, "w", triton, lambda _: None)
        finally:
            await triton.close()

    with pytest.raises(Refused, match="check TRITON_API_KEY"):
        asyncio.run(start())
