"""A minimal HTTP server that receives webhooks and callbacks.

A POST to a path that begins with /hang is never answered; to /soap it is answered with an empty envelope, and to any
other path with 204.

Deliberately absent: checks of signatures, chunked requests, TLS.
"""

import asyncio
from collections.abc import Callable
from typing import cast

_NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
_ENVELOPE = (
    b'<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
    b'<loc:statusNotificationResponse xmlns:loc="http://www.csapi.org/schema/parlayx/terminal_status/v2_2/local"/>'
    b"</soapenv:Body></soapenv:Envelope>"
)
_SOAP = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_ENVELOPE),
    _ENVELOPE,
)

OnRequest = Callable[[str, bytes], None]
"""Called with the path and the body of each request, before its answer."""


class _Connection(asyncio.Protocol):
    def __init__(self, on_request: OnRequest) -> None:
        self._on_request = on_request
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class only has the same methods

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        data = self._buffer + data if self._buffer else data
        while True:
            head, blank, rest = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            size = int(length or b"0")
            if not blank or len(rest) < size:
                break
            path = head.split(b" ", 2)[1].decode()
            self._on_request(path, rest[:size])
            if path.startswith("/soap"):
                self._transport.write(_SOAP)
            elif not path.startswith("/hang"):
                self._transport.write(_NO_CONTENT)
            data = rest[size:]
        self._buffer = data


async def receive(on_request: OnRequest) -> asyncio.Server:
    """Listens on a free loopback port."""
    return await asyncio.get_running_loop().create_server(lambda: _Connection(on_request), "127.0.0.1", 0, backlog=4096)
