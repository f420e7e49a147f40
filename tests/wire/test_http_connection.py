"""Limits of HTTP connections: endless heads, heads and bodies that drip, and connections that send nothing."""

import asyncio
import json

import pytest
import structlog
from starlette.responses import PlainTextResponse

from app.auth.proxies import TrustedProxies
from app.main import Gateway
from app.rest.connection import BoundedConnection
from app.rest.stranger_log import LOG_S
from app.rest.unauthenticated_connections import UnauthenticatedConnections
from app.servers import bound, serve_http

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


async def talk(gateway: Gateway, *chunks: bytes) -> bytes:
    """Sends the chunks and returns all bytes that come until the connection ends."""
    host, _, port = gateway.http_address.rpartition(":")
    return await talk_to(host, int(port), *chunks)


async def talk_to(host: str, port: int, *chunks: bytes) -> bytes:
    """As `talk`, to another server."""
    reader, writer = await asyncio.open_connection(host, port)
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
    """A head that is not complete in time ends the connection; earlier requests on it were answered."""
    monkeypatch.setattr("app.rest.connection.HEAD_LIMIT_S", 0.1)
    received = await talk(gateway, start)
    assert received.count(b"200 OK") == start.count(REQUEST)


async def test_large_body_of_a_get(gateway: Gateway) -> None:
    """A GET with a body of 10 MB is answered, and so is the next request on the connection."""
    body = b"Content-Length: 10000000\r\n\r\n" + b"a" * 10_000_000
    last = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = await talk(gateway, REQUEST.removesuffix(b"\r\n") + body, last)
    assert received.count(b"200 OK") == 2


async def test_upgrade_is_not_taken(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A request for a WebSocket is answered over HTTP, without a log line."""
    upgrade = b"\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert b"200 OK" in await talk(gateway, REQUEST.replace(b"\r\n\r\n", upgrade))
    assert caplog.messages == []


async def test_log_of_what_is_no_http(caplog: pytest.LogCaptureFixture) -> None:
    """Each invalid request is answered. One line in LOG_S is logged, since any stranger can send many; it names the
    peer, and the next one counts those that were left out."""
    now_s = 0.0
    strangers = UnauthenticatedConnections(TrustedProxies(), lambda: now_s)
    with bound("127.0.0.1:0") as listening, structlog.testing.capture_logs() as logs:
        async with serve_http(PlainTextResponse(), listening, None, strangers):
            host, port = listening.getsockname()
            for _ in range(5):
                assert b" 400 " in await talk_to(host, port, b"\0\0\0\0\r\n\r\n")
            now_s = LOG_S
            assert b" 400 " in await talk_to(host, port, b"GET / HTTP/9\r\n\r\n")
    line = {"event": "invalid_http", "log_level": "warning", "peer": "127.0.0.1"}
    assert (logs, caplog.messages) == ([line, line | {"left_out": 4}], [])


async def test_log_of_too_many_connections(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Requests above the limit of connections are logged seldom too, with a peer."""
    monkeypatch.setattr("app.servers.MAX_HTTP_CONNECTIONS", 1)
    with bound("127.0.0.1:0") as listening, structlog.testing.capture_logs() as logs:
        async with serve_http(PlainTextResponse(), listening, None):
            host, port = listening.getsockname()
            for _ in range(5):
                refused = b"GET /v1/groups HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
                assert b" 503 " in await talk_to(host, port, refused)
    assert (logs, caplog.messages) == (
        [{"event": "http_connections_at_limit", "log_level": "warning", "peer": "127.0.0.1"}],
        [],
    )


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ("GET /healthz HTTP/1.1", "missing"),
        ("GET /healthz HTTP/1.1\r\nHost:", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nHost: h", "several"),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nhost: other", "several"),
        ("GET /healthz HTTP/1.0\r\nHost: h\r\nHost: h", "several"),
        ("GET /healthz HTTP/1.1\r\nHost: a b", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: a, b", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: user@h", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: http://h", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h/path", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h:x", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h:65536", "not a host"),
        (f"GET /healthz HTTP/1.1\r\nHost: {'h' * 513}", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h:80:80", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: ::1", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: [::1", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: [1:2]", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h%zz", "not a host"),
        ("GET /healthz HTTP/1.1\r\nHost: h\\", "not a host"),
        ("GET /parlayx/TerminalStatus?wsdl HTTP/1.1", "missing"),
        ("POST /device-reachability-status/v1/retrieve HTTP/1.1\r\nContent-Length: 0", "missing"),
        ("GET http://u@h/healthz HTTP/1.1\r\nHost: h", "not a host"),
    ],
)
async def test_host_that_is_refused(gateway: Gateway, head: str, fault: str) -> None:
    """RFC 9112 section 3.2: a request without Host (HTTP/1.1), with several, or with an invalid one is 400. The
    connection ends, for what follows may belong to another request."""
    received = await talk(gateway, f"{head}\r\n\r\n".encode() + REQUEST)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b" 200 OK" not in received
    body = json.loads(received.partition(b"\r\n\r\n")[2])
    assert (body["code"], body["details"]) == ("INVALID_REQUEST", {"field": "Host"})
    assert fault in body["detail"]


@pytest.mark.parametrize(
    "head",
    [
        "GET /healthz HTTP/1.0",
        *(
            f"GET /healthz HTTP/1.1\r\nHost: {host}"
            for host in ("h", "H.example:", "h:8080", "[::1]:80", "127.0.0.1", "_a_b", "a%20b", "x~!$&'()*+,;=")
        ),
        "GET http://h/healthz HTTP/1.1\r\nHost: h",
    ],
)
async def test_host_that_is_accepted(gateway: Gateway, head: str) -> None:
    """RFC 9112 section 3.2 and RFC 3986 section 3.2.2: any host with or without a port; HTTP/1.0 may omit Host."""
    assert b" 200 OK" in await talk(gateway, f"{head}\r\nConnection: close\r\n\r\n".encode())


async def test_two_authorization_lines_over_soap(gateway: Gateway) -> None:
    """RFC 9110 section 5.3: two Authorization lines are 400, with a fault that a SOAP client can show."""
    head = "POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: h\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n"
    lines = "Authorization: Bearer x\r\n" * 2 + "Connection: close\r\n\r\n<a/>"
    received = await talk(gateway, (head + lines).encode())
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"several Authorization headers" in received
    assert b"Fault>" in received


async def test_host_of_a_target_in_absolute_form(gateway: Gateway) -> None:
    """RFC 9112 section 3.2.2: the target's host counts, not the header's."""
    target = "http://target.example/openapi.json"
    received = await talk(
        gateway, f"GET {target} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n".encode()
    )
    assert b"http://target.example" in received
    assert b"other.example" not in received


async def test_large_head_within_the_bound(gateway: Gateway) -> None:
    """A head of 60 KB is still answered."""
    head = REQUEST.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert b"200 OK" in await talk(gateway, head)


POST = b"POST /v1/groups HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = POST + b"Content-Length: 20\r\n\r\n"


@pytest.mark.parametrize("path", [b"/v1/groups", b"/parlayx/TerminalStatus", b"/nowhere"])
@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip, Chunked", b"identity, chunked"])
async def test_transfer_coding_that_is_not_understood(gateway: Gateway, path: bytes, coding: bytes) -> None:
    """RFC 9112 section 6.1: a body in another coding than chunked is 501 and not read wrongly; the connection ends."""
    head = POST.replace(b"/v1/groups", path) + b"Transfer-Encoding: " + coding + b"\r\n\r\n"
    received = await talk(gateway, REQUEST + head + b"2\r\n{}\r\n0\r\n\r\n")
    assert received.count(b"200 OK") == 1
    assert received.count(b"HTTP/1.1 501 ") == 1
    assert b"Transfer-Encoding" in received.partition(b"501")[2]


async def test_chunked_in_any_case(gateway: Gateway) -> None:
    """Names of transfer codings are case-insensitive."""
    head = CHUNKED.replace(b"chunked", b"Chunked").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 400 " in await talk(gateway, head + b"2\r\n[]\r\n0\r\n\r\n")


async def pieces(gateway: Gateway, *chunks: bytes, every_s: float, until: bytes = b"") -> bytes:
    """Like `talk`, one chunk at a time; returns the bytes that came until the connection ended, or until this text."""
    host, _, port = gateway.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def send() -> None:
        for chunk in chunks:
            writer.write(chunk)
            await asyncio.sleep(every_s)

    sending = asyncio.create_task(send())
    received = b""
    try:
        async with asyncio.timeout(5):
            while not (until and until in received) and (data := await reader.read(65536)):
                received += data
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return received


@pytest.mark.parametrize(
    "start",
    [SIZED, SIZED + b"{", CHUNKED + b"5\r\n{", REQUEST + SIZED + b"{", SIZED.replace(b"20", b"100000") + b"{" * 90_000],
    ids=["nothing", "a-byte", "chunked", "second", "large"],
)
async def test_body_that_never_comes(
    gateway: Gateway, start: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait for a body is bounded; then the request is answered, and the connection ends."""
    monkeypatch.setattr("app.rest.connection.BODY_PAUSE_S", 0.1)
    received = await talk(gateway, start)
    assert received.count(b"200 OK") == start.count(REQUEST)
    assert received.count(b"HTTP/1.1 408 Request Timeout\r\n") == 1
    assert b'"REQUEST_TIMEOUT"' in received
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def test_body_that_drips(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that arrives in small pieces has a time limit as a whole."""
    monkeypatch.setattr("app.rest.connection.BODY_LIMIT_S", 0.3)
    received = await pieces(gateway, CHUNKED, *[b"1\r\n \r\n"] * 400, every_s=0.01)
    assert b" 408 " in received


async def test_body_that_is_slow_but_steady(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that takes longer than the maximum wait for its next piece is accepted; nothing is waited for after it."""
    monkeypatch.setattr("app.rest.connection.BODY_PAUSE_S", 0.4)
    body = [b"Content-Length: 20\r\nConnection: close\r\n\r\n", *[b"{"] * 20]
    received = await pieces(gateway, POST, *body, every_s=0.05)
    assert received.startswith(b"HTTP/1.1 4")
    assert b" 408 " not in received


async def test_body_of_an_answered_request(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer comes before the body, no second answer is sent, and the connection ends."""
    monkeypatch.setattr("app.rest.connection.BODY_PAUSE_S", 0.1)
    received = await talk(gateway, REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 20\r\n\r\n{"))
    assert received.count(b"HTTP/1.1") == received.count(b"200 OK") == 1


@pytest.mark.parametrize(
    ("first", "late"),
    [(REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{"), b"}"), (REQUEST, b"\r\n")],
    ids=["rest", "line"],
)
async def test_connections_that_fall_silent(
    gateway: Gateway, first: bytes, late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a further request is closed after a while, also after an invalid request."""
    begin = BoundedConnection.connection_made

    def connection_made(connection: BoundedConnection, transport: asyncio.Transport) -> None:
        connection.timeout_keep_alive = 0.3  # type: ignore[assignment]  # whole seconds are for settings
        begin(connection, transport)

    monkeypatch.setattr(BoundedConnection, "connection_made", connection_made)
    received = await pieces(gateway, first, late, every_s=0.1)
    assert received.count(b"200 OK") == 1


async def test_idle_connections_outlast_the_limits_of_bodies(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limits of bodies do not apply between requests."""
    monkeypatch.setattr("app.rest.connection.BODY_PAUSE_S", 0.05)
    monkeypatch.setattr("app.rest.connection.BODY_LIMIT_S", 0.05)
    whole = SIZED + b"{" * 20
    received = await pieces(gateway, whole, whole, REQUEST, every_s=0.3, until=b"200 OK")
    assert received.count(b"HTTP/1.1 4") == 2
    assert b" 408 " not in received


@pytest.mark.parametrize("path", ["/healthz", "/v1/groups", "/parlayx/TerminalStatus?wsdl", "/nothing"])
async def test_time_for_which_an_idle_connection_is_kept(gateway: Gateway, path: str) -> None:
    """RFC 2068 section 19.7.1.1: answers on kept connections say how long; RFC 9110 section 7.6.1: by both headers."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
    kept = await talk(gateway, f"{head}\r\n{head}Connection: close\r\n\r\n".encode())
    first, _, second = kept.partition(b"HTTP/1.1 ")[2].partition(b"HTTP/1.1 ")
    assert b"\r\nkeep-alive: timeout=30\r\n" in first.lower()
    assert b"\r\nconnection: keep-alive\r\n" in first.lower()
    assert b"keep-alive" not in second.lower()
    assert b"\r\nconnection: close\r\n" in second.lower()


async def test_connections_that_are_not_kept(gateway: Gateway) -> None:
    """An answer over HTTP/1.0, and one that closes the connection, has no Keep-Alive."""
    assert b"keep-alive" not in (await talk(gateway, b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n")).lower()
    refused = await talk(gateway, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"keep-alive" not in refused.lower()
