"""A presence server played by a test, over UDP and TCP on one port: it keeps what arrives, and the test decides what to
send.

Invariants: it answers nothing by itself. Every wait has a deadline.

Deliberately absent: retransmission and every rule of RFC 6665; the sandbox plays servers that follow rules.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.support.sip_terminal import DEADLINE_S, SipMessage, pidf, read, unique

OPEN = pidf("sip:x@example.com", "t1")
BUSY = pidf("sip:x@example.com", "t1", "on-the-phone")


class Asked:
    """One SUBSCRIBE of a dialog, and the messages that a server may send because of it."""

    def __init__(self, request: SipMessage, send: Callable[[bytes], None], server: str, transport: str) -> None:
        self.request, self.send, self.server, self.transport = request, send, server, transport

    def answer(
        self, status: str = "200 OK", *lines: str, tag: str = "a", send: Callable[[bytes], None] | None = None
    ) -> None:
        """A response with this tag; a 2xx grants the requested duration."""
        to = self.request["to"] if ";tag=" in self.request["to"] else f"{self.request['to']};tag={tag}"
        same = [
            f"{name}: {value}" for name, value in self.request.headers if name in {"via", "from", "call-id", "cseq"}
        ]
        granted = [f"Expires: {self.request['expires']}"] if status.startswith("2") else []
        contact = [] if any(line.startswith("Contact") for line in lines) else [f"Contact: <sip:{tag}@{self.server}>"]
        head = [f"SIP/2.0 {status}", *same, f"To: {to}", *contact, *granted, *lines, "Content-Length: 0\r\n\r\n"]
        (send or self.send)("\r\n".join(head).encode())

    def notify(
        self,
        cseq: int,
        body: bytes = OPEN,
        *lines: str,
        tag: str = "a",
        to: str | None = None,
        uri: str = "",
        call_id: str = "",
        branch: str = "",
        state: str = "active;expires=600",
        event: str = "presence",
        send: Callable[[bytes], None] | None = None,
    ) -> None:
        """A NOTIFY with this tag; an empty `state` or `event` omits the header field."""
        request = self.request
        head = [
            f"NOTIFY {uri or request.contact_uri} SIP/2.0",
            f"Via: SIP/2.0/{self.transport} {self.server};rport;branch=z9hG4bK{branch or unique()}",
            "Max-Forwards: 70",
            f"From: {request['to'].partition(';tag=')[0]};tag={tag}",
            f"To: {request['from'] if to is None else to}",
            f"Call-ID: {call_id or request['call-id']}",
            f"CSeq: {cseq} NOTIFY",
            *([] if any(line.startswith("Contact") for line in lines) else [f"Contact: <sip:{tag}@{self.server}>"]),
            *([f"Event: {event}"] if event else []),
            *([f"Subscription-State: {state}"] if state else []),
            *lines,
            "Content-Type: application/pidf+xml",
            f"Content-Length: {len(body)}\r\n\r\n",
        ]
        (send or self.send)("\r\n".join(head).encode() + body)


class ScriptedNotifier(asyncio.DatagramProtocol):
    """Listens on UDP and TCP; `async with ScriptedNotifier("tcp") as server`."""

    def __init__(self, transport: str = "udp") -> None:
        self.transport = transport
        self.port = 0
        self._come: asyncio.Queue[tuple[SipMessage, Callable[[bytes], None]]] = asyncio.Queue()
        self._held: list[tuple[SipMessage, Callable[[bytes], None]]] = []
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, ("127.0.0.1", self.port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        if self._tcp is not None and self._udp is not None:
            self._tcp.close()
            self._udp.close()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The URI of this server, as the setting names it."""
        return f"sip:{self.host};transport={self.transport}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._came(data, lambda answer: self._udp.sendto(answer, addr) if self._udp else None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lstrip()
                self._came(head + await reader.readexactly(int(read(head)["content-length"] or 0)), writer.write)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._writers.discard(writer)
            writer.close()

    def _came(self, data: bytes, send: Callable[[bytes], None]) -> None:
        if data.strip():
            self._come.put_nowait((read(data), send))

    async def receive(
        self, wanted: Callable[[SipMessage], bool], deadline_s: float = DEADLINE_S
    ) -> tuple[SipMessage, Callable[[bytes], None]]:
        """The next message that is wanted, and a function that sends to its sender; other messages are kept for later
        calls. Raises TimeoutError."""
        for each in self._held:
            if wanted(each[0]):
                self._held.remove(each)
                return each
        async with asyncio.timeout(deadline_s):
            while True:
                come = await self._come.get()
                if wanted(come[0]):
                    return come
                self._held.append(come)

    async def asked(self, *, cseq_after: int = 0, but: str = "") -> Asked:
        """The next SUBSCRIBE whose CSeq is above the given one and whose Call-ID is not the given one."""
        request, send = await self.receive(
            lambda message: (
                message.method == "SUBSCRIBE"
                and int(message["cseq"].split()[0]) > cseq_after
                and message["call-id"] != but
            )
        )
        return Asked(request, send, self.host, self.transport.upper())

    async def notify_answer(self, cseq: int) -> int:
        """The status code with which the NOTIFY of this CSeq was answered."""
        message, _ = await self.receive(lambda message: message.code > 0 and message["cseq"] == f"{cseq} NOTIFY")
        return message.code
