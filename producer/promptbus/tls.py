"""TLS that does not come about, in sentences: Python's ssl says why, in errors that are wrapped by whoever used it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

CONNECT_S = 5.0
PROBE_S = 2.0

# OpenSSL's numbers (X509_V_ERR_…) are the only thing that tells these apart in every version.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = (62, 64)


def certificate_problem(error: ssl.SSLCertVerificationError, host: str, variable: str, trust: str) -> str:
    """`shows a certificate that …`, with what to do. `variable` names the server; `trust`: how to know another CA."""
    said = error.verify_message
    if error.verify_code == _EXPIRED:
        return "shows a certificate that has expired: renew it there, or set this machine's clock right"
    if error.verify_code == _NOT_YET_VALID:
        return "shows a certificate of the future: set this machine's clock right"
    if error.verify_code in _OTHER_NAME:
        return (
            f"shows a certificate that is not for {host!r}: name the server in {variable} as its certificate does, "
            "or have one issued for that name"
        )
    return f"shows a certificate of a CA that is not known here ({said}): {trust}"


def https_problem(error: BaseException, host: str) -> str | None:
    """Why TLS to Triton failed, with what to do; None if it was not TLS. `error`: as whatever client wrapped it."""
    for cause in _causes(error):
        # aiohttp's errors inherit from ssl's, but say nothing: what they wrap does
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_code"):
            return certificate_problem(cause, host, "TRITON_URL", _trust())
        reason = getattr(cause, "reason", None) if isinstance(cause, ssl.SSLError) else None
        if isinstance(reason, str):
            if "ALERT" in reason:
                return f"refuses this client's TLS ({reason})"
            return f"does not speak TLS ({reason}): write http:// in TRITON_URL, or name its TLS port"
    return None


def http_problem(host: str, port: int) -> str | None:
    """Why plain HTTP to Triton failed, if that is because the port speaks TLS. Blocks for some seconds at most."""
    with suppress(OSError, ValueError):  # nobody is there
        if _speaks_tls(host, port):
            return "speaks TLS: write https:// in TRITON_URL"
    return None


def _speaks_tls(host: str, port: int) -> bool:
    """Whether a server answers a TLS greeting. Raises OSError if none is there."""
    with socket.create_connection((host, port), timeout=PROBE_S) as connection:
        try:
            with unverified().wrap_socket(connection, server_hostname=host):
                return True
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")
        except OSError:
            return False


def unverified() -> ssl.SSLContext:
    """To see whether there is TLS at all; nothing is sent through it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust() -> str:
    file = os.environ.get("SSL_CERT_FILE")
    if file and not os.path.exists(file):
        return f"SSL_CERT_FILE names {file}, which does not exist"
    return "set SSL_CERT_FILE to that CA's PEM file" + (f" (it is {file} now)" if file else "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was made of: clients keep that in attributes of their own."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or one in seen:
            continue
        seen.append(one)
        yield one
        waiting += [getattr(one, name, None) for name in ("certificate_error", "os_error", "reason")]
        waiting += [one.__cause__, one.__context__]
