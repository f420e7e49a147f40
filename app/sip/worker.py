"""The child process that speaks SIP: one thread, one PJSIP endpoint, one socket to the gateway.

Run as `python -m app.sip.worker FD`, with the inherited Unix socket FD. It blocks in PJSIP's select, which that
socket has joined, so commands and packets wake it at once. NOTIFYs are answered within PJSIP before they are
looked at.

Invariants: it leaves when the socket closes, so a dead parent leaves no orphan; it leaves by `os._exit`, for PJSIP
aborts in an ordinary exit. A fetch that is not cancelled is answered exactly once.

Deliberately absent: time limits (the parent's), the reading of documents, and every decision about meaning.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable

from app.sip.dialog import BAD_ADDRESS, retry_expires_s
from app.sip.frames import (
    Cancel,
    CannotStart,
    Command,
    Configure,
    Decoder,
    Failed,
    Fetch,
    FrameError,
    Notified,
    Ping,
    Pong,
    Report,
    Started,
    encode,
)
from app.sip.library import AddressRefused, SipStackError
from app.sip.message import Event, Notify
from app.sip.pjsip import Stack, Subscription, leave

_IDLE_MS = 1000
_BUSY_MS = 5
_FEW = 4
"""With fewer fetches in progress a report leaves at once; with more they leave together."""

_MOST_POLLS_PER_TURN = 64
"""After this many packets or commands in a row, what they gave is sent to the parent before more are taken."""


BURST = 64
"""Most SUBSCRIBEs sent within BURST_S that are not answered yet. A UDP socket of default size holds about 90; what is
sent into a full one is lost, and sent again only half a second later."""

BURST_S = 0.025
"""After so long without an answer a SUBSCRIBE no longer holds others up, so silent presentities delay nobody."""


class _Query:
    """One fetch, waiting to be sent or in progress. `recent` while it counts against BURST."""

    __slots__ = ("address", "asked_s", "id", "recent", "sent_at_s", "subscription")

    def __init__(self, number: int, address: str) -> None:
        self.id = number
        self.address = address
        self.asked_s = 0
        self.subscription: Subscription | None = None
        self.recent = False
        self.sent_at_s = 0.0


class Worker:
    """Turns commands into SUBSCRIBEs, and what comes back into reports."""

    def __init__(self, sock: socket.socket, stack: Stack, decoder: Decoder[Command]) -> None:
        self._sock = sock
        self._stack = stack
        self._decoder = decoder
        self._queries: dict[int, _Query] = {}
        self._waiting: deque[_Query] = deque()
        self._recent: deque[_Query] = deque()
        self._recent_count = 0
        self._reports: list[Report] = []
        self._unsent = bytearray()
        self._open = True

    def run(self, commands: Iterable[Command]) -> None:
        """Carries out `commands`, then those from the socket, until the parent closes it."""
        for command in commands:
            self._obey(command)
        self._stack.attach(self._sock, self._received)
        self._reports.append(Started(self._stack.build, self._stack.ports))
        while self._open:
            self._flush()
            polls = 0
            timeout_ms = _BUSY_MS if self._unsent or self._waiting else _IDLE_MS
            while self._stack.poll(timeout_ms) and polls < _MOST_POLLS_PER_TURN:
                self._work()
                if len(self._queries) < _FEW:
                    self._flush()
                timeout_ms = 0
                polls += 1
            self._work()

    def _received(self, data: bytes) -> None:
        """Called inside `poll`, but outside every dialog's lock: commands may be carried out here."""
        if not data:
            self._open = False
            return
        try:
            for command in self._decoder.feed(data):
                self._obey(command)
        except FrameError:
            self._open = False

    def _obey(self, command: Command) -> None:
        if isinstance(command, Fetch):
            query = self._queries[command.id] = _Query(command.id, command.address)
            self._waiting.append(query)
        elif isinstance(command, Cancel):
            cancelled = self._queries.pop(command.id, None)
            if cancelled is not None:
                self._no_longer_recent(cancelled)
                if cancelled.subscription is not None:
                    self._stack.forget(cancelled.subscription)
        elif isinstance(command, Ping):
            self._reports.append(Pong())

    def _send_waiting(self) -> None:
        if not self._waiting:
            return
        now_s = time.monotonic()
        while self._recent and (not self._recent[0].recent or self._recent[0].sent_at_s < now_s - BURST_S):
            self._no_longer_recent(self._recent.popleft())
        while self._waiting and self._recent_count < BURST:
            query = self._waiting.popleft()
            if query.id in self._queries:  # else it was cancelled while it waited
                query.sent_at_s, query.recent = now_s, True
                self._recent.append(query)
                self._recent_count += 1
                self._subscribe(query, 0)

    def _no_longer_recent(self, query: _Query) -> None:
        if query.recent:
            query.recent = False
            self._recent_count -= 1

    def _subscribe(self, query: _Query, expires_s: int) -> None:
        query.asked_s = expires_s
        try:
            query.subscription = self._stack.subscribe(query, query.address, expires_s)
        except SipStackError as error:
            self._no_longer_recent(query)
            if self._queries.pop(query.id, None) is not None:
                code = BAD_ADDRESS if isinstance(error, AddressRefused) else 503
                self._reports.append(Failed(query.id, code, str(error), -1, local=True))

    def _work(self) -> None:
        events = self._stack.events
        while events:
            subscription, event = events.popleft()
            query: _Query = subscription.owner
            self._no_longer_recent(query)
            if self._queries.get(query.id) is query:
                self._handle(query, subscription, event)
        self._send_waiting()

    def _handle(self, query: _Query, subscription: Subscription, event: Event) -> None:
        if isinstance(event, Notify):
            del self._queries[query.id]
            self._reports.append(
                Notified(
                    query.id,
                    time.time(),
                    event.state,
                    event.reason,
                    event.retry_after_s,
                    event.content_type,
                    event.content_encoding,
                    event.declared_bytes,
                    event.body,
                )
            )
            if query.asked_s == 0:
                self._stack.forget(subscription)  # whatever state the server calls it, a fetch ends with its NOTIFY
            elif event.state != "terminated":
                with contextlib.suppress(SipStackError):  # the answer is here; the server's own expiry ends the rest
                    self._stack.unsubscribe(subscription)
        elif (again_s := retry_expires_s(event, query.asked_s)) is not None:
            self._subscribe(query, again_s)
        else:
            del self._queries[query.id]
            self._reports.append(Failed(query.id, event.code, event.phrase, event.retry_after_s, event.local))

    def _flush(self) -> None:
        if self._reports:
            self._unsent += encode(self._reports)
            self._reports.clear()
        while self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                return
            except OSError:
                self._open = False
                return


def main() -> None:
    """Speaks SIP for the parent at the other end of the inherited socket, until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides when to end
        signal.signal(number, signal.SIG_IGN)
    # The number is the parent's, perhaps beyond what PJSIP's select can take; a copy gets a small one.
    sock = socket.socket(fileno=os.dup(int(sys.argv[1])))
    os.close(int(sys.argv[1]))
    decoder: Decoder[Command] = Decoder(Command)  # type: ignore[arg-type]  # a union is no class to mypy
    commands: list[Command] = []
    while not commands:
        data = sock.recv(65536)
        if not data:
            leave(0)
        commands = list(decoder.feed(data))
    configure = commands[0]
    if not isinstance(configure, Configure):
        leave(2)
    try:
        stack = Stack(configure)
    except SipStackError as error:
        sock.sendall(encode([CannotStart(str(error))]))
        leave(1)
    sock.setblocking(False)
    gc.freeze()  # what start made lives as long as the process; the collector need not walk it again and again
    Worker(sock, stack, decoder).run(commands[1:])
    leave(0)


if __name__ == "__main__":
    main()
