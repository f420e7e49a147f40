"""One SIP worker as the gateway sees it: the child process, and the conversation with it.

Invariants: commands and reports are gathered into frames, one per turn of the event loop. When the conversation ends,
every query that it held fails with WatcherRestarting, which is retryable, and `gone` is done.

Deliberately absent: what follows from a worker's end (`watcher.py`).
"""

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog

from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError, WatcherRestarting
from app.sip.answers import error_of_local_failure, error_of_response
from app.sip.protocol import (
    Cancel,
    CannotStart,
    Command,
    Configure,
    Counts,
    Decoder,
    Failed,
    Fetch,
    FrameError,
    ListWatches,
    Notified,
    NotifyRefused,
    Observed,
    Report,
    Started,
    Told,
    WatchEnded,
    WatchList,
    WatchState,
    encode,
)

_log = structlog.get_logger()

START_LIMIT_S = 10.0
WatchReport = Observed | Told | NotifyRefused | WatchEnded | Counts


class WatcherCannotStart(Exception):
    """The SIP worker refused its configuration or the PJSIP build; the message is for the operator."""


class WorkerProcess(asyncio.Protocol):
    """One child process and the conversation with it. `heard` is called with every report about a watch."""

    def __init__(self, configure: Configure, heard: Callable[[WatchReport], None]) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Started] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._heard = heard
        self._pending: dict[int, asyncio.Future[Notified]] = {}
        self._lists: dict[int, tuple[asyncio.Future[list[WatchState]], list[WatchState]]] = {}
        self.heard = False
        """Whether anything came since the owner made it false."""
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._decoder: Decoder[Report] = Decoder(Report)  # type: ignore[arg-type]  # a union is no class to mypy
        self._commands: list[Command] = [configure]
        self._numbers = itertools.count(1)
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Started:
        """Spawns the child and waits until it can speak SIP. Raises WatcherCannotStart."""
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603, ASYNC220  # our own interpreter and module; a fork is quick
                # -P: `-m` alone would look for `app`, and for all that it imports, in the working directory first.
                [sys.executable, "-P", "-m", "app.sip.worker.main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else None,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        await self._loop.create_unix_connection(lambda: self, sock=ours)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                return await self.started
        except TimeoutError:
            raise WatcherCannotStart(f"the SIP worker was not ready after {START_LIMIT_S:.0f} s") from None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            reports = self._decoder.feed(data)
        except FrameError as error:
            _log.error("sip_worker_spoke_nonsense", reason=str(error))
            self.kill()
            return
        for report in reports:
            match report:
                case Notified():
                    if (query := self._pending.pop(report.id, None)) is not None and not query.done():
                        query.set_result(report)
                case Failed():
                    if (query := self._pending.pop(report.id, None)) is not None and not query.done():
                        query.set_exception(_error_of(report))
                case Observed() | Told() | NotifyRefused() | WatchEnded() | Counts():
                    self._heard(report)
                case WatchList():
                    self._listed(report)
                case Started():
                    if not self.started.done():
                        self.started.set_result(report)
                case CannotStart():
                    if not self.started.done():
                        self.started.set_exception(WatcherCannotStart(report.reason))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.started.done():
            self.started.set_exception(WatcherCannotStart("the SIP worker died while starting; see its last words"))
        for query in self._pending.values():
            if not query.done():
                query.set_exception(restarting("The SIP worker died while it asked; it is being replaced."))
        self._pending.clear()
        for asked, _ in self._lists.values():
            if not asked.done():
                asked.set_result([])
        self._lists.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    async def fetch(self, address: TerminalAddress, client: int = 0) -> Notified:
        """Asks through this worker, in the turn of that client; a cancelled caller cancels the SUBSCRIBE."""
        if self._transport is None:  # it is dead, and its supervisor has yet to hear of it
            raise restarting("The SIP worker died; it is being replaced.")
        number = next(self._numbers)
        query: asyncio.Future[Notified] = self._loop.create_future()
        self._pending[number] = query
        self.say(Fetch(number, address, client))
        try:
            return await query
        except asyncio.CancelledError:
            if self._pending.pop(number, None) is not None:
                self.say(Cancel(number))
            raise

    async def list_watches(self) -> list[WatchState]:
        """Every watch of this worker; none where it is gone."""
        if self._transport is None:
            return []
        number = next(self._numbers)
        asked: asyncio.Future[list[WatchState]] = self._loop.create_future()
        self._lists[number] = asked, []
        self.say(ListWatches(number))
        try:
            return await asked
        finally:
            self._lists.pop(number, None)

    def _listed(self, part: WatchList) -> None:
        if (waiting := self._lists.get(part.id)) is not None:
            asked, watches = waiting
            watches += part.watches
            if part.last and not asked.done():
                asked.set_result(watches)

    def say(self, command: Command) -> None:
        """Queues a command; all of one turn of the event loop leave in one frame."""
        if not self._commands and self._transport is not None:
            self._loop.call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        if self._transport is not None and self._commands:
            self._transport.write(encode(self._commands))
            self._commands.clear()

    def close(self) -> None:
        """Ends the conversation; the child leaves by itself."""
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """Ends the child at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
        if self._transport is not None:
            self._transport.abort()


def _error_of(failed: Failed) -> TerminalStatusError:
    if failed.local:
        return error_of_local_failure(failed.code, failed.phrase)
    return error_of_response(failed.code, failed.phrase, failed.retry_after_s)


def restarting(message: str) -> TerminalStatusError:
    """The error of who asks while there is no worker."""
    return WatcherRestarting(message, retry_after_s=1)


async def reap(worker: WorkerProcess) -> int | None:
    """Waits for the child's end so that no zombie is left; kills it after two seconds."""
    process = worker.process
    if process is None:
        return None
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + 2
    while (status := process.poll()) is None:
        if loop.time() > deadline_s:
            process.kill()
        await asyncio.sleep(0.005)
    return status
