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
import logging
import math
import time
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.auth.credentials import certificate_names
from app.rest.problem import Problem, problem
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

LOG_S = 10.0
"""Least time between two log lines of one kind that any unauthenticated peer can cause."""

REASONS = {400: "Bad Request", 408: "Request Timeout"}


class _Seldom(logging.Filter):
    """Limits the rate of uvicorn's warnings about invalid HTTP and about connections above the limit."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_s: dict[str, float] = {}  # by message; uvicorn has few

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if record.levelno != logging.WARNING or now_s - self._logged_s.get(record.msg, -math.inf) < LOG_S:
            return record.levelno != logging.WARNING
        self._logged_s[record.msg] = now_s
        return True


logging.getLogger("uvicorn.error").addFilter(_Seldom())


async def _transfer_coding_unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 501 to a transfer coding other than chunked (RFC 9112 section 6.1)."""
    why = problem(501, "INVALID_REQUEST", "Transfer-Encoding must be chunked; send the body without compression.")
    headers = {"connection": "close", "cache-control": "no-store"}
    response = Response(why.model_dump_json(), 501, headers, "application/problem+json")
    await response(scope, receive, send)


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
        if self._peer_is_proxy:
            self._read_origin()
        self.limit_concurrency = None if self.url.partition(b"?")[0] in PROBES else self.config.limit_concurrency
        served = self.app
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                self.app = _transfer_coding_unknown  # uvicorn runs it in the order of the connection's requests
            elif name in FORWARDED and self._unauthenticated.watches_forwarded:
                self._unauthenticated.on_forwarded(self.client[0] if self.client else "", name.decode())
        super().on_headers_complete()
        self.app = served

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
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.append((b"host", origin.host.encode()))

    def send_400_response(self, msg: str) -> None:
        """Answers invalid HTTP with a problem."""
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
