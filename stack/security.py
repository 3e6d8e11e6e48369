"""What makes a broker ask who comes to it, and look up what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack.ports import HOST

PROTOCOLS = ("SSL", "SASL_SSL", "SASL_PLAINTEXT")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
AUTHORIZER = {"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer"}
OPEN_UNTIL_RULED = AUTHORIZER | {"allow.everyone.if.no.acl.found": "true"}
"""Properties of a broker where everybody may do everything until a rule about a resource says otherwise."""
_MODULES = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class Door:
    """One more SASL_SSL listener."""

    certificate: Path
    """As `Security.certificate`."""
    advertised: str | None = None
    """Where it sends clients that have asked for the brokers: the name of another listener, or of a host on its own port."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """What the broker does differently there."""


@dataclass(frozen=True, slots=True)
class Security:
    """Listeners with TLS and SASL, and rules (ACLs) about everybody who comes to them.

    The plaintext listener stays, for administrators: who comes there is ANONYMOUS and may do everything.
    SSL wants a client's certificate and takes its common name as the user's.
    """

    certificate: Path
    """The broker's: PEM, first the key, then the chain."""
    client_ca: Path
    """Whose clients' certificates are taken (PEM)."""
    users: Mapping[str, str]
    """Names and passwords, for every mechanism."""
    doors: Mapping[str, Door] = field(default_factory=dict)
    """Further listeners by name."""

    @property
    def listeners(self) -> dict[str, str]:
        """The protocol of each listener by its name."""
        return {name: name for name in PROTOCOLS} | dict.fromkeys(self.doors, "SASL_SSL")

    def properties(self, ports: Mapping[str, int], plain_listeners: str, protocols: str) -> dict[str, str]:
        """For server.properties, beside listeners and protocols that are there already; `ports` by listener."""
        added = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
        mapped = ",".join(f"{name}:{protocol}" for name, protocol in self.listeners.items())
        plain, _, _ = plain_listeners.partition(",")  # the others are the controller's
        sent = ",".join(f"{name}://{self._advertised(name, ports)}" for name in ports)
        lines = {
            "listeners": f"{plain_listeners},{added}",
            "advertised.listeners": f"{plain},{sent}",
            "listener.security.protocol.map": f"{protocols},{mapped}",
            "inter.broker.listener.name": "PLAINTEXT",
            **AUTHORIZER,
            "super.users": "User:ANONYMOUS",
            "ssl.principal.mapping.rules": "RULE:^(?:.*,)?CN=([^,]+).*$/$1/,DEFAULT",
        }
        plain_users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        for name, protocol in self.listeners.items():
            prefix = f"listener.name.{name.lower()}."
            if protocol.endswith("SSL"):
                lines |= {
                    f"{prefix}ssl.keystore.type": "PEM",
                    f"{prefix}ssl.keystore.location": str(
                        self.doors[name].certificate if name in self.doors else self.certificate
                    ),
                    f"{prefix}ssl.truststore.type": "PEM",
                    f"{prefix}ssl.truststore.location": str(self.client_ca),
                    f"{prefix}ssl.client.auth": "required" if protocol == "SSL" else "none",
                }
            if protocol.startswith("SASL"):
                lines[f"{prefix}sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
                lines[f"{prefix}plain.sasl.jaas.config"] = (
                    f"{_MODULES}.plain.PlainLoginModule required {plain_users};"
                )
                for mechanism in MECHANISMS[1:]:
                    lines[f"{prefix}{mechanism.lower()}.sasl.jaas.config"] = (
                        f"{_MODULES}.scram.ScramLoginModule required;"
                    )
            if name in self.doors:
                lines |= {f"{prefix}{key}": value for key, value in self.doors[name].properties.items()}
        return lines

    def _advertised(self, name: str, ports: Mapping[str, int]) -> str:
        instead = self.doors[name].advertised if name in self.doors else None
        if instead is not None and instead in ports:
            return f"{HOST}:{ports[instead]}"
        return f"{instead or HOST}:{ports[name]}"

    def format_arguments(self) -> list[str]:
        """For the tool that prepares the storage: the users of SCRAM."""
        return [
            argument
            for name, password in self.users.items()
            for mechanism in MECHANISMS[1:]
            for argument in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]
