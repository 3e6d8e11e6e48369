"""Secrets never show: not in logs, not in what servers say about us, not where settings are printed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import orjson
from pydantic import SecretStr
from pydantic_settings import BaseSettings

MASK = "********"
SHORTEST = 4
"""A shorter value would be found in every second word."""

# The families of overrides and headers hold all kinds of things, most of them no secrets: `acme` as a tenant would
# disappear from every topic's name.
_SECRET_NAME = re.compile(r"password|secret|token|key|pem|jaas|auth|cookie|credential", re.IGNORECASE)


def secrets_of(settings: BaseSettings) -> frozenset[str]:
    """The values that may not be read by others, as they are and as they stand in JSON. Never log it."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        for key, value in _secret_values(name, getattr(settings, name)):
            secret = value.get_secret_value()
            if len(secret) >= SHORTEST and _SECRET_NAME.search(key):
                found |= {secret, orjson.dumps(secret).decode()[1:-1]}
    return frozenset(found)


def masked(text: str, secrets: Collection[str]) -> str:
    """`text` with every secret in it replaced."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def shown(settings: BaseSettings) -> Iterator[tuple[str, str]]:
    """Every setting as it is now, by its variable, secrets masked."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, dict):
            for key in sorted(value):
                yield f"{name}__{key}".upper(), MASK
        elif isinstance(value, SecretStr):
            yield name.upper(), MASK
        else:
            yield name.upper(), "" if value is None else str(value)


def _secret_values(name: str, value: object) -> Iterator[tuple[str, SecretStr]]:
    if isinstance(value, SecretStr):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, SecretStr):
                yield str(key), one
