"""The event loop's side of the watcher: starts the SIP worker, supervises it, and puts questions to it.

Invariants: a worker that dies or hangs is replaced at once (with a growing pause only where it keeps dying young);
the queries it held fail with WatcherRestarting, which is retryable, and later ones wait for nothing: while there is
no worker they fail likewise. Commands and reports are gathered into frames, one per turn of the event loop.

Deliberately absent: time limits on a fetch (the use case's) and the reading of documents.
"""

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import cast

import structlog

from app.domain import TerminalAddress, TerminalStatusError, WatcherRestarting
from app.ports import Notification
from app.sip.dialog import error_of_local_failure, error_of_notify, error_of_response
from app.sip.frames import (
    Build,
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
    Report,
    Started,
    encode,
)

_log = structlog.get_logger()

START_LIMIT_S = 10.0
PING_EVERY_S = 2.0
HANG_LIMIT_S = 10.0
_YOUNG_S = 2.0
_LONGEST_PAUSE_S = 5.0


class WatcherCannotStart(Exception):
    """The SIP worker refused its configuration or the PJSIP build; the message is for the operator."""


class _Worker(asyncio.Protocol):
    """One child process and the conversation with it."""

    def __init__(self, configure: Configure) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Started] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.pending: dict[int, asyncio.Future[Notified]] = {}
        self.heard_at_s = loop.time()
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
                [sys.executable, "-m", "app.sip.worker", str(theirs.fileno())],
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
        self.heard_at_s = self._loop.time()
        try:
            reports = self._decoder.feed(data)
        except FrameError as error:
            _log.error("sip_worker_spoke_nonsense", reason=str(error))
            self.kill()
            return
        for report in reports:
            if isinstance(report, Notified):
                if (query := self.pending.pop(report.id, None)) is not None and not query.done():
                    query.set_result(report)
            elif isinstance(report, Failed):
                if (query := self.pending.pop(report.id, None)) is not None and not query.done():
                    query.set_exception(_error_of(report))
            elif isinstance(report, Started):
                if not self.started.done():
                    self.started.set_result(report)
            elif isinstance(report, CannotStart) and not self.started.done():
                self.started.set_exception(WatcherCannotStart(report.reason))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.started.done():
            self.started.set_exception(WatcherCannotStart("the SIP worker died while starting; see its last words"))
        for query in self.pending.values():
            if not query.done():
                query.set_exception(_restarting("The SIP worker died while it asked; it is being replaced."))
        self.pending.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    async def fetch(self, address: TerminalAddress) -> Notified:
        """Asks through this worker; a cancelled caller cancels the SUBSCRIBE."""
        if self._transport is None:  # it is dead, and its supervisor has yet to hear of it
            raise _restarting("The SIP worker died; it is being replaced.")
        number = next(self._numbers)
        query: asyncio.Future[Notified] = self._loop.create_future()
        self.pending[number] = query
        self.say(Fetch(number, address))
        try:
            return await query
        except asyncio.CancelledError:
            if self.pending.pop(number, None) is not None:
                self.say(Cancel(number))
            raise

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


class SipWatcher:
    """The `Watcher` port over SIP. `restarted` is called after each replacement of a dead worker."""

    def __init__(self, configure: Configure, *, restarted: Callable[[], None] = lambda: None) -> None:
        self._configure = configure
        self._restarted = restarted
        self._worker: _Worker | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.build: Build | None = None
        """The PJSIP that the worker found; None before `start`."""
        self.ports: dict[str, int] = {}
        """The SIP ports the worker listens on, by transport."""

    @property
    def ready(self) -> bool:
        """Whether a worker is there to ask through."""
        return self._worker is not None

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker in service, for operators and tests."""
        return self._worker.process.pid if self._worker is not None and self._worker.process is not None else None

    async def start(self) -> None:
        """Starts the worker and its supervision. Raises WatcherCannotStart."""
        self._worker = await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name="sip-supervisor")

    async def aclose(self) -> None:
        """Ends the worker. Queries in flight fail with WatcherRestarting."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.close()
            await _reap(worker)

    async def fetch(self, address: TerminalAddress) -> Notification:
        """Asks the presence server once; see `app.service.Watcher`."""
        worker = self._worker
        if worker is None:
            raise _restarting("The SIP worker is being replaced.")
        notified = await worker.fetch(address)
        error = error_of_notify(
            notified.state, notified.reason, notified.retry_after_s, notified.declared_bytes, len(notified.body)
        )
        if error is not None:
            raise error
        return Notification(
            body=notified.body,
            content_type=notified.content_type,
            content_encoding=notified.content_encoding,
            observed_at=datetime.fromtimestamp(notified.observed_at_s, UTC),
        )

    async def _spawn(self) -> _Worker:
        worker = _Worker(self._configure)
        try:
            started = await worker.start()
        except BaseException:
            worker.kill()
            await _reap(worker)
            raise
        self.build, self.ports = started.build, started.ports
        _log.info("sip_worker_started", pid=worker.process.pid if worker.process else None, ports=started.ports)
        return worker

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while True:
            worker = self._worker
            if worker is not None:
                born_at_s = loop.time()
                await self._until_gone(worker)
                self._worker = None
                status = await _reap(worker)
                pause_s = 0.0 if loop.time() - born_at_s > _YOUNG_S else min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_died", exit_status=status, replaced_after_s=pause_s)
            await asyncio.sleep(pause_s)
            try:
                self._worker = await self._spawn()
            except (WatcherCannotStart, OSError) as error:  # OSError: no descriptor, process or memory to be had now
                pause_s = min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_cannot_start", reason=str(error), again_after_s=pause_s)
            else:
                self._restarted()

    async def _until_gone(self, worker: _Worker) -> None:
        """Waits for the worker's end, and brings it about where it no longer answers."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_EVERY_S):
                    await asyncio.shield(worker.gone)
                return
            if asyncio.get_running_loop().time() - worker.heard_at_s > HANG_LIMIT_S:
                _log.error("sip_worker_hangs", silent_for_s=HANG_LIMIT_S)
                worker.kill()
            worker.say(Ping())


def _error_of(failed: Failed) -> TerminalStatusError:
    if failed.local:
        return error_of_local_failure(failed.code, failed.phrase)
    return error_of_response(failed.code, failed.phrase, failed.retry_after_s)


def _restarting(message: str) -> TerminalStatusError:
    return WatcherRestarting(message, retry_after_s=1)


async def _reap(worker: _Worker) -> int | None:
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
