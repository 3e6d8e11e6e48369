"""How to reach Kafka, read from the environment (and from `.env`, which the environment beats).

The worker's settings extend these, so client and worker understand the same `KAFKA_*` names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal, NoReturn, Self, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# Each of these carries one of the promises (nothing lost, one reply per record); a user's value would break it unseen.
REFUSED_OVERRIDES = frozenset(
    {
        "enable.auto.commit",
        "enable.auto.offset.store",
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "group.id",
        "transactional.id",
        "isolation.level",
        "partition.assignment.strategy",
        # Not secret rules, but decided elsewhere: KAFKA_START, KAFKA_GROUP_PROTOCOL, KAFKA_SESSION_TIMEOUT_MS, and
        # Java's partitioner.
        "auto.offset.reset",
        "group.protocol",
        "session.timeout.ms",
        "partitioner",
    }
)

ClientConfig = dict[str, str | int | float | bool]

DURABLE: ClientConfig = {
    "acks": "all",
    "enable.idempotence": True,
    # The client takes the success of a batch for that of an earlier one of its partition which had failed. But a
    # leader that does not know this producer yet takes a later batch without the earlier one (KAFKA-15591), and the
    # first records to a partition would be gone though reported as delivered. So one batch after the other.
    "max.in.flight.requests.per.connection": 1,
}
"""What every producer has, so that a record which is reported as delivered is there."""

NO_CREDENTIALS = "TRITON_URL must not hold credentials. Set TRITON_API_KEY or TRITON_HEADERS__<NAME>."
_FROM_ENVIRONMENT = SettingsConfigDict(
    env_file=".env",
    env_nested_delimiter="__",
    env_ignore_empty=True,
    extra="ignore",
    frozen=True,
    populate_by_name=True,
    # a wrong setting's error would quote all the others, passwords included
    hide_input_in_errors=True,
)


class KafkaSettings(BaseSettings):
    """Where Kafka is, which topics are used, and how to log in. Frozen; secrets do not print."""

    model_config = _FROM_ENVIRONMENT

    kafka_bootstrap: str = Field(
        default="localhost:9092",
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP", "KAFKA_BOOTSTRAP_SERVERS"),
        description="Brokers to start from, `host:port`, comma-separated (also `KAFKA_BOOTSTRAP_SERVERS`)",
    )
    kafka_group_id: str = Field(
        default="promptbus", min_length=1, description="Consumer group of the workers"
    )
    kafka_request_topic: str = Field(default="inference-requests", description="Topic that prompts arrive on")
    kafka_reply_topic: str = Field(default="inference-results", description="Topic that replies go to")
    kafka_dead_letter_topic: str = Field(
        default="inference-requests.dlq", description="Topic for dead letters"
    )

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`"
    )
    kafka_sasl_username: str | None = Field(default=None, description="SASL user")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="SASL password")
    kafka_ssl_ca_location: str | None = Field(default=None, description="CA certificates (PEM file)")
    kafka_ssl_certificate_location: str | None = Field(
        default=None, description="Client certificate (PEM file)"
    )
    kafka_ssl_key_location: str | None = Field(default=None, description="Client key (PEM file)")
    kafka_ssl_key_password: SecretStr | None = Field(default=None, description="Password of the client key")

    kafka_client: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="`KAFKA_CLIENT__<KEY>`: any librdkafka setting for every client "
        "(`KAFKA_CLIENT__SOCKET_TIMEOUT_MS` is `socket.timeout.ms`)",
    )
    kafka_consumer: dict[str, SecretStr] = Field(
        default_factory=dict, description="`KAFKA_CONSUMER__<KEY>`: the same, for consumers only"
    )
    kafka_producer: dict[str, SecretStr] = Field(
        default_factory=dict, description="`KAFKA_PRODUCER__<KEY>`: the same, for producers only"
    )

    @model_validator(mode="after")
    def _refuse_overrides(self) -> Self:
        for field in ("kafka_client", "kafka_consumer", "kafka_producer"):
            for key in _librdkafka_keys(getattr(self, field)):
                if key in REFUSED_OVERRIDES:
                    variable = f"{field.upper()}__{key.upper().replace('.', '_')}"
                    raise ValueError(
                        f"{variable} may not be set: promptbus itself decides {key!r}; remove it"
                    )
        return self

    @model_validator(mode="after")
    def _check_topics(self) -> Self:
        topics = {
            "KAFKA_REQUEST_TOPIC": self.kafka_request_topic,
            "KAFKA_REPLY_TOPIC": self.kafka_reply_topic,
            "KAFKA_DEAD_LETTER_TOPIC": self.kafka_dead_letter_topic,
        }
        seen: dict[str, str] = {}
        for name, topic in topics.items():
            if topic in seen:
                raise ValueError(f"{seen[topic]} and {name} are both {topic!r}; they must differ")
            seen[topic] = name
        return self

    @model_validator(mode="after")
    def _check_sasl(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL"):
            for name in ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"KAFKA_SECURITY_PROTOCOL is {self.kafka_security_protocol} but {name.upper()} is not set"
                    )
        return self

    def client_config(self) -> ClientConfig:
        """librdkafka settings that every client of this process shares. Holds secrets in clear: never log it."""
        config: ClientConfig = {
            "bootstrap.servers": self.kafka_bootstrap,
            "security.protocol": self.kafka_security_protocol,
        }
        for key, value in (
            ("sasl.mechanism", self.kafka_sasl_mechanism),
            ("sasl.username", self.kafka_sasl_username),
            ("sasl.password", self.kafka_sasl_password),
            ("ssl.ca.location", self.kafka_ssl_ca_location),
            ("ssl.certificate.location", self.kafka_ssl_certificate_location),
            ("ssl.key.location", self.kafka_ssl_key_location),
            ("ssl.key.password", self.kafka_ssl_key_password),
        ):
            if value is not None:
                config[key] = value.get_secret_value() if isinstance(value, SecretStr) else value
        config.update(_librdkafka_keys(self.kafka_client))
        return config

    def consumer_overrides(self) -> ClientConfig:
        """`KAFKA_CONSUMER__*` in librdkafka's spelling."""
        return _librdkafka_keys(self.kafka_consumer)

    def producer_overrides(self) -> ClientConfig:
        """`KAFKA_PRODUCER__*` in librdkafka's spelling."""
        return _librdkafka_keys(self.kafka_producer)


class TritonSettings(BaseSettings):
    """Where Triton is, what it serves, and how to be let in. Frozen; secrets do not print."""

    model_config = _FROM_ENVIRONMENT

    triton_url: str = Field(
        default="localhost:8000",
        description="`host:port`, `http://…` or `https://…` of Triton's HTTP port; of several servers with the same "
        "models, comma-separated; for `https://` the variable `SSL_CERT_FILE` may name the CA (PEM file; in the "
        "environment, not in `.env`)",
    )
    triton_model: str = Field(
        default="gpt4_nano", description="Models to serve, comma-separated; the first is the default"
    )
    triton_model_version: str | None = Field(
        default=None, description="Model version; unset: Triton's latest"
    )
    triton_headers: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="`TRITON_HEADERS__<NAME>`: extra HTTP headers (`X_TENANT` is `x-tenant`)",
    )
    triton_api_key: SecretStr | None = Field(
        default=None, description="Sent to Triton as `authorization: Bearer …`"
    )

    @field_validator("triton_url")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        if "@" in value:
            raise ValueError(NO_CREDENTIALS)
        return value

    @field_validator("triton_model")
    @classmethod
    def _some_model(cls, value: str) -> str:
        names = split_names(value)
        if not names:
            raise ValueError("TRITON_MODEL names no model")
        if len(set(names)) < len(names):
            raise ValueError("TRITON_MODEL names a model twice")
        return value

    @property
    def models(self) -> tuple[str, ...]:
        """Served models; the first is the default."""
        return tuple(split_names(self.triton_model))

    @field_validator("triton_url")
    @classmethod
    def _some_server(cls, value: str) -> str:
        urls = split_names(value)
        if not urls:
            raise ValueError("TRITON_URL names no server")
        if len(set(urls)) < len(urls):
            raise ValueError("TRITON_URL names a server twice")
        return value

    @property
    def triton_urls(self) -> tuple[str, ...]:
        """Every server, as it is named."""
        return tuple(split_names(self.triton_url))

    @property
    def base_url(self) -> str:
        """Of the first server: with its scheme, without a slash at the end."""
        url = self.triton_urls[0]
        return (url if "://" in url else f"http://{url}").rstrip("/")

    @property
    def http_headers(self) -> dict[str, str]:
        """Extra headers for Triton, in clear: never log them."""
        headers = {
            name.lower().replace("_", "-"): value.get_secret_value()
            for name, value in self.triton_headers.items()
        }
        if self.triton_api_key is not None:
            headers["authorization"] = f"Bearer {self.triton_api_key.get_secret_value()}"
        return headers


class MetricsSettings(BaseSettings):
    """Where the workers' metrics are served. Frozen."""

    model_config = _FROM_ENVIRONMENT

    metrics_host: str = Field(
        default="127.0.0.1", description="Address that `/metrics`, `/live` and `/ready` listen on"
    )
    metrics_port: int = Field(default=8003, ge=0, le=65_535, description="Their port; 0: any free one")


def split_names(names: str) -> list[str]:
    """The members of a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _librdkafka_keys(overrides: Mapping[str, SecretStr]) -> ClientConfig:
    return {name.lower().replace("_", "."): value.get_secret_value() for name, value in overrides.items()}


S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S]) -> S:
    """Read `settings` from the environment; on a mistake print one sentence per mistake and exit with 2."""
    try:
        return settings()
    except ValidationError as error:
        _explain_and_exit(error)


def _explain_and_exit(error: ValidationError) -> NoReturn:
    for item in error.errors(include_url=False, include_input=False):
        message = item["msg"].removeprefix("Value error, ")
        where = "__".join(str(part) for part in item["loc"]).upper()
        print(f"promptbus: {where}: {message}" if where else f"promptbus: {message}", file=sys.stderr)
    raise SystemExit(2)
