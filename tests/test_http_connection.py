"""What an HTTP client may not do to the gateway: heads without end, heads that drip, connections that say nothing."""

import asyncio

import pytest

from app.main import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


async def talk(gateway: Gateway, *chunks: bytes) -> bytes:
    """Sends the chunks and returns all that comes until the connection ends."""
    host, _, port = gateway.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    try:
        async with asyncio.timeout(5):
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
            received = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 10_000_000,
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 10_000_000,
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 1_000_000,
    ],
    ids=["url", "header", "headers"],
)
async def test_endless_head(gateway: Gateway, head: bytes) -> None:
    """A head beyond the bound ends the connection without an answer, and the next request is answered."""
    assert await talk(gateway, head) == b""
    assert b"200 OK" in await talk(gateway, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))


@pytest.mark.parametrize("start", [b"", REQUEST[:20], REQUEST + REQUEST[:20]], ids=["silent", "first", "second"])
async def test_slow_head(gateway: Gateway, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not come to an end in time ends the connection; requests before it were answered."""
    monkeypatch.setattr("app.rest.connection.HEAD_LIMIT_S", 0.1)
    received = await talk(gateway, start)
    assert received.count(b"200 OK") == start.count(REQUEST)


async def test_large_body_of_a_get(gateway: Gateway) -> None:
    """A GET with a body of 10 MB is answered, and the next request on the connection too."""
    body = b"Content-Length: 10000000\r\n\r\n" + b"a" * 10_000_000
    last = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = await talk(gateway, REQUEST.removesuffix(b"\r\n") + body, last)
    assert received.count(b"200 OK") == 2


async def test_upgrade_is_not_taken(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for a WebSocket is answered over HTTP, and the log does not hear of it."""
    upgrade = b"\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert b"200 OK" in await talk(gateway, REQUEST.replace(b"\r\n\r\n", upgrade))
    assert caplog.messages == []


async def test_large_head_within_the_bound(gateway: Gateway) -> None:
    """A head of 60 KB is still answered."""
    head = REQUEST.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert b"200 OK" in await talk(gateway, head)
