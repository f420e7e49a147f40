"""The child process that speaks SIP: one thread, one PJSIP endpoint, one socket to the gateway.

Run as `python -P -m app.sip.worker.main FD`, with the inherited Unix socket FD. It blocks in PJSIP's select, which that
socket has joined, so commands and packets wake it at once. NOTIFYs are answered within PJSIP before they are
looked at.

Invariants: it leaves when the socket closes, so a dead parent leaves no orphan; it leaves by `os._exit`, for PJSIP
aborts in an ordinary exit. Reports leave at once where there are few, and together where there are many.

Deliberately absent: time limits of fetches (the parent's), the reading of documents, and every decision about meaning.
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
from app.sip.pjsip.probe import Probe
from app.sip.pjsip.registration import Registration
from app.sip.pjsip.stack import Stack
from app.sip.protocol import (
    Cancel,
    CannotStart,
    Command,
    Configure,
    Counts,
    Decoder,
    Fetch,
    FrameError,
    ListWatches,
    Ping,
    Pong,
    Refresh,
    Report,
    Started,
    Unwatch,
    Watch,
    WatchList,
    encode,
)
from app.sip.worker.failover import Routes
from app.sip.worker.fetches import Fetches, Large, Query
from app.sip.worker.probe_fetch import Trial, Trials
from app.sip.worker.send_rate import Pace
from app.sip.worker.watches import Watches

_IDLE_MS = 1000
_BUSY_MS = 5
_FEW = 4
"""With fewer SUBSCRIBEs in progress a report leaves at once; with more they leave together."""

_TOGETHER_S = 0.001
"""So long a report may wait for others."""

_MOST_POLLS_PER_TURN = 64
"""After this many packets or commands in a row, what they gave is sent to the parent before more are taken."""

_PAUSE_S = 3.0
"""A turn of the loop takes less; after one that took longer we ourselves were stopped, or busy beyond measure."""

_JUMP_S = 5.0
"""By so much the wall clock gains on the monotonic one where the machine was suspended, and not by being set right."""

_MOST_POLLS_AFTER_PAUSE = 10_000
"""More than sockets hold."""

_COUNTS_EVERY_S = 1.0
_LIST_PART = 500


class Worker:
    """Turns commands into SUBSCRIBEs, and what comes back into reports."""

    def __init__(self, sock: socket.socket, stack: Stack, configure: Configure, decoder: Decoder[Command]) -> None:
        self._sock = sock
        self._stack = stack
        self._decoder = decoder
        self._reports: list[Report] = []
        self._routes = Routes(len(configure.routes), configure.probe_every_s, configure.routes_up)
        self._probe = Probe(stack.endpoint, configure)
        pace, large = Pace(configure.setups_per_s), Large()
        self._fetches = Fetches(stack, pace, self._routes, large, self._reports)
        self._watches = Watches(stack, pace, self._routes, large, self._reports, configure.watch_expires_s)
        self._trials = Trials(stack, self._routes, configure.watcher_identity)
        self._registration = Registration(stack.endpoint, configure) if configure.registrar else None
        self._counted: Counts | None = None
        self._count_at_s = 0.0
        self._broken = self._connected = 0
        self._flushed_s = 0.0
        self._turned_s, self._wall_s = time.monotonic(), time.time() - time.monotonic()
        self._unsent = bytearray()
        self._open = True

    def run(self, commands: Iterable[Command]) -> None:
        """Carries out `commands`, then those from the socket, until the parent closes it."""
        for command in commands:
            self._obey(command)
        self._stack.endpoint.attach(self._sock, self._received)
        self._reports.append(Started(self._stack.endpoint.build, self._stack.endpoint.ports))
        while self._open:
            self._catch_up()
            wait_s = self._work()
            self._flush()
            polls = 0
            hurried = self._unsent or self._fetches.waiting or self._stack.doors.waiting
            timeout_ms = _BUSY_MS if hurried else min(_IDLE_MS, int(wait_s * 1000) + 1)
            while self._stack.poll(timeout_ms) and polls < _MOST_POLLS_PER_TURN:
                self._drain()
                if self._reports and (
                    (len(self._fetches) < _FEW and not self._watches.waiting)
                    or time.monotonic() - self._flushed_s > _TOGETHER_S
                ):
                    self._flush()
                timeout_ms = 0
                polls += 1

    def _catch_up(self) -> None:
        """Where we ourselves were stopped, takes what came meanwhile before any timer says that it did not come. Where
        the machine was suspended, and the monotonic clock with it, makes sure of each subscription: it may be over."""
        now_s, wall_s = time.monotonic(), time.time() - time.monotonic()
        if now_s - self._turned_s > _PAUSE_S:
            polls = 0
            while polls < _MOST_POLLS_AFTER_PAUSE and self._stack.poll(0):
                self._drain()
                polls += 1
        if wall_s - self._wall_s > _JUMP_S:
            self._watches.contact_lost()
        self._turned_s, self._wall_s = time.monotonic(), wall_s

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
        match command:
            case Fetch():
                self._fetches.start(command)
            case Cancel():
                self._fetches.cancel(command.id)
            case Watch():
                self._watches.want(command.wishes, command.clients)
            case Unwatch():
                self._watches.unwant(command.id)
            case Refresh():
                self._watches.refresh(command.id)
            case ListWatches():
                self._list(command.id)
            case Ping():
                self._reports.append(Pong())

    def _drain(self) -> None:
        """Handles what PJSIP saw, and sends questions that wait; the rest may wait for the next turn."""
        events = self._stack.events
        while events:
            subscription, event = self._stack.take()
            owner = subscription.owner
            if isinstance(owner, Query):
                self._fetches.handle(owner, subscription, event)
            elif isinstance(owner, Trial):
                self._trials.handle(owner, subscription, event)
            else:
                self._watches.handle(owner, subscription, event)
        self._fetches.send_waiting(others_wait=self._watches.waiting)

    def _work(self) -> float:
        """Everything that is due; returns the seconds until the next."""
        self._drain()
        now_s = time.monotonic()
        answers = self._probe.answers
        while answers:
            route, answered = answers.popleft()
            if answered:
                self._routes.answered(route, probe=True)
        if self._probe.connected != self._connected:
            self._connected = self._probe.connected
            self._stack.doors.connected(now_s)
        if self._probe.broken != self._broken:
            self._broken = self._probe.broken
            self._stack.doors.broken()
            self._watches.contact_lost()
        self._probe.release()
        for route in self._routes.due(now_s):
            self._probe.ask(route)
        while self._routes.trials:
            self._trials.ask(self._routes.trials.pop())
        while self._routes.turns:
            route, up = self._routes.turns.pop(0)
            self._count_at_s = now_s
            if up:
                self._watches.contact_found(route)
            else:
                self._watches.contact_lost(route=route)
        wait_s = self._watches.send_waiting()
        if now_s >= self._count_at_s:
            self._count(now_s)
        if self._stack.events:
            return 0.0
        return max(0.0, min(wait_s, self._routes.wake_s() - now_s))

    def _count(self, now_s: float) -> None:
        self._count_at_s = now_s + _COUNTS_EVERY_S
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
        )
        if counts != self._counted:
            self._counted = counts
            self._reports.append(counts)

    def _list(self, number: int) -> None:
        part = []
        for watch in self._watches.list():
            part.append(watch)
            if len(part) == _LIST_PART:
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
    """Speaks SIP for the parent at the other end of the inherited socket, until it closes."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # they reach the whole group; the parent decides when to end
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
        worker = Worker(sock, Stack(configure), configure, decoder)
    except SipStackError as error:
        sock.sendall(encode([CannotStart(str(error))]))
        leave(1)
    sock.setblocking(False)
    gc.freeze()  # what start made lives as long as the process; the collector need not walk it again and again
    worker.run(commands[1:])
    leave(0)


if __name__ == "__main__":
    main()
