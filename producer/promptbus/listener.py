"""Why a Kafka listener and this client do not understand each other: asked of the listener itself, in plain bytes.

librdkafka tells three broken certificates apart from each other by nothing, and of a listener that speaks TLS where
plaintext was expected it says nothing at all. So after a connection failed we look for ourselves: does the port speak
TLS, is its certificate good for us, does it want a login, and which? No credentials are sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from promptbus.settings import ClientConfig
from promptbus.tls import CONNECT_S, certificate_problem, unverified

_SASL_HANDSHAKE = 17
_ILLEGAL_SASL_STATE = 34
_DEFAULT_PORT = 9092


class Address(NamedTuple):
    """Where a broker listens; an IPv6 host has no brackets here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener(NamedTuple):
    """What a port turned out to be."""

    tls: bool
    mechanisms: Sequence[str] | None = None
    """What a client may log in with; empty: it takes no login; None: it did not say."""
    problem: str | None = None
    """Why TLS does not come about, with what to do."""


def addresses_of(bootstrap: str) -> list[Address]:
    """`KAFKA_BOOTSTRAP` in parts, `PROTOCOL://` in front of one ignored as librdkafka does."""
    addresses: list[Address] = []
    for part in bootstrap.split(","):
        name = part.strip().rpartition("://")[2]
        if not name:
            continue
        host, colon, port = name.rpartition(":")
        if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
            host, port = name, str(_DEFAULT_PORT)
        address = Address(host.strip("[]"), int(port))
        if address not in addresses:
            addresses.append(address)
    return addresses


def misunderstanding(
    config: ClientConfig, *, login_failed: bool = False, timeout_s: float = CONNECT_S
) -> str | None:
    """Why the brokers of `config` (librdkafka's keys) do not let us in, with what to do; None if nothing explains it.

    `login_failed`: librdkafka has said so. `timeout_s`: for each thing that is waited for, which are three of a server
    that answers, and one of each that does not. Holds for the first broker that takes a connection at all.
    """
    for address in addresses_of(str(config.get("bootstrap.servers", ""))):
        with contextlib.suppress(OSError, ValueError, OverflowError):  # the last: no such port
            listener = look(address, config, timeout_s)
            return _sentence(address, _compare(listener, config, login_failed=login_failed))
    return None


def misunderstandings(
    brokers: Sequence[Address], config: ClientConfig, timeout_s: float = CONNECT_S
) -> dict[Address, str]:
    """Why each of these does not let us in, that does not. `brokers`: as the cluster names them. All are asked at once."""

    def ask(address: Address) -> str | None:
        with contextlib.suppress(OSError, ValueError, OverflowError):
            listener = look(address, config, timeout_s, "its advertised.listeners")
            return _sentence(address, _compare(listener, config, login_failed=False))
        return None

    if not brokers:
        return {}
    with ThreadPoolExecutor(min(16, len(brokers))) as pool:
        asked = zip(brokers, pool.map(ask, brokers), strict=True)
        return {address: sentence for address, sentence in asked if sentence is not None}


def _sentence(address: Address, why: str | None) -> str | None:
    return f"Kafka at {address} {why}" if why else None


def look(
    address: Address,
    config: ClientConfig,
    timeout_s: float = CONNECT_S,
    named_in: str = "KAFKA_BOOTSTRAP",
) -> Listener:
    """What listens there. Raises OSError if it takes no connection, TimeoutError if it is silent.

    `named_in`: where its address comes from.
    """
    wants_tls = str(config.get("security.protocol", "")).upper().endswith("SSL")
    with socket.create_connection(address, timeout=timeout_s) as plain:
        context = _context(config) if wants_tls else unverified()
        try:
            with context.wrap_socket(plain, server_hostname=address.host) as secured:
                return Listener(True, *_ask_for_login(secured, config))
        except ssl.SSLCertVerificationError as error:
            return Listener(True, problem=certificate_problem(error, address.host, named_in, _TRUST))
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                return Listener(
                    True, problem=f"refuses this client's TLS ({error.reason}): {_OUR_CERTIFICATE}"
                )
        except TimeoutError:
            raise  # nor would it answer to anything else
        except OSError:
            pass  # it hung up at our greeting: no TLS here
    with socket.create_connection(address, timeout=timeout_s) as plain:
        return Listener(False, *_ask_for_login(plain, config))


_TRUST = "set KAFKA_SSL_CA_LOCATION to that CA's PEM file"
_OUR_CERTIFICATE = (
    "does it want a client's certificate (KAFKA_SSL_CERTIFICATE_LOCATION, KAFKA_SSL_KEY_LOCATION) signed by a CA "
    "that it knows?"
)


def _compare(listener: Listener, config: ClientConfig, *, login_failed: bool) -> str | None:
    protocol = str(config.get("security.protocol", "PLAINTEXT")).upper()
    with_tls, with_login = protocol.endswith("SSL"), protocol.startswith("SASL")
    if not listener.tls and listener.mechanisms is None:
        return None  # it answers neither way: no Kafka, or one that is just starting
    if listener.tls != with_tls:
        login = with_login if listener.mechanisms is None else bool(listener.mechanisms)
        right = ("SASL_" if login else "") + ("SSL" if listener.tls else "PLAINTEXT")
        return (
            f"{'speaks' if listener.tls else 'does not speak'} TLS, but KAFKA_SECURITY_PROTOCOL is {protocol}: "
            f"set it to {right}, or name another port in KAFKA_BOOTSTRAP"
        )
    if listener.problem is not None:
        return listener.problem
    if listener.mechanisms is None:
        return _login_refused(config) if login_failed else None
    offered = ", ".join(listener.mechanisms)
    if with_login and not offered:
        right = protocol.removeprefix("SASL_")
        return f"takes no login, but KAFKA_SECURITY_PROTOCOL is {protocol}: set it to {right}, or name another port"
    if offered and not with_login:
        return (
            f"wants a login ({offered}), but KAFKA_SECURITY_PROTOCOL is {protocol}: set it to "
            f"SASL_{protocol}, with KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
        )
    mechanism = _mechanism(config)
    if with_login and mechanism and mechanism not in listener.mechanisms:
        return f"offers no login by KAFKA_SASL_MECHANISM {mechanism}, only by {offered}"
    return _login_refused(config) if login_failed else None


def _mechanism(config: ClientConfig) -> str:
    return str(config.get("sasl.mechanism", config.get("sasl.mechanisms", "")))


def _login_refused(config: ClientConfig) -> str:
    return (
        f"refuses the login of user {config.get('sasl.username')!r}: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD "
        "and KAFKA_SASL_MECHANISM (a user of SCRAM is made for each mechanism)"
    )


def _context(config: ClientConfig) -> ssl.SSLContext:
    """As librdkafka would verify. Raises OSError or ValueError for files that cannot be used."""
    location, pem = config.get("ssl.ca.location"), config.get("ssl.ca.pem")
    is_folder = location is not None and os.path.isdir(str(location))
    context = ssl.create_default_context(
        cafile=None if location is None or is_folder else str(location),
        capath=str(location) if is_folder else None,
        cadata=None if pem is None else str(pem),
    )
    if str(config.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        return unverified()
    if str(config.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        context.check_hostname = False
    certificate = config.get("ssl.certificate.location")
    if certificate is not None:
        key, password = config.get("ssl.key.location"), config.get("ssl.key.password")
        context.load_cert_chain(
            str(certificate), None if key is None else str(key), None if password is None else str(password)
        )
    return context


def _ask_for_login(
    connection: socket.socket, config: ClientConfig
) -> tuple[Sequence[str] | None, str | None]:
    """SaslHandshake, version 1: every listener answers it, one without SASL by an error code of its own."""
    mechanism = (_mechanism(config) or "PLAIN").encode()
    client = b"promptbus"
    body = struct.pack(">hhih", _SASL_HANDSHAKE, 1, 1, len(client)) + client
    body += struct.pack(">h", len(mechanism)) + mechanism
    try:
        connection.sendall(struct.pack(">i", len(body)) + body)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(min(size, 65_536))
        _, code, count = struct.unpack_from(">ihi", answer)
    except ssl.SSLError as error:  # in TLS 1.3 a client's certificate is judged only after the handshake
        return None, f"refuses this client's TLS ({error.reason}): {_OUR_CERTIFICATE}"
    except (OSError, struct.error):
        return None, None
    if code == _ILLEGAL_SASL_STATE:
        return (), None
    names, at = [], 10
    for _ in range(count):
        length = int.from_bytes(answer[at : at + 2], "big")
        names.append(answer[at + 2 : at + 2 + length].decode(errors="replace"))
        at += 2 + length
    return names, None
