"""The sandbox's sockets: UDP and TCP on one port, messages cut from TCP streams, and connections opened to a Contact.

Invariants: `on_message` is called with whole messages only, and an exception in it does not close a socket. Bounded:
message size, connections (a new one is refused), unsent bytes (the connection is closed) and messages waiting for a
connection (a new one is dropped).

Deliberately absent: TLS, IPv6 and DNS. A host that is not an IPv4 address means "where the request came from".
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog

from app.sandbox import messages

MAX_CONNECTIONS = 256
MAX_UNSENT_BYTES = 16_000_000
MAX_WAITING = 1_000
CONNECT_TIMEOUT_S = 5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a message came from or goes to. Over TCP, `connection` is the connection that the message arrived on."""

    host: str
    port: int
    tcp: bool = False
    connection: "Connection | None" = None


class Connection(asyncio.Protocol):
    """One TCP connection, opened by either side."""

    def __init__(self, owner: "Transport") -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._peer = Peer(host="", port=0, tcp=True, connection=self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        host, port = transport.get_extra_info("peername") or ("", 0)
        self._peer = Peer(host=host, port=port, tcp=True, connection=self)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class has the same methods, but is no subclass
        if not self._owner.admit(self):
            self.close()

    @property
    def open(self) -> bool:
        return self._transport is not None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self.open:
                while self._buffer.startswith(b"\r\n"):  # RFC 5626, 4.4.1: a ping is two line ends, its pong one
                    ping = self._buffer.startswith(b"\r\n\r\n")
                    del self._buffer[: 4 if ping else 2]
                    if ping:
                        self.send(b"\r\n")
                message = messages.cut(self._buffer)
                if message is None:
                    return
                self._owner.deliver(message, self._peer)
        except messages.Malformed as error:  # where the next message starts is unknown
            self._owner.drop(str(error))
            self.close()

    def send(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._owner.forget(self)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, owner: "Transport") -> None:
        self._owner = owner
        self.closed = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data.strip(b"\r\n\0 "):  # else a keep-alive
            self._owner.deliver(data, Peer(host=addr[0], port=addr[1]))

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, OSError) and exc.errno == errno.EMSGSIZE:
            self._owner.drop("a message to send is too long for UDP")

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set()


class Transport:
    """UDP and TCP on `host:port`; `port` 0 takes a port that is free on both. Counts dropped messages in `counts`."""

    def __init__(self, host: str, port: int, on_message: Callable[[bytes, Peer], None], counts: Counter[str]) -> None:
        self._host = host
        self.port = port
        self._on_message = on_message
        self._counts = counts
        self._udp: asyncio.DatagramTransport | None = None
        self._datagrams: _Datagrams | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._opened: dict[tuple[str, int], Connection] = {}
        self._waiting: dict[tuple[str, int], list[bytes]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._all_closed = asyncio.Event()
        self._local_hosts: dict[str, str] = {}

    async def start(self) -> None:
        """Raises OSError, naming host and port, if it cannot listen there."""
        loop = asyncio.get_running_loop()
        for attempts_left in (7, 6, 5, 4, 3, 2, 1, 0):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                udp.setblocking(False)
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)  # for bursts; the system may allow less
                udp.bind((self._host, self.port))
                port: int = udp.getsockname()[1]
                self._server = await loop.create_server(
                    lambda: Connection(self), self._host, port, family=socket.AF_INET, backlog=512
                )
            except OSError as error:
                udp.close()
                if self.port == 0 and error.errno == errno.EADDRINUSE and attempts_left:
                    continue  # free on UDP, taken on TCP
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
                message = f"The sandbox cannot listen on {self._host}:{self.port} (UDP and TCP): {reason}"
                raise OSError(error.errno, message) from error
            self._udp, self._datagrams = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
            self.port = port
            return

    async def stop(self) -> None:
        self._stopping = True
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        while self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()
        if self._udp is not None and self._datagrams is not None:
            self._udp.close()
            await self._datagrams.closed.wait()

    def local_host(self, peer_host: str) -> str:
        """The sandbox's own address for messages to that peer."""
        if self._host not in ("", "0.0.0.0"):  # noqa: S104 - compared, not bound
            return self._host
        if peer_host not in self._local_hosts:
            if len(self._local_hosts) >= 1_000:
                self._local_hosts.clear()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                with contextlib.suppress(OSError):
                    probe.connect((peer_host, 9))  # sends nothing: asks the routing table
                self._local_hosts[peer_host] = probe.getsockname()[0]
        return self._local_hosts[peer_host]

    def contact(self, peer: Peer) -> str:
        """The Contact header to send to that peer."""
        tcp = ";transport=tcp" if peer.tcp else ""
        return f"Contact: <sip:{self.local_host(peer.host)}:{self.port}{tcp}>"

    def target(self, uri: messages.Uri | None, source: Peer) -> Peer:
        """Where to send a request for this URI (a Contact) in a dialog that `source` began."""
        if uri is None:
            return source
        host, port = (uri.host, uri.port or 5060) if _is_ipv4(uri.host) else (source.host, source.port)
        if uri.transport not in ("tcp", "tls"):  # TLS may be terminated in front of the sandbox
            return Peer(host=host, port=port)
        connection = source.connection if source.connection and source.connection.open else None
        return Peer(host=host, port=port, tcp=True, connection=connection)

    def send(self, data: bytes, peer: Peer) -> None:
        """Sends the message, or drops it without an error: transactions handle lost messages."""
        if not peer.tcp:
            if self._udp is not None and not self._udp.is_closing() and 0 < peer.port < 65_536:
                self._udp.sendto(data, (peer.host, peer.port))
            return
        key = (peer.host, peer.port)
        connection = peer.connection if peer.connection and peer.connection.open else self._opened.get(key)
        if connection is not None:
            connection.send(data)
        elif key in self._waiting:
            if len(self._waiting[key]) < MAX_WAITING:
                self._waiting[key].append(data)
        elif len(self._connections) + len(self._waiting) < MAX_CONNECTIONS:
            self._waiting[key] = [data]
            task = asyncio.create_task(self._connect(key), name=f"connect {peer.host}:{peer.port}")
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, key: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self), *key)
            self._opened[key] = connection
            for data in self._waiting[key]:
                connection.send(data)
        except (OSError, OverflowError, TimeoutError) as error:
            self.drop(f"no connection to {key[0]}:{key[1]}: {error}")
        finally:
            del self._waiting[key]

    def deliver(self, data: bytes, peer: Peer) -> None:
        """Passes a whole message to `on_message`. An exception there loses the message, but does not close the
        socket."""
        try:
            self._on_message(data, peer)
        except messages.Malformed as error:
            self.drop(str(error))
        except Exception:
            self._counts["failed"] += 1
            _log.exception("sandbox_message_failed")

    def drop(self, reason: str) -> None:
        """Counts a message that was dropped."""
        self._counts["dropped"] += 1
        _log.debug("sandbox_message_dropped", reason=reason)

    def admit(self, connection: Connection) -> bool:
        """Registers a new connection. Returns False if it must be closed: there are too many, or the sandbox stops."""
        self._connections.add(connection)
        return len(self._connections) <= MAX_CONNECTIONS and not self._stopping

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self._connections.discard(connection)
        for key in [key for key, opened in self._opened.items() if opened is connection]:
            del self._opened[key]
        if not self._connections:
            self._all_closed.set()


def _is_ipv4(host: str) -> bool:
    """Whether sending there needs no name server, which would block."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True
