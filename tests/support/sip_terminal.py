"""A SIP client for tests: raw sockets, no PJSIP, no code shared with `app/`. `Terminal` is such a client that
registers.

Invariants: every wait has a deadline. Received messages are parsed by the few lines here, so that a test can look at
the bytes as they came (`SipMessage.raw`).

Deliberately absent: retransmission, authentication, TLS. On loopback no message is lost.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

DEADLINE_S = 10.0

_numbers = itertools.count(1)


def unique() -> str:
    """A unique text for tags, branches and Call-IDs."""
    return f"{secrets.token_hex(4)}{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class SipMessage:
    """One message. `headers` are (name in lower case, value) as they came; compact names are left alone."""

    raw: bytes
    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def code(self) -> int:
        """The status; 0 for a request."""
        return int(self.start.split()[1]) if self.start.startswith("SIP/2.0 ") else 0

    @property
    def method(self) -> str:
        """The method; "" for a response."""
        return "" if self.code else self.start.split()[0]

    def __getitem__(self, name: str) -> str:
        """The first value of a header, "" where absent."""
        return next((value for key, value in self.headers if key == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    @property
    def to_tag(self) -> str:
        """The tag of To, "" where absent."""
        return self["to"].partition(";tag=")[2].partition(";")[0]

    @property
    def contact_uri(self) -> str:
        """The URI in Contact."""
        return self["contact"].partition("<")[2].partition(">")[0]


def read(raw: bytes) -> SipMessage:
    """Parses a message; keeps its bytes unchanged."""
    head, _, body = raw.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    parts = (line.partition(":") for line in lines)
    return SipMessage(raw, start, tuple((name.strip().lower(), value.strip()) for name, _, value in parts), body)


class _Inbox(asyncio.DatagramProtocol):
    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self.closed = asyncio.Event()

    def datagram_received(self, data: bytes, _: tuple[str, int]) -> None:
        self._put(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set()


class SipClient:
    """One UDP socket or TCP connection to a SIP server; `async with SipClient("127.0.0.1", 5060, tcp=True)`."""

    def __init__(self, host: str, port: int, *, tcp: bool = False) -> None:
        self.host, self.port, self.tcp = host, port, tcp
        self.local: tuple[str, int] = ("", 0)
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._held: list[SipMessage] = []
        self._udp: asyncio.DatagramTransport | None = None
        self._inbox: _Inbox | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        """The server has closed the TCP connection."""

    async def __aenter__(self) -> Self:
        if self.tcp:
            reader, self._writer = await asyncio.open_connection(self.host, self.port)
            self.local = self._writer.get_extra_info("sockname")
            self._reading = asyncio.create_task(self._read(reader))
        else:
            self._udp, self._inbox = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Inbox(self._messages.put_nowait), local_addr=("127.0.0.1", 0)
            )
            self.local = self._udp.get_extra_info("sockname")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)
        if self._udp is not None and self._inbox is not None:
            self._udp.close()
            await self._inbox.closed.wait()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(read(head)["content-length"] or 0)
                self._messages.put_nowait(head + await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()

    @property
    def contact(self) -> str:
        """Our Contact URI."""
        return f"sip:watcher@{self.local[0]}:{self.local[1]}{';transport=tcp' if self.tcp else ''}"

    @property
    def via(self) -> str:
        """A new Via value."""
        host, port = self.local
        return f"SIP/2.0/{'TCP' if self.tcp else 'UDP'} {host}:{port};rport;branch=z9hG4bK{unique()}"

    def send(self, data: bytes | str) -> None:
        """Sends the bytes unchanged."""
        data = data.encode() if isinstance(data, str) else data
        if self._writer is not None:
            self._writer.write(data)
        elif self._udp is not None:
            self._udp.sendto(data, (self.host, self.port))

    async def receive(
        self, wanted: Callable[[SipMessage], bool] = lambda _: True, deadline_s: float = DEADLINE_S
    ) -> SipMessage:
        """The next message that is wanted; others are kept for later calls. Raises TimeoutError."""
        for message in self._held:
            if wanted(message):
                self._held.remove(message)
                return message
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    message = read(await self._messages.get())
                    if wanted(message):
                        return message
                    self._held.append(message)
        except TimeoutError:
            held = [message.start for message in self._held]
            raise TimeoutError(f"nothing wanted came in {deadline_s} s; there were {held}") from None

    @property
    def waiting(self) -> int:
        """The number of messages that arrived and were not received yet."""
        return len(self._held) + self._messages.qsize()

    def request(
        self,
        method: str,
        uri: str,
        *headers: str,
        body: bytes = b"",
        call_id: str = "",
        cseq: int = 1,
        to: str = "",
        from_uri: str = "sip:watcher@example.com",
        from_tag: str = "",
        contact: str = "",
        via: str = "",
    ) -> bytes:
        """A request's bytes; parts that are not given have default values."""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: {via or self.via}",
            "Max-Forwards: 70",
            f"From: <{from_uri}>;tag={from_tag or unique()}",
            f"To: {to or f'<{uri}>'}",
            f"Call-ID: {call_id or unique()}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{contact or self.contact}>",
            *headers,
            f"Content-Length: {len(body)}\r\n\r\n",
        ]
        return "\r\n".join(lines).encode() + body

    async def ask(self, method: str, uri: str, *headers: str, body: bytes = b"", **parts: str | int) -> SipMessage:
        """Sends a request and returns its final response."""
        parts.setdefault("call_id", unique())
        self.send(self.request(method, uri, *headers, body=body, **parts))  # type: ignore[arg-type]
        return await self.receive(lambda message: message.code >= 200 and message["call-id"] == parts["call_id"])

    def respond(self, request: SipMessage, code: int = 200, reason: str = "OK") -> None:
        """Answers a request that was received."""
        copied = [f"{name}: {value}" for name, value in request.headers if name in _COPIED]
        self.send("\r\n".join([f"SIP/2.0 {code} {reason}", *copied, "Content-Length: 0\r\n\r\n"]))

    async def notify_for(self, call_id: str, deadline_s: float = DEADLINE_S) -> SipMessage:
        """The next NOTIFY of this dialog, answered with 200."""
        notify = await self.receive(
            lambda message: message.method == "NOTIFY" and message["call-id"] == call_id, deadline_s
        )
        self.respond(notify)
        return notify

    async def fetch(self, uri: str) -> tuple[SipMessage, SipMessage | None]:
        """Sends a fetch: returns the final response and, after a 2xx, the NOTIFY."""
        call_id = unique()
        response = await self.ask("SUBSCRIBE", uri, *EVENT, "Expires: 0", call_id=call_id)
        return response, await self.notify_for(call_id) if response.code < 300 else None


class Terminal(SipClient):
    """A terminal that registers and publishes over its own socket, as the user of `address`; without authentication.

    A registration says that the terminal can be reached; a publication adds its user's activity. Kamailio keeps two
    documents and joins their tuples and persons: an unregistered terminal whose publication still has an open tuple
    stays open. Real terminals withdraw the publication when they unregister, and so does this one.

    Kamailio answers a REGISTER before it has published the registration: it sends itself a PUBLISH, and learns the
    publication's name from the 200. A terminal that unregisters earlier leaves an open document behind. So `register`
    returns when both messages have gone through Kamailio's queue (`_settle`); then a fetch shows the registration.
    """

    def __init__(self, host: str, port: int, address: str, *, tcp: bool = False) -> None:
        super().__init__(host, port, tcp=tcp)
        self.address = address
        self.etag = ""
        """Of the publication that is alive, "" if none is."""
        self._call_id = unique()
        self._tuple_id = f"t{unique()}"
        self._cseq = 0

    async def register(self, expires_s: int = 600) -> None:
        """Registers, or refreshes the registration; 0 unregisters."""
        self._cseq += 1
        response = await self.ask(
            "REGISTER",
            f"sip:{self.address.partition('@')[2]}",
            f"Expires: {expires_s}",
            to=f"<{self.address}>",
            from_uri=self.address,
            call_id=self._call_id,
            cseq=self._cseq,
        )
        _expect(response, 200)
        await self._settle()

    async def _settle(self) -> None:
        """Waits until Kamailio has read its PUBLISH and the 200, by two requests that queue behind them on the UDP
        socket.

        This is exact where one process reads that queue (`children=1`, the default of the fixture).
        """
        async with SipClient(self.host, self.port) as probe:
            for _ in range(2):
                _expect(await probe.ask("OPTIONS", f"sip:{self.host}:{self.port}"), 200)

    async def unregister(self, *, withdraw: bool = True) -> None:
        """Ends the registration. Withdraws the publication first, unless `withdraw` is False."""
        if self.etag and withdraw:
            await self.unpublish()
        await self.register(0)

    async def publish(self, activity: str = "", *, body: bytes = b"", expires_s: int = 600) -> None:
        """Publishes an open tuple and, if given, an RPID activity such as `on-the-phone`; or the given body unchanged.

        Replaces this terminal's earlier publication (SIP-If-Match, RFC 3903).
        """
        await self._publish(body or pidf(self.address, self._tuple_id, activity), expires_s)

    async def refresh(self, expires_s: int = 600) -> None:
        """Refreshes the publication: a PUBLISH without a body (RFC 3903 section 4.3), as most terminals send it."""
        await self._publish(b"", expires_s)

    async def unpublish(self) -> None:
        """Withdraws the publication."""
        await self._publish(b"", 0)
        self.etag = ""

    async def _publish(self, body: bytes, expires_s: int) -> None:
        headers = [
            "Event: presence",
            f"Expires: {expires_s}",
            *([f"SIP-If-Match: {self.etag}"] if self.etag else []),
            *(["Content-Type: application/pidf+xml"] if body else []),
        ]
        response = await self.ask("PUBLISH", self.address, *headers, body=body, from_uri=self.address)
        _expect(response, 200)
        self.etag = response["sip-etag"]


def pidf(address: str, tuple_id: str, activity: str = "") -> bytes:
    """A document in the form that terminals publish: an open tuple, and a person with an activity."""
    person = f'<dm:person id="p{tuple_id}"><rpid:activities><rpid:{activity}/></rpid:activities></dm:person>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><presence xmlns="urn:ietf:params:xml:ns:pidf" '
        'xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" '
        f'entity="{address}"><tuple id="{tuple_id}"><status><basic>open</basic></status></tuple>'
        f"{person if activity else ''}</presence>"
    ).encode()


def _expect(response: SipMessage, code: int) -> None:
    if response.code != code:
        raise AssertionError(f"{response['cseq']} was answered {response.start!r}")


EVENT = ("Event: presence", "Accept: application/pidf+xml")
_COPIED = {"via", "from", "to", "call-id", "cseq"}
