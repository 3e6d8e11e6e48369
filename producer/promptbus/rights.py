"""Kafka's rights (rules, ACLs) in sentences: which one is missing, and the command that grants it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from promptbus.settings import KafkaSettings


class Right(NamedTuple):
    """One operation on one thing. READ and WRITE include DESCRIBE."""

    operation: str
    """As Kafka spells it: READ, WRITE, DESCRIBE, …"""
    kind: str
    """topic, group or transactional-id."""
    name: str
    beginning: str | None = None
    """The rule is better made for all names that begin so."""

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name!r}"


def grant(settings: KafkaSettings, right: Right) -> str:
    """The command that an administrator grants it with."""
    operation = "".join(part.title() for part in right.operation.split("_"))
    return (
        f"kafka-acls --bootstrap-server {settings.kafka_bootstrap} --add "
        f"--allow-principal {shlex.quote(principal(settings))} "
        f"--operation {operation} --{right.kind} {shlex.quote(right.beginning or right.name)}"
        + (" --resource-pattern-type prefixed" if right.beginning else "")
    )


def lacking(settings: KafkaSettings, *rights: Right) -> str:
    """The sentence about rights that are missing."""
    user = principal(settings).removeprefix("User:")
    return (
        f"Kafka's user {user!r} lacks the right {_listed(rights)}. An administrator grants it with "
        f"{'; '.join(grant(settings, right) for right in rights)}"
    )


def principal(settings: KafkaSettings) -> str:
    """Who we are for the brokers, as far as it can be known here."""
    if settings.kafka_security_protocol.startswith("SASL"):
        return f"User:{settings.kafka_sasl_username}"
    if settings.kafka_security_protocol == "SSL":
        return "User:<the subject of KAFKA_SSL_CERTIFICATE_LOCATION>"
    return "User:ANONYMOUS"


def _listed(rights: Sequence[Right]) -> str:
    names = [str(right) for right in rights]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
