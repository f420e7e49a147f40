"""A minimal gRPC client over HTTP/2, for measuring servers.

A call with the generated stub costs its own process more than it costs the server, so a loop of stubs would measure
stubs. This client is for the bench only: it understands the frames that a gRPC server on loopback sends, and for each
method sends the same bytes apart from the message.

Invariants: flow control never delays the server, because all windows have their largest size. A call that ends without
its answer, and a connection that is closed, raise LostError.

Deliberately absent: TLS, compression, header tables. The status of a call is not read, only its messages.
"""

import asyncio
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW, _FIRST_WINDOW = 2**31 - 1, 65_535
_CANCEL = 8


class LostError(Exception):
    """A call or connection ended before its result arrived."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value.encode("ascii")


class Call:
    """One call. `on_message` is called with the bytes of each message, `on_end` when the call has ended."""

    __slots__ = ("_buffer", "id", "on_end", "on_message")

    def __init__(self, id_: int, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.id = id_
        self.on_message = on_message
        self.on_end = on_end
        self._buffer = b""

    def received(self, data: bytes) -> None:
        """Cuts messages from received data."""
        data = self._buffer + data if self._buffer else data
        while len(data) >= 5:
            end = 5 + int.from_bytes(data[1:5], "big")
            if len(data) < end:
                break
            self.on_message(data[5:end])
            data = data[end:]
        self._buffer = data


class Connection(asyncio.Protocol):
    """One connection to a gRPC server, for any number of calls; made by `await Connection.open(server)`."""

    def __init__(self, server: str, metadata: Mapping[str, str]) -> None:
        self._server = server
        self._metadata = b"".join(b"\x00" + _text(name) + _text(value) for name, value in metadata.items())
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._calls: dict[int, Call] = {}
        self._heads: dict[str, bytes] = {}
        self._next_id = 1
        self.closed = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls, server: str, metadata: Mapping[str, str] = MappingProxyType({}), *, source: str = "127.0.0.1"
    ) -> "Connection":
        """Connects to HOST:PORT from `source`; each call carries the metadata. Raises OSError, LostError."""
        host, _, port = server.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(server, metadata), host, int(port), local_addr=(source, 0)
        )
        await connection.ready
        return connection

    def begin(
        self, method: str, message: bytes | None, on_message: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> Call:
        """Begins a call of a method such as /package.Service/Method; with `message` None, the request stays open."""
        call = Call(self._next_id, on_message, on_end)
        self._next_id += 2
        self._calls[call.id] = call
        frames = frame(_HEADERS, _END_HEADERS, call.id, self.head(method))
        if message is not None:
            data = b"\0" + struct.pack(">I", len(message)) + message
            frames += frame(_DATA, _END_STREAM, call.id, data)
        self.send(frames)
        return call

    def send(self, frames: bytes) -> None:
        """Sends frames as they are."""
        assert self._transport is not None
        self._transport.write(frames)

    def head(self, method: str) -> bytes:
        """The header block of a call of `method`."""
        head = self._heads.get(method)
        if head is None:
            # HPACK (RFC 7541), without a table: POST, http, then literals.
            head = b"\x83\x86\x04" + _text(method) + b"\x01" + _text(self._server)
            head += b"\x0f\x10" + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
            head += self._metadata
            self._heads[method] = head
        return head

    async def ask(self, method: str, message: bytes) -> bytes:
        """Makes a unary call and returns its answer. Raises LostError."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(data: bytes) -> None:
            if not answer.done():
                answer.set_result(data)

        def ended() -> None:
            if not answer.done():
                answer.set_exception(LostError(f"{method} ended without an answer"))

        self.begin(method, message, answered, ended)
        return await answer

    def cancel(self, call: Call) -> None:
        """Cancels a call."""
        if self._calls.pop(call.id, None) is not None and self._transport is not None:
            self._transport.write(frame(_RST_STREAM, 0, call.id, struct.pack(">I", _CANCEL)))

    def close(self) -> None:
        """Closes the connection. No `on_end` is called."""
        self._calls.clear()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the settings: windows of the largest size."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class only has the same methods
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, window))

    def data_received(self, data: bytes) -> None:
        """Splits received data into frames."""
        data = self._buffer + data if self._buffer else data
        at, size = 0, len(data)
        while size - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if size < end:
                break
            self._frame_received(
                data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end]
            )
            at = end
        self._buffer = data[at:]

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            if (call := self._calls.get(stream)) is not None:
                call.received(payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._transport.close()
        ends = kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM)
        if ends and (call := self._calls.pop(stream, None)) is not None:
            call.on_end()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: every call ends."""
        self.closed = True
        if not self.ready.done():
            self.ready.set_exception(LostError(f"{self._server} closed the connection: {exc}"))
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_end()
