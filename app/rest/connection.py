"""One HTTP connection, bounded where uvicorn leaves it open: the size of a request's head, and the time it may take.

An upgrade (WebSocket, h2c) is not taken and not logged: the request is answered as any other, as HTTP allows. The names
in a client certificate that TLS has verified stand in the scope, where `auth.asgi_credentials` finds them.

Bodies are the applications' to bound. Deliberately absent: HTTP itself, which is httptools' and uvicorn's.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.auth.authenticator import certificate_names
from app.rest.around import problem

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; whoever sends more is cut off."""

HEAD_LIMIT_S = 10.0
"""From connecting, or from a further request's first byte, to the end of its head."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with a bound on heads. A head that is too large or too slow ends the connection."""

    _head_bytes = 0
    _in_head = True
    _deadline: asyncio.TimerHandle | None = None
    _client_cert_names: tuple[str, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._client_cert_names = certificate_names(transport.get_extra_info("peercert"))
        self._deadline = self.loop.call_later(HEAD_LIMIT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_LIMIT_S, self.transport.abort)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        if self._client_cert_names:
            self.scope["extensions"] = {"tls": {"client_cert_names": self._client_cert_names}}

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every failure is."""
        refused = problem(400, "INVALID_REQUEST", "This is no HTTP request.").model_dump_json().encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n"
            f"content-length: {len(refused)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + refused)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Two warnings a request, which any stranger may send, with advice to install what is left out on purpose."""

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
