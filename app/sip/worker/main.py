"""The child process that speaks SIP: one thread, one PJSIP endpoint, one socket to the gateway.

Run as `python -P -m app.sip.worker.main FD`, where FD is the inherited Unix socket. The process blocks in PJSIP's
select. The socket is registered there, so commands and packets both wake it at once. PJSIP answers a NOTIFY before we
see it.

Invariants: the process ends when the socket closes, so a dead gateway leaves no orphan. It ends by `os._exit`, because
PJSIP aborts in an ordinary exit. Few reports leave at once; many leave together.

Deliberately absent: time limits of fetches (the gateway's), and what documents and answers mean.
"""

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable

from app.sip.pjsip.endpoint import leave
from app.sip.pjsip.library import SipStackError
from app.sip.pjsip.open_connections import OpenConnections
from app.sip.pjsip.options_probe import OptionsProbe
from app.sip.pjsip.registration import Registration
from app.sip.pjsip.stack import Stack
from app.sip.protocol import (
    CancelFetch,
    CannotStart,
    Command,
    Configure,
    Counts,
    Decoder,
    EndWatch,
    FrameError,
    ListWatches,
    Ping,
    Pong,
    RefreshWatch,
    Report,
    Started,
    StartFetch,
    StartWatches,
    WatchList,
    encode,
)
from app.sip.worker.failover import Routes
from app.sip.worker.fetches import Fetch, Fetches
from app.sip.worker.large_documents import LargeDocuments
from app.sip.worker.probe_fetch import ProbeFetch, ProbeFetches
from app.sip.worker.send_rate import SendRate
from app.sip.worker.watches import Watches

_IDLE_MS = 1000
_BUSY_MS = 5
_FEW = 4
"""With fewer fetches in progress each report leaves at once; with more, reports are gathered."""

_GATHER_S = 0.001
"""How long a report waits at most, to leave together with others."""

_MOST_POLLS_PER_ROUND = 64
"""After this many packets or commands in a row their reports are sent, before more are taken."""

_STOPPED_S = 3.0
"""A round of the loop takes less, unless this process was stopped or starved."""

_CLOCK_JUMP_S = 5.0
"""The wall clock gains this much on the monotonic one only while the machine is suspended, not when it is adjusted."""

_MOST_POLLS_AFTER_STOP = 10_000
"""How many packets are read after a stop: more than socket buffers hold."""

_ROWS_PER_MESSAGE = 500


class Worker:
    """Turns commands into SUBSCRIBEs, and what PJSIP reports into messages to the gateway."""

    def __init__(self, sock: socket.socket, stack: Stack, configure: Configure, decoder: Decoder[Command]) -> None:
        self._sock = sock
        self._stack = stack
        self._decoder = decoder
        self._reports: list[Report] = []
        servers = [route.uri for route in configure.routes]
        self._routes = Routes(len(servers), configure.probe_every_s, configure.routes_up, servers=servers)
        self._probe = OptionsProbe(stack.endpoint, configure)
        self._connections = OpenConnections(stack.endpoint)
        rate, large = SendRate(configure.setups_per_s), LargeDocuments()
        self._fetches = Fetches(stack, rate, self._routes, large, self._reports)
        self._watches = Watches(stack, rate, self._routes, large, self._reports, configure.watch_expires_s)
        self._probe_fetches = ProbeFetches(stack, self._routes, configure.watcher_identity)
        self._registration = Registration(stack.endpoint, configure) if configure.registrar else None
        self._counts: Counts | None = None
        self._counts_every_s, self._count_at_s = configure.counts_every_s, 0.0
        self._broken = self._connected = 0
        self._flushed_s = 0.0
        self._round_s, self._wall_s = time.monotonic(), time.time() - time.monotonic()
        self._unsent = bytearray()
        self._open = True

    def run(self, commands: Iterable[Command]) -> None:
        """Carries out `commands`, then those from the socket, until the gateway closes it."""
        for command in commands:
            self._carry_out(command)
        self._stack.endpoint.attach(self._sock, self._on_received)
        self._reports.append(Started(self._stack.endpoint.build, self._stack.endpoint.ports))
        while self._open:
            self._catch_up()
            wait_s = self._do_what_is_due()
            self._flush()
            polls = 0
            hurried = self._unsent or self._fetches.queued or self._stack.connection_queue.queued
            timeout_ms = _BUSY_MS if hurried else min(_IDLE_MS, int(wait_s * 1000) + 1)
            while self._stack.poll(timeout_ms) and polls < _MOST_POLLS_PER_ROUND:
                self._drain()
                if self._reports and (
                    (len(self._fetches) < _FEW and not self._watches.queued)
                    or time.monotonic() - self._flushed_s > _GATHER_S
                ):
                    self._flush()
                timeout_ms = 0
                polls += 1

    def _catch_up(self) -> None:
        """After this process was stopped, reads what came meanwhile before any timer decides that nothing came. After
        the machine was suspended (the monotonic clock stops then), checks each subscription: it may have expired."""
        now_s, wall_s = time.monotonic(), time.time() - time.monotonic()
        if now_s - self._round_s > _STOPPED_S:
            polls = 0
            while polls < _MOST_POLLS_AFTER_STOP and self._stack.poll(0):
                self._drain()
                polls += 1
        if wall_s - self._wall_s > _CLOCK_JUMP_S:
            self._watches.on_contact_lost()
        self._round_s, self._wall_s = time.monotonic(), wall_s

    def _on_received(self, data: bytes) -> None:
        """Bytes came from the gateway; empty at its end. Runs inside `poll` but outside any dialog's lock, so commands
        may be carried out here."""
        if not data:
            self._open = False
            return
        try:
            for command in self._decoder.feed(data):
                self._carry_out(command)
        except FrameError:
            self._open = False

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartFetch():
                self._fetches.start(command)
            case CancelFetch():
                self._fetches.cancel(command.id)
            case StartWatches():
                self._watches.start(command.watches, command.clients)
            case EndWatch():
                self._watches.end(command.id)
            case RefreshWatch():
                self._watches.refresh(command.id)
            case ListWatches():
                self._list_watches(command.id)
            case Ping():
                self._reports.append(Pong())

    def _drain(self) -> None:
        """Handles PJSIP's events, and sends queued fetches; everything else can wait for the next round."""
        events = self._stack.events
        while events:
            dialog, event = self._stack.next_event()
            owner = dialog.owner
            if isinstance(owner, Fetch):
                self._fetches.on_event(owner, dialog, event)
            elif isinstance(owner, ProbeFetch):
                self._probe_fetches.on_event(owner, dialog, event)
            else:
                self._watches.on_event(owner, dialog, event)
        self._fetches.send_queued(watches_queued=self._watches.queued)

    def _do_what_is_due(self) -> float:
        """Returns the seconds until more is due."""
        self._drain()
        now_s = time.monotonic()
        self._look_at_connections(now_s)
        self._look_at_routes(now_s)
        wait_s = self._watches.send_queued()
        if now_s >= self._count_at_s:
            self._report_counts(now_s)
        if self._stack.events:
            return 0.0
        return max(0.0, min(wait_s, self._routes.wake_s() - now_s, self._count_at_s - now_s))

    def _look_at_connections(self, now_s: float) -> None:
        connections = self._connections
        if connections.connected != self._connected:
            self._connected = connections.connected
            self._stack.connection_queue.on_connected(now_s)
        if connections.broken != self._broken:
            self._broken = connections.broken
            self._stack.connection_queue.on_broken()
            self._watches.on_contact_lost()
        connections.release_ended()

    def _look_at_routes(self, now_s: float) -> None:
        answered = self._probe.answered
        while answered:
            self._routes.on_answered(answered.popleft(), options=True)
        for route in self._routes.due(now_s):
            self._probe.send(route)
        while self._routes.fetch_probes:
            self._probe_fetches.send(self._routes.fetch_probes.pop())
        while self._routes.changes:
            route, up = self._routes.changes.pop(0)
            self._count_at_s = now_s
            if up:
                self._watches.on_contact_restored(route)
            else:
                self._watches.on_contact_lost(route=route)

    def _report_counts(self, now_s: float) -> None:
        self._count_at_s = now_s + self._counts_every_s
        counts = Counts(
            self._fetches.sent + self._watches.sent,
            self._watches.notified,
            self._fetches.cut + self._watches.cut,
            dict(self._watches.failures),
            self._watches.states(),
            list(self._routes.up),
            self._registration is not None and self._registration.active,
            list(self._routes.omitted_counts),
            self._stack.refused,
            dict(self._stack.unreadable.cut),
            self._stack.unreadable.peer,
        )
        if counts != self._counts:
            self._counts = counts
            self._reports.append(counts)

    def _list_watches(self, number: int) -> None:
        part = []
        for row in self._watches.rows():
            part.append(row)
            if len(part) == _ROWS_PER_MESSAGE:
                self._reports.append(WatchList(number, part, last=False))
                part = []
        self._reports.append(WatchList(number, part, last=True))

    def _flush(self) -> None:
        if self._reports:
            self._unsent += encode(self._reports)
            self._reports.clear()
        self._flushed_s = time.monotonic()
        while self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                return
            except OSError:
                self._open = False
                return


def main() -> None:
    """Speaks SIP for the gateway at the other end of the inherited socket, until it closes."""
    # These signals reach the whole process group; the gateway decides when to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # PJSIP's select takes only small numbers, and the gateway's may be large; a copy gets a small one.
    sock = socket.socket(fileno=os.dup(int(sys.argv[1])))
    os.close(int(sys.argv[1]))
    decoder: Decoder[Command] = Decoder(Command)  # type: ignore[arg-type]  # mypy takes no union for a class
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
        worker = Worker(sock, Stack(configure), configure, decoder)
    except SipStackError as error:
        sock.sendall(encode([CannotStart(str(error))]))
        leave(1)
    sock.setblocking(False)
    gc.freeze()  # the objects made so far live as long as the process: the collector may skip them
    worker.run(commands[1:])
    leave(0)


if __name__ == "__main__":
    main()
