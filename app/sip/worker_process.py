"""One SIP worker as the gateway sees it: the child process, and the messages exchanged with it.

Invariants: the commands of one round of the event loop leave in one frame. When the connection ends, every fetch in
progress fails with WatcherRestarting, which is retryable, and `gone` is done.

Deliberately absent: what follows from a worker's end (`supervisor.py`).
"""

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import cast

import structlog

from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError, WatcherRestarting
from app.ports.sip import ReceivedNotify
from app.sip.answers import error_of_local_failure, error_of_notify, error_of_response
from app.sip.protocol import (
    CancelFetch,
    CannotStart,
    Command,
    Configure,
    Counts,
    Decoder,
    FetchAnswered,
    FetchFailed,
    FrameError,
    ListWatches,
    LivenessChanged,
    NotifyRefused,
    Observed,
    Report,
    Started,
    StartFetch,
    WatchEnded,
    WatchList,
    WatchRow,
    encode,
)

_log = structlog.get_logger()

START_LIMIT_S = 10.0
WatchReport = Observed | LivenessChanged | NotifyRefused | WatchEnded | Counts


class WatcherCannotStart(Exception):
    """The SIP worker cannot start with its configuration or this PJSIP build; the message is for the operator."""


class WorkerProcess(asyncio.Protocol):
    """One child process and the connection to it. `on_report` is called with each report about watches or counts."""

    def __init__(self, configure: Configure, on_report: Callable[[WatchReport], None]) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Started] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._on_report = on_report
        self._pending: dict[int, asyncio.Future[ReceivedNotify]] = {}
        self._lists: dict[int, tuple[asyncio.Future[list[WatchRow]], list[WatchRow]]] = {}
        self.heard = False
        """Whether bytes came since the supervisor last set it to False."""
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._decoder: Decoder[Report] = Decoder(Report)  # type: ignore[arg-type]  # mypy takes no union for a class
        self._commands: list[Command] = [configure]
        self._numbers = itertools.count(1)
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Started:
        """Starts the child and waits until it is ready. Raises WatcherCannotStart."""
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603, ASYNC220  # our own interpreter and module; a fork is fast
                # -P: otherwise `-m` would import `app` and its imports from the working directory first.
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

    @property
    def pid(self) -> int | None:
        """The child's process id; None before `start`."""
        return self.process.pid if self.process else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class only has the same methods
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
                case FetchAnswered():
                    if (fetch := self._pending.pop(report.id, None)) is not None and not fetch.done():
                        if isinstance(received := received_notify(report), TerminalStatusError):
                            fetch.set_exception(received)
                        else:
                            fetch.set_result(received)
                case FetchFailed():
                    if (fetch := self._pending.pop(report.id, None)) is not None and not fetch.done():
                        fetch.set_exception(_error_of(report))
                case Observed() | LivenessChanged() | NotifyRefused() | WatchEnded() | Counts():
                    self._on_report(report)
                case WatchList():
                    self._on_list(report)
                case Started():
                    if not self.started.done():
                        self.started.set_result(report)
                case CannotStart():
                    if not self.started.done():
                        self.started.set_exception(WatcherCannotStart(report.reason))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.started.done():
            self.started.set_exception(WatcherCannotStart("the SIP worker died while starting; see its output above"))
        for fetch in self._pending.values():
            if not fetch.done():
                fetch.set_exception(error_of_restart("The SIP worker died during the fetch; it is being replaced."))
        self._pending.clear()
        for listed, _ in self._lists.values():
            if not listed.done():
                listed.set_result([])
        self._lists.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def fetch(self, address: TerminalAddress, client: int = 0) -> asyncio.Future[ReceivedNotify]:
        """Fetches in the turn of that client. Cancelling the future cancels the SUBSCRIBE."""
        if self._transport is None:  # dead, and the supervisor has not noticed yet
            return failed_fetch("The SIP worker died; it is being replaced.")
        number = next(self._numbers)
        fetch: asyncio.Future[ReceivedNotify] = self._loop.create_future()
        self._pending[number] = fetch
        self.send(StartFetch(number, address, client))
        fetch.add_done_callback(partial(self._on_fetch_done, number))
        return fetch

    def _on_fetch_done(self, number: int, fetch: asyncio.Future[ReceivedNotify]) -> None:
        if fetch.cancelled() and self._pending.pop(number, None) is not None:
            self.send(CancelFetch(number))

    async def list_watches(self) -> list[WatchRow]:
        """Every watch of this worker; empty where the worker is gone."""
        if self._transport is None:
            return []
        number = next(self._numbers)
        listed: asyncio.Future[list[WatchRow]] = self._loop.create_future()
        self._lists[number] = listed, []
        self.send(ListWatches(number))
        try:
            return await listed
        finally:
            self._lists.pop(number, None)

    def _on_list(self, part: WatchList) -> None:
        if (waiting := self._lists.get(part.id)) is not None:
            listed, rows = waiting
            rows += part.watches
            if part.last and not listed.done():
                listed.set_result(rows)

    def send(self, command: Command) -> None:
        """Queues a command; all commands of one round of the event loop leave in one frame."""
        if not self._commands and self._transport is not None:
            self._loop.call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        if self._transport is not None and self._commands:
            self._transport.write(encode(self._commands))
            self._commands.clear()

    def close(self) -> None:
        """Closes the connection, whereupon the child exits."""
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """Kills the child."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
        if self._transport is not None:
            self._transport.abort()


def _error_of(failed: FetchFailed) -> TerminalStatusError:
    if failed.local:
        return error_of_local_failure(failed.code, failed.phrase)
    return error_of_response(failed.code, failed.phrase, failed.retry_after_s, of_list=failed.of_list)


def failed_fetch(message: str) -> asyncio.Future[ReceivedNotify]:
    """A fetch that has failed with WatcherRestarting."""
    failed: asyncio.Future[ReceivedNotify] = asyncio.get_running_loop().create_future()
    failed.set_exception(error_of_restart(message))
    return failed


def received_notify(answer: FetchAnswered) -> ReceivedNotify | TerminalStatusError:
    """The NOTIFY that answers a fetch, or the error for one that gives no status."""
    error = error_of_notify(
        answer.state,
        answer.reason,
        answer.retry_after_s,
        answer.declared_bytes,
        len(answer.body),
        of_list=answer.of_list,
    )
    return error or ReceivedNotify(
        body=answer.body,
        content_type=answer.content_type,
        content_encoding=answer.content_encoding,
        observed_at=datetime.fromtimestamp(answer.observed_at_s, UTC),
    )


def error_of_restart(message: str) -> TerminalStatusError:
    """The error for a fetch while there is no worker."""
    return WatcherRestarting(message, retry_after_s=1)


async def reap(worker: WorkerProcess) -> int | None:
    """Waits for the child's end, kills it after two seconds, and returns its exit status. Leaves no zombie."""
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
