"""HTTP with the standard library: past a proxy where the server is on this machine, and why nobody answered."""

from __future__ import annotations

import http.client
import ipaddress
import urllib.request
from urllib.error import URLError
from urllib.parse import urlsplit

UNREACHABLE = (OSError, http.client.HTTPException)
"""What `opener` raises when there is no answer. HTTPError is one of them, and is an answer."""


def is_loopback(url: str) -> bool:
    """Whether it leads to this machine. `url` has a scheme."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def opener(url: str) -> urllib.request.OpenerDirector:
    """What opens `url`: an HTTP_PROXY that is set shall not stand before a server on this machine."""
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    return urllib.request.build_opener(*handlers)


def why_unreachable(problem: Exception, timeout_s: float) -> str:
    """The reason in one of the `UNREACHABLE`, for a sentence."""
    reason = problem.reason if isinstance(problem, URLError) else problem
    return f"no answer within {timeout_s:g} s" if isinstance(reason, TimeoutError) else str(reason)
