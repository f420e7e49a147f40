"""One HTTP connection: uvicorn's, with limits for the size of a request's head and for the time of head and body.

The scope of a request names the client, scheme and host that a trusted proxy states (`TrustedProxies.origin`), so no
other module reads proxies' headers. It also has the names of a verified client certificate, for
`authenticator.asgi_credentials`. Upgrades (WebSocket, h2c) are answered as plain requests, as HTTP allows.

A connection counts as unauthenticated (`unauthenticated_connections.py`) until the application calls the scope's
`on_authenticated`. Until then its requests wait for their turn (`work_queue.py`); an application with much work for one
request awaits the scope's `wait_for_turn` before each piece.

Deliberately absent: HTTP itself (httptools and uvicorn), and the limit of a body's size, which each application sets.
"""

import asyncio
import ipaddress
import logging
import re
from functools import lru_cache
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.auth.credentials import certificate_names
from app.rest.problem import MEDIA_TYPE, Problem, problem
from app.rest.unauthenticated_connections import UnauthenticatedConnections

MAX_HEAD_BYTES = 64 * 1024
"""Limit of request line and headers together; a longer head ends the connection."""

MAX_PIPELINED = 16
"""Limit of requests that wait until an earlier request is answered; one more ends the connection. uvicorn would read
any number of them ahead: two hundred connections with 256 each delayed all other calls by four seconds."""

SLICE = 16 * 1024
"""Bytes passed to httptools at a time; the limits are checked in between. A read of the socket may return 256 KiB."""

PROBES = (b"/healthz", b"/readyz")
"""Paths that are served regardless of the limit of connections."""

FORWARDED = (b"x-forwarded-proto", b"x-forwarded-host", b"forwarded")
"""Headers by which a proxy states the scheme and host that its client used."""

HEAD_LIMIT_S = 10.0
"""Time limit for a request's head: from the start of the connection, or from a later request's first byte."""

BODY_PAUSE_S = 20.0
"""The longest pause within a request's body."""

BODY_LIMIT_S = 60.0
"""Time limit for a request's body, from the end of its head. BODY_PAUSE_S and BODY_LIMIT_S do not run while the gateway
does not read."""

REASONS = {400: "Bad Request", 408: "Request Timeout"}


# uvicorn's warnings name no peer, and a stranger can cause any number: `StrangerLog` has a line for each kind.
logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno != logging.WARNING)


def _refusal(why: Problem) -> ASGIApp:
    """Returns an application that answers `why` and ends the connection. uvicorn runs it in the order of requests."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"connection": "close", "cache-control": "no-store"}
        await Response(why.model_dump_json(), why.status, headers, MEDIA_TYPE)(scope, receive, send)

    return refuse


_TRANSFER_CODING_UNKNOWN = _refusal(
    problem(501, "INVALID_REQUEST", "Transfer-Encoding must be chunked; send the body without compression.")
)
"""RFC 9112 section 6.1."""


def _invalid_host(detail: str) -> ASGIApp:
    return _refusal(problem(400, "INVALID_REQUEST", detail, details={"field": "Host"}))


_HOST_MISSING = _invalid_host("The header Host is missing; HTTP/1.1 requires it.")
_HOST_TWICE = _invalid_host("The request has several Host headers; send one.")
_HOST_INVALID = _invalid_host("The header Host is not a host with an optional port.")

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,5}))?")
"""RFC 3986 sections 3.2.2 and 3.2.3, without IPvFuture."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


MAX_HOST = 512
"""Longest Host in bytes. A name of DNS has 255 at most, and strangers could fill the cache below with longer ones."""


def _is_host(value: bytes) -> bool:
    return len(value) <= MAX_HOST and _has_form_of_host(value)


@lru_cache(1024)
def _has_form_of_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match[2] or b"0") > 65535:
        return False
    try:
        return not match[1] or bool(ipaddress.IPv6Address(match[1].decode()).packed)
    except ValueError:
        return False


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits. A head that is too large or too slow ends the connection. So does a body that is
    too slow, after 408 if no answer has begun."""

    def __init__(self, *args: Any, unauthenticated: UnauthenticatedConnections, **more: Any) -> None:
        super().__init__(*args, **more)
        self._unauthenticated = unauthenticated
        self._joined: str | None = None  # the key under which the connection counts
        self._peer_is_proxy = False

    _head_bytes = 0
    _in_head = True
    _in_body = False
    _body_due: float | None = None
    _deadline: asyncio.TimerHandle | None = None
    _client_cert_names: tuple[str, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        self._peer_is_proxy = self._unauthenticated.proxies.trusts(peer)
        if not self._peer_is_proxy:
            self._joined = self._unauthenticated.join(peer, self)
        self._client_cert_names = certificate_names(transport.get_extra_info("peercert"))
        self._deadline = self.loop.call_later(HEAD_LIMIT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._on_authenticated()
        super().connection_lost(exc)

    def give_way(self) -> None:
        """Ends the connection in favour of a newer one from its address."""
        self.transport.abort()

    def _on_authenticated(self) -> None:
        if self._joined is not None:
            self._unauthenticated.leave(self._joined, self)
            self._joined = None

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), SLICE):
            self._slice_received(data[at : at + SLICE] if len(data) > SLICE else data)
            if self.transport.is_closing():
                return

    def _slice_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_LIMIT_S, self.transport.abort)
        elif self._in_body:
            self._wait_for_body()
        elif self.cycle.response_complete and not self.pipeline and self.timeout_keep_alive_task is None:
            # uvicorn stopped this timer, but the bytes began no request: they were an empty line, or the rest of an
            # answered request.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # so that httptools stops reading
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["on_authenticated"] = self._on_authenticated  # type: ignore[typeddict-unknown-key]  # ours
        self.scope["wait_for_turn"] = self._wait_for_turn  # type: ignore[typeddict-unknown-key]
        if self._client_cert_names:
            self.scope["extensions"] = {"tls": {"client_cert_names": self._client_cert_names}}

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._body_due = False, True, None
        self._stop_clock()
        refusal = self._refusal_of_head()
        if self._peer_is_proxy:
            self._read_origin()
        self.limit_concurrency = None if self.url.partition(b"?")[0] in PROBES else self.config.limit_concurrency
        served, limit = self.app, self.limit_concurrency
        self.app = refusal or served
        if limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit):
            self._unauthenticated.log.add("http_connections_at_limit", self._peer())
        super().on_headers_complete()
        self.app = served

    def _refusal_of_head(self) -> ASGIApp | None:
        """What answers the request if its head is invalid. Replaces the Host of a target in absolute form by the
        target's (RFC 9112 section 3.2.2)."""
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
                if not _is_host(value):
                    return _HOST_INVALID
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                return _TRANSFER_CODING_UNKNOWN
            elif name in FORWARDED and self._unauthenticated.watches_forwarded:
                self._unauthenticated.on_forwarded(self.client[0] if self.client else "", name.decode())
        if hosts > 1:
            return _HOST_TWICE
        if not hosts and self.parser.get_http_version() == "1.1":
            return _HOST_MISSING
        if self.url[:1] != b"/" and (absolute := _ABSOLUTE.match(self.url)):
            if not _is_host(absolute[1]):
                return _HOST_INVALID
            self._set_host(absolute[1])
        return None

    def _set_host(self, host: bytes) -> None:
        self.headers[:] = [each for each in self.headers if each[0] != b"host"]
        self.headers.append((b"host", host))

    def _peer(self) -> str:
        client = self.scope["client"]  # a trusted proxy may have named another than `self.client`
        return client[0] if client else ""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._joined is None:
            super()._start_asgi_task(cycle, app)
            return
        begin = super()._start_asgi_task

        def start() -> None:
            if not self.transport.is_closing():
                begin(cycle, app)

        self._unauthenticated.work.add(self._joined, start)

    async def _wait_for_turn(self, client: str = "") -> None:
        """Returns when the address of an unauthenticated caller, or else the client, has its turn."""
        await self._unauthenticated.work.wait_for_turn(self._joined or client)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._peer_is_proxy:
            self._on_authenticated()
        super().on_response_complete()

    def _read_origin(self) -> None:
        peer = self.client[0] if self.client else ""
        origin = self._unauthenticated.proxies.origin(peer, self.headers)
        self._on_authenticated()
        if origin.address != peer:
            self.scope["client"] = origin.address, 0
        if not self._unauthenticated.proxies.trusts(origin.address):
            self._joined = self._unauthenticated.join(origin.address, self)
        if origin.scheme:
            self.scope["scheme"] = origin.scheme
        if origin.host:
            self._set_host(origin.host.encode())

    def send_400_response(self, msg: str) -> None:
        """Answers invalid HTTP with a problem."""
        self._unauthenticated.log.add("invalid_http", self.client[0] if self.client else "")
        if not self.transport.is_closing():
            self._refuse(problem(400, "INVALID_REQUEST", "This is not an HTTP request."))

    def _unsupported_upgrade_warning(self) -> None:
        """Logs nothing: uvicorn would log two warnings for a request that anybody may send, and advise to install a
        library that is left out on purpose."""

    def _refuse(self, why: Problem) -> None:
        refused = why.model_dump_json().encode()
        head = (
            f"HTTP/1.1 {why.status} {REASONS[why.status]}\r\ncontent-type: application/problem+json\r\n"
            f"cache-control: no-store\r\ncontent-length: {len(refused)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + refused)
        self.transport.close()

    def _wait_for_body(self) -> None:
        self._stop_clock()
        now = self.loop.time()
        if self._body_due is None:
            self._body_due = now + BODY_LIMIT_S
        self._deadline = self.loop.call_at(min(now + BODY_PAUSE_S, self._body_due), self._body_is_late)

    def _body_is_late(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        elif self.flow.read_paused or self.pipeline:  # the gateway does not read, or still answers an earlier request
            self._body_due = None
            self._wait_for_body()
        elif self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(problem(408, "REQUEST_TIMEOUT", "The request's body did not arrive in time.", retryable=True))
            self._deadline = self.loop.call_later(
                BODY_PAUSE_S, self.transport.abort
            )  # in case the peer does not read the answer either
            self.cycle.disconnected = True  # so that the application stops, and writes nothing after this answer
            self.cycle.message_event.set()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
