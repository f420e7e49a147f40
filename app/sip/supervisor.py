"""Keeps one SIP worker running: starts it, pings it, and replaces it when it dies or hangs.

Invariants: a dead worker is replaced at once; the pause before a replacement grows only while workers die young. A new
worker gets every wanted watch.

Deliberately absent: what follows from a worker's reports (`watcher.py`).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog

from app.sip.protocol import Build, Configure, Ping
from app.sip.wanted_watches import WantedWatches, start_commands
from app.sip.worker_counts import WorkerCounts
from app.sip.worker_process import WatcherCannotStart, WatchReport, WorkerProcess, reap

_log = structlog.get_logger()

PING_EVERY_S = 2.0
HANG_LIMIT_S = 10.0
_YOUNG_S = 2.0
_LONGEST_PAUSE_S = 5.0


class WorkerSupervisor:
    """The supervisor of one worker. `on_report` is called with each report about watches or counts, `on_died` when the
    worker has died, `on_replaced` when its replacement works.
    """

    def __init__(
        self,
        configure: Configure,
        *,
        on_report: Callable[["WorkerSupervisor", WatchReport], None],
        on_died: Callable[["WorkerSupervisor"], None],
        on_replaced: Callable[[], None],
    ) -> None:
        self._configure = configure
        self._on_report = on_report
        self._on_died = on_died
        self._on_replaced = on_replaced
        self._task: asyncio.Task[None] | None = None
        self.worker: WorkerProcess | None = None
        """The worker in service; None while it is being replaced."""
        self.build: Build | None = None
        """The PJSIP that the worker found."""
        self.ports: dict[str, int] = {}
        """The SIP ports that the worker listens on, by transport."""
        self.wanted = WantedWatches()
        self.counts = WorkerCounts()

    async def start(self) -> None:
        """Starts the first worker. Raises WatcherCannotStart."""
        configure = msgspec.structs.replace(self._configure, routes_up=self.counts.current.routes_up)
        worker = WorkerProcess(configure, lambda report: self._on_report(self, report))
        try:
            started = await worker.start()
        except BaseException:
            worker.kill()
            await reap(worker)
            raise
        self.build, self.ports, self.worker = started.build, started.ports, worker
        for command in start_commands(self.wanted):
            worker.send(command)
        _log.info("sip_worker_started", pid=worker.pid, ports=started.ports, watches=len(self.wanted))

    def supervise(self, name: str) -> None:
        """Begins to supervise, in a task of that name."""
        self._task = asyncio.create_task(self._supervise(), name=name)

    async def aclose(self) -> None:
        """Ends the supervision and the worker."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self.worker is not None:
            worker, self.worker = self.worker, None
            worker.close()
            await reap(worker)

    def send_unsent_watches(self) -> None:
        """Starts the watches that were added since the last call."""
        unsent = self.wanted.take_unsent()
        if self.worker is not None:
            for command in start_commands(unsent):
                self.worker.send(command)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while True:
            worker = self.worker
            if worker is not None:
                started_at_s = loop.time()
                await self._until_gone(worker)
                self.worker = None
                self.counts.on_worker_died()
                self._on_died(self)
                status = await reap(worker)
                old = loop.time() - started_at_s > _YOUNG_S
                pause_s = 0.0 if old else min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_died", exit_status=status, replaced_after_s=pause_s, watches=len(self.wanted))
            await asyncio.sleep(pause_s)
            try:
                await self.start()
            except (WatcherCannotStart, OSError) as error:  # OSError: no descriptor, process or memory at the moment
                pause_s = min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_cannot_start", reason=str(error), again_after_s=pause_s)
            else:
                self._on_replaced()

    async def _until_gone(self, worker: WorkerProcess) -> None:
        """Waits for the worker's end, and kills it when it no longer answers.

        Counts unanswered pings, not time: after the gateway itself was stopped (SIGSTOP, a suspended VM) the worker
        still gets its time to answer.
        """
        unanswered = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_EVERY_S):
                    await asyncio.shield(worker.gone)
                return
            unanswered, worker.heard = 0 if worker.heard else unanswered + 1, False
            if unanswered >= HANG_LIMIT_S / PING_EVERY_S:
                _log.error("sip_worker_hangs", silent_for_s=HANG_LIMIT_S)
                worker.kill()
            worker.send(Ping())
