"""One HTTP connection, bounded where uvicorn leaves it open: the size of a request's head, and the time that head and
body may take.

Of a request that a trusted proxy brings, the scope names the client, scheme and host that the proxy names
(`TrustedProxies.origin`), so that nothing behind this looks at the headers of proxies.

An upgrade (WebSocket, h2c) is not taken and not logged: the request is answered as any other, as HTTP allows. The names
in a client certificate that TLS has verified stand in the scope, where `authenticator.asgi_credentials` finds them.

A connection counts among its address's strangers until it brings an authenticated request, of which the application
tells it by the scope's `authenticated`. Strangers' requests begin in turn (`turns.py`); an application that works long
on one awaits the scope's `turn` before each piece.

The size of a body is the applications' to bound. Deliberately absent: HTTP itself, which is httptools' and uvicorn's.
"""

import asyncio
import logging
import math
import time
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.auth.authenticator import certificate_names
from app.rest.middleware import Problem, problem
from app.rest.unauthenticated import Strangers

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; whoever sends more is cut off."""

MAX_PIPELINED = 16
"""Requests that wait for an earlier one's answer; whoever sends more is cut off. They are read before it is answered:
of 256 each, two hundred connections kept everybody else waiting for four seconds."""

SLICE = 16 * 1024
"""What httptools gets at a time, between which the bounds are looked at: a read of the socket may bring 256 KiB."""

PROBES = (b"/healthz", b"/readyz")
"""What is answered however many connections there are."""

HEAD_LIMIT_S = 10.0
"""From connecting, or from a further request's first byte, to the end of its head."""

BODY_PAUSE_S = 20.0
"""The longest wait for more of a request's body."""

BODY_LIMIT_S = 60.0
"""From the end of a request's head to the end of its body. Neither limit runs while it is us who do not read."""

LOG_S = 10.0
"""Least time between two log lines of one kind that any stranger can cause."""

REASONS = {400: "Bad Request", 408: "Request Timeout"}


class _Seldom(logging.Filter):
    """Bounds uvicorn's warnings: what is no HTTP, and connections above the limit."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_s: dict[str, float] = {}  # by message, of which uvicorn has few

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if record.levelno != logging.WARNING or now_s - self._logged_s.get(record.msg, -math.inf) < LOG_S:
            return record.levelno != logging.WARNING
        self._logged_s[record.msg] = now_s
        return True


logging.getLogger("uvicorn.error").addFilter(_Seldom())


async def _transfer_coding_unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request whose body is encoded otherwise than chunked (RFC 9112 section 6.1)."""
    why = problem(501, "INVALID_REQUEST", "Transfer-Encoding may only be chunked; send the body without compression.")
    headers = {"connection": "close", "cache-control": "no-store"}
    response = Response(why.model_dump_json(), 501, headers, "application/problem+json")
    await response(scope, receive, send)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with a bound on heads and bodies. A head that is too large or too slow ends the connection.
    So does a body that is too slow, with 408 where nothing was answered yet."""

    def __init__(self, *args: Any, strangers: Strangers, **more: Any) -> None:
        super().__init__(*args, **more)
        self._strangers = strangers
        self._stranger_of: str | None = None
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
        self._peer_is_proxy = self._strangers.proxies.trusts(peer)
        if not self._peer_is_proxy:
            self._stranger_of = self._strangers.join(peer, self)
        self._client_cert_names = certificate_names(transport.get_extra_info("peercert"))
        self._deadline = self.loop.call_later(HEAD_LIMIT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._authenticated()
        super().connection_lost(exc)

    def give_way(self) -> None:
        """Ends the connection for a newer one of its address."""
        self.transport.abort()

    def _authenticated(self) -> None:
        if self._stranger_of is not None:
            self._strangers.leave(self._stranger_of, self)
            self._stranger_of = None

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
            # uvicorn stopped that clock for what was no request: the rest of an answered one, or an empty line.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # httptools reads no further
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["authenticated"] = self._authenticated  # type: ignore[typeddict-unknown-key]  # ours
        self.scope["turn"] = self._turn  # type: ignore[typeddict-unknown-key]
        if self._client_cert_names:
            self.scope["extensions"] = {"tls": {"client_cert_names": self._client_cert_names}}

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._body_due = False, True, None
        self._stop_clock()
        if self._peer_is_proxy:
            self._believe_the_proxy()
        self.limit_concurrency = None if self.url.partition(b"?")[0] in PROBES else self.config.limit_concurrency
        served = self.app
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                self.app = _transfer_coding_unknown  # in the order of the connection's requests, as any other answer
        super().on_headers_complete()
        self.app = served

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._stranger_of is None:
            super()._start_asgi_task(cycle, app)
            return
        begin = super()._start_asgi_task

        def start() -> None:
            if not self.transport.is_closing():
                begin(cycle, app)

        self._strangers.turns.add(self._stranger_of, start)

    async def _turn(self, client: str = "") -> None:
        """Returns when it is the turn of the stranger's address, or of the client."""
        await self._strangers.turns.come(self._stranger_of or client)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._peer_is_proxy:
            self._authenticated()
        super().on_response_complete()

    def _believe_the_proxy(self) -> None:
        peer = self.client[0] if self.client else ""
        origin = self._strangers.proxies.origin(peer, self.headers)
        self._authenticated()
        if origin.address != peer:
            self.scope["client"] = origin.address, 0
        if not self._strangers.proxies.trusts(origin.address):
            self._stranger_of = self._strangers.join(origin.address, self)
        if origin.scheme:
            self.scope["scheme"] = origin.scheme
        if origin.host:
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.append((b"host", origin.host.encode()))

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every failure is."""
        if not self.transport.is_closing():
            self._refuse(problem(400, "INVALID_REQUEST", "This is no HTTP request."))

    def _unsupported_upgrade_warning(self) -> None:
        """Two warnings a request, which any stranger may send, with advice to install what is left out on purpose."""

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
        elif self.flow.read_paused or self.pipeline:  # it is we who do not read on, or an earlier request's answer runs
            self._body_due = None
            self._wait_for_body()
        elif self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(problem(408, "REQUEST_TIMEOUT", "The request's body did not come in time.", retryable=True))
            self._deadline = self.loop.call_later(BODY_PAUSE_S, self.transport.abort)  # whoever does not read it either
            self.cycle.disconnected = True  # so the application hears of it, and writes nothing behind it
            self.cycle.message_event.set()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
