"""TLS and logins at a real broker: every way in works, and every way that does not is told from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest

from promptbus.errors import KafkaUnavailable
from promptbus.listener import misunderstanding
from promptbus.rights import Right
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import TopicReader
from promptbus_worker import kafka, startup
from promptbus_worker.doctor_kafka import KafkaCheckup
from promptbus_worker.preflight import Level
from promptbus_worker.refusals import not_let_in
from promptbus_worker.settings import Settings
from promptbus_worker.startup import Refused, wait_for_surroundings
from promptbus_worker.triton import TritonClient
from stack.triton import Triton
from tests.integration.secured import PASSWORDS, Secured
from tests.integration.system import Workers, system

WRONG_PASSWORD = "not-the-password-e31b"
TOPIC = "some-topic"


def client_settings(environment: Mapping[str, str]) -> KafkaSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return KafkaSettings(_env_file=None)


def worker_settings(environment: Mapping[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return Settings(_env_file=None)


@pytest.fixture(scope="module")
def topic(secured: Secured) -> str:
    """Which both users may see."""
    secured.create(TOPIC)
    for user in ("client", "certified"):
        secured.rules.put(user, Right("READ", "topic", TOPIC))
    return TOPIC


@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_every_login_works(secured: Secured, topic: str, listener: str, mechanism: str) -> None:
    environment = secured.environment("client", listener=listener, mechanism=mechanism)
    assert partitions_of(topic, client_settings(environment)) == {0}


def test_a_client_certificate_is_a_login(secured: Secured, topic: str) -> None:
    assert partitions_of(topic, client_settings(secured.certified())) == {0}


def partitions_of(topic: str, settings: KafkaSettings, within_s: float = 20.0) -> set[int]:
    reader = TopicReader(settings, topic)
    try:
        return reader.partitions(topic, "KAFKA_REPLY_TOPIC", within_s)
    finally:
        reader.close()


class Mistake(NamedTuple):
    """What is set wrongly, and what has to be in the sentence about it."""

    environment: Callable[[Secured], dict[str, str]]
    says: tuple[str, ...]


def _client(secured: Secured, **more: str) -> dict[str, str]:
    return {**secured.environment("client"), **more}


MISTAKES = {
    "wrong password": Mistake(
        lambda s: _client(s, KAFKA_SASL_PASSWORD=WRONG_PASSWORD),
        ("refuses the login of user 'client'", "KAFKA_SASL_PASSWORD"),
    ),
    "wrong password, PLAIN": Mistake(
        lambda s: _client(s, KAFKA_SASL_PASSWORD=WRONG_PASSWORD, KAFKA_SASL_MECHANISM="PLAIN"),
        ("refuses the login of user 'client'", "KAFKA_SASL_PASSWORD"),
    ),
    "unknown CA": Mistake(
        lambda s: _client(s, KAFKA_SSL_CA_LOCATION=str(s.certificates.other_ca)),
        ("a certificate of a CA that is not known here", "KAFKA_SSL_CA_LOCATION"),
    ),
    "another host name": Mistake(
        lambda s: _client(s, KAFKA_BOOTSTRAP=s.kafka.address("SASL_SSL").replace("127.0.0.1", "localhost")),
        ("a certificate that is not for 'localhost'", "KAFKA_BOOTSTRAP"),
    ),
    "expired certificate": Mistake(
        lambda s: _client(s, KAFKA_BOOTSTRAP=s.kafka.address("EXPIRED")), ("has expired", "renew it")
    ),
    "plaintext to a TLS port": Mistake(
        lambda s: {"KAFKA_BOOTSTRAP": s.kafka.address("SASL_SSL")},
        ("speaks TLS, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT: set it to SASL_SSL",),
    ),
    "a plaintext login to a TLS port": Mistake(
        lambda s: _client(
            s, KAFKA_BOOTSTRAP=s.kafka.address("SASL_SSL"), KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT"
        ),
        ("speaks TLS, but KAFKA_SECURITY_PROTOCOL is SASL_PLAINTEXT: set it to SASL_SSL",),
    ),
    "TLS to a plaintext port": Mistake(
        lambda s: _client(s, KAFKA_BOOTSTRAP=s.kafka.bootstrap),
        ("does not speak TLS, but KAFKA_SECURITY_PROTOCOL is SASL_SSL: set it to PLAINTEXT",),
    ),
    "TLS to a plaintext port with logins": Mistake(
        lambda s: _client(s, KAFKA_BOOTSTRAP=s.kafka.address("SASL_PLAINTEXT")),
        ("does not speak TLS, but KAFKA_SECURITY_PROTOCOL is SASL_SSL: set it to SASL_PLAINTEXT",),
    ),
    "no login where one is wanted": Mistake(
        lambda s: {"KAFKA_BOOTSTRAP": s.kafka.address("SASL_PLAINTEXT")},
        ("wants a login", "SCRAM-SHA-512", "set it to SASL_PLAINTEXT", "KAFKA_SASL_USERNAME"),
    ),
    "a login where none is taken": Mistake(
        lambda s: _client(s, KAFKA_BOOTSTRAP=s.kafka.bootstrap, KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT"),
        ("takes no login, but KAFKA_SECURITY_PROTOCOL is SASL_PLAINTEXT: set it to PLAINTEXT",),
    ),
    "no client certificate where one is wanted": Mistake(
        lambda s: {
            "KAFKA_BOOTSTRAP": s.kafka.address("SSL"),
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SSL_CA_LOCATION": str(s.certificates.ca),
        },
        ("refuses this client's TLS", "KAFKA_SSL_CERTIFICATE_LOCATION"),
    ),
}


class Sentences(NamedTuple):
    """What each program says about one mistake, when it is known."""

    client: Future[str]
    worker: Future[str]
    doctor: Future[str]


@pytest.fixture(scope="module")
def locked_out(
    secured: Secured, shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """A worker with a wrong password. It tries for a while: until it is asked for, other tests can run."""
    environment = {
        **secured.environment("client"),
        "KAFKA_SASL_PASSWORD": WRONG_PASSWORD,
        "LOG_LEVEL": "debug",
        "KAFKA_CLIENT__DEBUG": "all",
    }
    with system(secured.kafka, shared_triton, tmp_path_factory.mktemp("worker"), env=environment) as whole:
        yield whole.start()


@pytest.fixture(scope="module")
def sentences(secured: Secured, locked_out: Workers) -> dict[str, Sentences]:
    """Many mistakes are made at once: each takes as long as a program tries."""
    pool = ThreadPoolExecutor(18)  # more, and the broker would be busy with handshakes alone
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "REFUSED_S", 0.5)
        patch.setattr(kafka, "_ADMIN_TIMEOUT_S", 2.0)
        for name, mistake in MISTAKES.items():
            environment = mistake.environment(secured)
            client, worker = client_settings(environment), worker_settings(environment)
            made[name] = Sentences(
                pool.submit(client_says, client),
                pool.submit(worker_says, worker),
                pool.submit(doctor_says, worker),
            )
        pool.shutdown(wait=True)
    return made


def client_says(settings: KafkaSettings) -> str:
    said = ""
    for within_s in (3.0, 10.0, 30.0):  # while the machine is busy, a broker may not even refuse in time
        with pytest.raises(KafkaUnavailable) as refusal:
            partitions_of("t", settings, within_s)
        said = str(refusal.value)
        if "no Kafka broker answered" not in said and "refused the connection:" not in said:
            break
    return said


def worker_says(settings: Settings) -> str:
    async def start() -> None:
        triton = TritonClient("127.0.0.1:1")
        try:
            await wait_for_surroundings(settings, "w", triton, lambda _: None)
        finally:
            await triton.close()

    said = ""
    for _ in range(4):  # while the machine is busy, a listener may not say in time what is wrong
        with pytest.raises(Refused) as refusal:
            asyncio.run(start())
        said = str(refusal.value)
        if "refused the connection:" not in said:
            break
    return said


def doctor_says(settings: Settings) -> str:
    said = ""
    for _ in range(4):
        (finding,) = KafkaCheckup(settings).findings()
        said = finding.line()
        if "does not answer" not in said and "refused the connection:" not in said:
            break
    return said


@pytest.mark.parametrize("program", Sentences._fields)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_sentence(sentences: dict[str, Sentences], mistake: str, program: str) -> None:
    said: str = getattr(sentences[mistake], program).result()
    for fragment in MISTAKES[mistake].says:
        assert fragment in said
    assert "127.0.0.1:" in said or "localhost:" in said, "which broker"
    for secret in (WRONG_PASSWORD, *PASSWORDS.values()):
        assert secret not in said


def test_a_worker_that_is_not_let_in_stops_and_says_why(locked_out: Workers) -> None:
    assert locked_out.process.wait(180) == 1
    lines = [line["message"] for line in locked_out.lines() if line["level"] == "error"]
    assert any("refuses the login of user 'client'" in line for line in lines)
    assert WRONG_PASSWORD not in locked_out.log.read_text()


def test_a_mechanism_that_is_not_offered_is_told_with_those_that_are(secured: Secured) -> None:
    environment = _client(secured, KAFKA_CLIENT__SASL_MECHANISM="OAUTHBEARER")
    said = misunderstanding(client_settings(environment).client_config())
    assert said is not None
    assert "offers no login by KAFKA_SASL_MECHANISM OAUTHBEARER, only by PLAIN" in said


def test_files_that_are_not_there_are_refused_at_once(secured: Secured) -> None:
    settings = worker_settings(_client(secured, KAFKA_SSL_CA_LOCATION="/nowhere/ca.pem"))
    with pytest.raises(kafka.Unusable, match=r"ssl\.ca\.location failed.*KAFKA_SSL_"):
        kafka.admin_client(settings, "w")


ADVERTISED = {
    "TO_EXPIRED": ("has expired", "renew it"),
    "TO_FOREIGN": ("a certificate of a CA that is not known here", "KAFKA_SSL_CA_LOCATION"),
    "TO_OTHER_NAME": ("a certificate that is not for 'localhost'", "its advertised.listeners"),
}


# Once librdkafka knows the brokers it drops its bootstrap connections, and may get no answer any more: with luck it asks
# before, or while it goes back to them, which `none` forbids.
@pytest.mark.parametrize("recovery", ["rebootstrap", "none"])
@pytest.mark.parametrize("door", ADVERTISED)
def test_a_certificate_that_only_an_advertised_broker_shows_is_told(
    secured: Secured, door: str, recovery: str
) -> None:
    environment = {
        **secured.environment("client"),
        "KAFKA_BOOTSTRAP": secured.kafka.address(door),
        "KAFKA_CLIENT__METADATA_RECOVERY_STRATEGY": recovery,
    }
    settings = worker_settings(environment)
    named, unchecked = (finding.line() for finding in KafkaCheckup(settings, budget_s=60).findings())
    assert named.startswith("FAIL  a broker that the others name cannot be used")
    assert "topics, rights and offsets were not checked" in unchecked
    while_it_runs = not_let_in(settings, "w")
    assert while_it_runs is not None
    for fragment in ADVERTISED[door]:
        assert fragment in named
        assert fragment in while_it_runs


def test_one_bad_address_among_good_ones_is_worth_a_word(secured: Secured) -> None:
    good, bad = secured.kafka.address("SASL_SSL"), secured.kafka.address("EXPIRED")
    settings = worker_settings({**secured.environment("client"), "KAFKA_BOOTSTRAP": f"{bad},{good}"})
    (warning,) = (f for f in KafkaCheckup(settings, budget_s=60).findings() if "KAFKA_BOOTSTRAP" in f.what)
    assert warning.level is Level.WARN
    assert f"Kafka at {bad} shows a certificate that has expired" in warning.mend
