"""TRITON_URL in all its forms."""

import pytest

from promptbus_worker.triton import TritonClient, split_url


@pytest.mark.parametrize(
    ("url", "address", "tls"),
    [
        ("localhost:8000", "localhost:8000", False),
        ("http://triton:8000", "triton:8000", False),
        ("http://triton", "triton:80", False),
        ("https://triton.example", "triton.example:443", True),
        ("HTTPS://triton.example:8443/", "triton.example:8443", True),
        ("https://gateway/models/triton/", "gateway:443/models/triton", True),
        ("gateway:80/triton", "gateway:80/triton", False),
        ("[::1]:8000", "[::1]:8000", False),
        ("http://[::1]:8000", "[::1]:8000", False),
    ],
)
def test_an_address_is_understood(url: str, address: str, tls: bool) -> None:
    assert split_url(url) == (address, tls)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("triton", "lacks its port"),
        ("", "lacks its host"),
        (":8000", "lacks its host"),
        ("http://", "lacks its host"),
        ("triton:http", "cannot be read"),
        ("triton:99999", "cannot be read"),
        ("grpc://triton:8001", "host:port, http://"),
        ("https://me:secret@triton:8000", "TRITON_API_KEY"),
        ("http://triton:8000/?a=b", "query"),
    ],
)
def test_a_wrong_address_is_refused_with_a_sentence(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        split_url(url)
    assert "secret" not in str(caught.value)


async def test_a_header_with_a_line_break_is_refused_before_any_call() -> None:
    with pytest.raises(ValueError, match="line breaks"):
        TritonClient("localhost:8000", headers={"x-tenant": "a\r\nx-admin: 1"})
