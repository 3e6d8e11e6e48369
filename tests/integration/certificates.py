"""Certificates for one run of tests: a CA, what it signed, and a CA that nobody has heard of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class Certificates:
    """PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = self._write("ca.pem", self._authority.cert_pem.bytes())
        other_authority = trustme.CA()
        self.other_ca = self._write("other-ca.pem", other_authority.cert_pem.bytes())
        self.server = self._key_and_chain("server.pem", self._authority.issue_cert("127.0.0.1"))
        """For 127.0.0.1, and for no other name."""
        yesterday = datetime.now(UTC) - timedelta(days=1)
        before = yesterday - timedelta(days=9)
        expired = self._authority.issue_cert("127.0.0.1", not_before=before, not_after=yesterday)
        self.foreign = self._key_and_chain("foreign.pem", other_authority.issue_cert("127.0.0.1"))
        """Of the CA that nobody has heard of."""
        self.expired = self._key_and_chain("expired.pem", expired)
        client = self._authority.issue_cert("client.test", common_name="certified")
        self.client = self._write("client.pem", client.cert_chain_pems[0].bytes())
        """Of the user `certified`."""
        self.client_key = self._write("client.key", _pkcs8(client))

    def _key_and_chain(self, name: str, certificate: trustme.LeafCert) -> Path:
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        return self._write(name, _pkcs8(certificate) + chain)

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


def _pkcs8(certificate: trustme.LeafCert) -> bytes:
    """The private key in the one form that Kafka reads."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
