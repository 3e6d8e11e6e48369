"""A real broker that asks for a login and has rules (ACLs), and what a test does with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported, not by its __all__
    AdminClient,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from promptbus.rights import Right
from stack.kafka import Kafka
from stack.security import Door, Security
from tests.integration.certificates import Certificates
from tests.integration.rules import Rules
from tests.integration.system import SHORT_SESSIONS, System

PASSWORDS = {
    "worker": "worker-password-7c1f",
    "client": "client-password-93ab",
    "nobody": "nobody-password-55d0",
    "changing": "changing-password-2e8b",
}


class Secured:
    """`kafka.bootstrap` is its administrators' door; users come through `environment`."""

    def __init__(self, kafka: Kafka, certificates: Certificates) -> None:
        self.kafka = kafka
        self.certificates = certificates
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        self.rules = Rules(self.admin)

    def environment(
        self, user: str, *, listener: str = "SASL_SSL", mechanism: str = "SCRAM-SHA-512", **more: str
    ) -> dict[str, str]:
        """The variables of a program that comes as `user`."""
        return {
            "KAFKA_BOOTSTRAP": self.kafka.address(listener),
            "KAFKA_SECURITY_PROTOCOL": listener,
            "KAFKA_SASL_MECHANISM": mechanism,
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD": PASSWORDS.get(user, ""),
            "KAFKA_SSL_CA_LOCATION": str(self.certificates.ca),
            **more,
        }

    def certified(self) -> dict[str, str]:
        """The variables of a program that comes with the certificate of the user `certified`."""
        return {
            "KAFKA_BOOTSTRAP": self.kafka.address("SSL"),
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SSL_CA_LOCATION": str(self.certificates.ca),
            "KAFKA_SSL_CERTIFICATE_LOCATION": str(self.certificates.client),
            "KAFKA_SSL_KEY_LOCATION": str(self.certificates.client_key),
        }

    def create(self, topic: str) -> None:
        """With one partition."""
        self.admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)

    def put(self, topic: str, value: bytes) -> None:
        """One record."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap})
        producer.produce(topic, value)
        assert producer.flush(20) == 0

    def change_password(self, user: str, password: str) -> None:
        """For new logins by SCRAM-SHA-512, from now on."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, info, password.encode())
        self.admin.alter_user_scram_credentials([change])[user].result(20)

    @property
    def failed_logins(self) -> int:
        """All so far."""
        return self.kafka.log.read_text().count("Failed authentication with")


@contextmanager
def secured_kafka(folder: Path) -> Iterator[Secured]:
    """A broker with TLS, SASL and rules, that ends with the block."""
    certificates = Certificates(folder)
    server = certificates.server
    doors = {
        "EXPIRED": Door(certificates.expired),
        "FOREIGN": Door(certificates.foreign),
        "TO_EXPIRED": Door(server, advertised="EXPIRED"),
        "TO_FOREIGN": Door(server, advertised="FOREIGN"),
        "TO_OTHER_NAME": Door(server, advertised="localhost"),
        "SHORT_LOGINS": Door(server, properties={"connections.max.reauth.ms": "2000"}),
    }
    security = Security(server, certificates.ca, PASSWORDS, doors)
    with Kafka(security=security, properties=SHORT_SESSIONS) as kafka:
        yield Secured(kafka, certificates)


def rights_of_a_worker(whole: System) -> list[Right]:
    """All that one needs, and no more."""
    return [
        Right("READ", "topic", whole.requests),
        Right("READ", "group", whole.group),
        Right("WRITE", "topic", whole.replies),
        Right("WRITE", "topic", whole.dead),
    ]


def rights_of_a_client(whole: System) -> list[Right]:
    """All that one needs, and no more."""
    return [Right("WRITE", "topic", whole.requests), Right("READ", "topic", whole.replies)]
