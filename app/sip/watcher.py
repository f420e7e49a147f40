"""The `Watcher` port of the gateway: passes fetches and watches to SIP workers, and their reports to the observer.

Terminals are distributed over the workers by a hash of the address. Workers know clients by hashes of their ids; two
clients with the same hash share their turns.

Invariants: when a worker dies, its fetches fail with WatcherRestarting, which is retryable, and so do new ones until
the worker is replaced. The observer is called about a terminal only between `watch` and `unwatch`.

Deliberately absent: time limits on a fetch (`core/fetcher.py`), and the reading of documents.
"""

import asyncio
import itertools
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, PresenceUnavailable, TerminalStatusError, WatchUnknown
from app.domain.statuses import Liveness
from app.domain.watches import WatchState
from app.ports.sip import ReceivedNotify, WatchObserver, WatchView
from app.sip.protocol import (
    Build,
    Configure,
    Counts,
    EndWatch,
    Error,
    LivenessChanged,
    NotifyRefused,
    Observed,
    RefreshWatch,
    WatchEnded,
)
from app.sip.supervisor import WorkerSupervisor
from app.sip.worker_counts import routes_up, sum_of
from app.sip.worker_process import WatcherCannotStart, WatchReport, error_of_restart, failed_fetch

__all__ = ["SipWatcher", "WatcherCannotStart"]

_log = structlog.get_logger()

_LOG_EVERY_S = 1.0
_ERRORS: dict[str, type[TerminalStatusError]] = {
    error.code: error for error in TerminalStatusError.__subclasses__() if hasattr(error, "code")
}


class SipWatcher:
    """The `Watcher` port over SIP.

    `on_worker_replaced` is called after each replacement of a dead worker, `on_lag` with the seconds that each
    observation took from the NOTIFY to this process.
    """

    def __init__(
        self,
        configure: Configure,
        *,
        workers: int = 1,
        on_worker_replaced: Callable[[], None] = lambda: None,
        on_lag: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._workers = [
            WorkerSupervisor(
                _for_worker(configure, number),
                on_report=self._on_report,
                on_died=self._on_worker_died,
                on_replaced=on_worker_replaced,
            )
            for number in range(workers)
        ]
        self._counts = [supervisor.counts for supervisor in self._workers]
        self._on_lag = on_lag
        self._observer: WatchObserver | None = None
        self._cut, self._cut_logged_s = 0, -math.inf  # documents that were cut since the last log line
        self._refused_logged_s = -math.inf
        self._numbers = itertools.count(1)
        self._routes = [route.uri for route in configure.routes]
        self._up = [True] * len(self._routes)
        self.route_changes = [0] * len(self._routes)
        """How often each route went down or came back."""

    @property
    def build(self) -> Build | None:
        """The PJSIP that the workers found; None before `start`."""
        return self._workers[0].build

    @property
    def ready(self) -> bool:
        """Whether every worker is in service."""
        return all(supervisor.worker is not None for supervisor in self._workers)

    @property
    def presence_up(self) -> bool:
        """See `app.ports.sip.Fetcher`: true if every worker has a route that is up, since each has its own
        terminals."""
        return all(any(counts.current.routes_up or [True]) for counts in self._counts)

    @property
    def ports(self) -> dict[str, int]:
        """The SIP ports that the first worker listens on, by transport."""
        return self._workers[0].ports

    @property
    def worker_pids(self) -> list[int | None]:
        """The process ids of the workers, None where one is being replaced; for operators and tests."""
        return [supervisor.worker.pid if supervisor.worker else None for supervisor in self._workers]

    @property
    def worker_pid(self) -> int | None:
        """The first worker's process id."""
        return self.worker_pids[0]

    async def start(self) -> None:
        """Starts the workers and their supervision. Raises WatcherCannotStart."""
        started = await asyncio.gather(*(supervisor.start() for supervisor in self._workers), return_exceptions=True)
        for failed in started:
            if isinstance(failed, BaseException):
                await self.aclose()
                raise failed
        for number, supervisor in enumerate(self._workers):
            supervisor.supervise(f"sip-supervisor-{number}")

    async def aclose(self) -> None:
        """Ends the workers. Fetches in progress fail with WatcherRestarting."""
        await asyncio.gather(*(supervisor.aclose() for supervisor in self._workers))

    def fetch(self, address: TerminalAddress, client_id: str = "") -> asyncio.Future[ReceivedNotify]:
        """Asks the presence server once; see `app.ports.sip.Fetcher`."""
        worker = self._worker_of(address).worker
        if worker is None:
            return failed_fetch("The SIP worker is being replaced.")
        return worker.fetch(address, _number(client_id))

    def set_observer(self, observer: WatchObserver) -> None:
        """See `app.ports.sip.Watcher`."""
        self._observer = observer

    def watch(self, address: TerminalAddress, client_id: str = "") -> None:
        """See `app.ports.sip.Watcher`."""
        supervisor = self._worker_of(address)
        scheduled = supervisor.wanted.has_unsent
        if supervisor.wanted.add(next(self._numbers), address, _number(client_id)) and not scheduled:
            asyncio.get_running_loop().call_soon(supervisor.send_unsent_watches)

    def unwatch(self, address: TerminalAddress) -> None:
        """See `app.ports.sip.Watcher`."""
        supervisor = self._worker_of(address)
        watch = supervisor.wanted.remove(address)
        if watch is not None and supervisor.worker is not None:
            supervisor.worker.send(EndWatch(watch.id))

    def refresh(self, address: TerminalAddress) -> None:
        """See `app.ports.sip.Watcher`. Raises WatchUnknown."""
        supervisor = self._worker_of(address)
        watch = supervisor.wanted.by_address(address)
        if watch is None:
            raise WatchUnknown("Nobody watches this terminal.", address=address)
        if supervisor.worker is not None:
            supervisor.worker.send(RefreshWatch(watch.id))

    async def watches(self) -> list[WatchView]:
        """See `app.ports.sip.Watcher`. A watch whose worker is being replaced is `waiting`."""
        for supervisor in self._workers:
            supervisor.send_unsent_watches()  # so that the worker lists a watch that was made just now
        workers = [supervisor.worker for supervisor in self._workers if supervisor.worker is not None]
        lists = await asyncio.gather(*(worker.list_watches() for worker in workers))
        rows = {row.id: row for listed in lists for row in listed}
        views = {}
        now = datetime.now(UTC)
        for supervisor in self._workers:
            replaced = supervisor.worker is None or supervisor.worker.gone.done()
            for watch in supervisor.wanted:
                row = rows.get(watch.id)  # none for a watch that was made meanwhile
                state, reason = WatchState.INITIAL, "subscribing"
                if replaced:
                    state, reason = WatchState.WAITING, "the SIP worker is being replaced"
                views[watch.address] = WatchView(
                    address=watch.address,
                    state=WatchState(row.state) if row else state,
                    liveness=Liveness[row.liveness] if row else watch.liveness,
                    since=_time(row.since_s if row else 0) or now,
                    expires_at=_time(row.expires_at_s) if row else None,
                    code=row.code if row else 0,
                    reason=row.reason if row else reason,
                    next_action=row.next_action if row else "subscribe",
                    next_at=_time(row.next_at_s) if row else None,
                    route=self._routes[row.route] if row else "",
                )
        return [views[address] for address in sorted(views)]

    def counts(self) -> Counts:
        """The counts of all workers, dead ones included; states and routes are the present ones."""
        return sum_of(self._counts, len(self._routes))

    def _worker_of(self, address: TerminalAddress) -> WorkerSupervisor:
        workers = self._workers
        return workers[0] if len(workers) == 1 else workers[zlib.crc32(address.encode()) % len(workers)]

    def _on_report(self, supervisor: WorkerSupervisor, report: WatchReport) -> None:
        if isinstance(report, Counts):
            before = supervisor.counts.current
            _log_refused(Counter(report.refused) - Counter(before.refused), report.unreadable_peer)
            _log_cut_headers(Counter(report.cut_headers) - Counter(before.cut_headers), report.unreadable_peer)
            supervisor.counts.current = report
            self._log_route_changes()
            return
        watch = supervisor.wanted.by_id(report.id)
        observer = self._observer
        if watch is None or observer is None:
            return  # `unwatch` crossed the report
        match report:
            case Observed():
                self._on_lag(max(0.0, time.time() - report.observed_at_s))
                watch.observed |= self._report_observation(watch.address, report, observer)
            case NotifyRefused():
                self._log_notify_refused(watch.address, report.reason)
            case LivenessChanged():
                watch.liveness = Liveness[report.liveness]
                observer.on_liveness_changed(watch.address, watch.liveness, report.reason, _error_of(report.error))
            case WatchEnded():
                supervisor.wanted.remove(watch.address)
                observer.on_watch_ended(watch.address, report.reason, _error_of(report.error))

    def _on_worker_died(self, supervisor: WorkerSupervisor) -> None:
        """Makes the worker's LIVE watches STALE until the next worker has set them up."""
        for watch in list(supervisor.wanted):
            if watch.liveness is Liveness.LIVE and self._observer is not None:
                watch.liveness = Liveness.STALE
                error = error_of_restart("The SIP worker died; it is being replaced.")
                reason = "the SIP worker is being replaced"
                self._observer.on_liveness_changed(watch.address, Liveness.STALE, reason, error)

    def _report_observation(self, address: TerminalAddress, report: Observed, observer: WatchObserver) -> bool:
        """Passes on a document. Returns whether it was complete."""
        received = len(report.body)
        if report.declared_bytes not in (-1, received):
            self._log_cut(address, report.declared_bytes, received)
            text = f"The presence document was cut short: {received} of {report.declared_bytes} bytes arrived."
            observer.on_notify_unreadable(address, DocumentUnreadable(text, reason="cut"))
            return False
        observer.on_notify_received(
            address,
            ReceivedNotify(
                body=report.body,
                content_type=report.content_type,
                content_encoding=report.content_encoding,
                observed_at=datetime.fromtimestamp(report.observed_at_s, UTC),
            ),
        )
        return True

    def _log_route_changes(self) -> None:
        for number, up in enumerate(routes_up(self._counts)):
            if up is not self._up[number]:
                self._up[number] = up
                self.route_changes[number] += 1
                if up:
                    _log.info("presence_server_up", route=self._routes[number])
                else:
                    _log.warning("presence_server_down", route=self._routes[number])

    def _log_notify_refused(self, address: TerminalAddress, reason: str) -> None:
        now_s = time.monotonic()
        if now_s - self._refused_logged_s >= _LOG_EVERY_S:
            _log.warning("notify_refused", address=address, reason=reason)
            self._refused_logged_s = now_s

    def _log_cut(self, address: TerminalAddress, declared: int, received: int) -> None:
        self._cut += 1
        now_s = time.monotonic()
        if now_s - self._cut_logged_s >= _LOG_EVERY_S:
            _log.warning("document_cut", address=address, declared=declared, received=received, count=self._cut)
            self._cut, self._cut_logged_s = 0, now_s


def _log_refused(messages: Counter[str], unreadable_peer: str) -> None:
    if messages:
        peer = {"peer": unreadable_peer} if "unreadable" in messages else {}
        counts = {reason.replace("-", "_"): count for reason, count in messages.items()}
        _log.warning("sip_messages_refused", **counts, **peer)


def _log_cut_headers(headers: Counter[str], peer: str) -> None:
    if headers:
        counts = {name.replace("-", "_"): count for name, count in headers.items()}
        _log.warning("sip_headers_cut", **counts, peer=peer)


def _for_worker(configure: Configure, number: int) -> Configure:
    """Gives each worker its own ports, two above those of the worker before: TLS uses the port after that of UDP and
    TCP."""
    port = configure.listen_port
    return msgspec.structs.replace(configure, listen_port=port + 2 * number if port else 0)


def _number(client_id: str) -> int:
    return zlib.crc32(client_id.encode())


def _error_of(error: Error | None) -> TerminalStatusError | None:
    if error is None:
        return None
    kind = _ERRORS.get(error.code, PresenceUnavailable)
    return kind(error.message, retry_after_s=error.retry_after_s if error.retry_after_s >= 0 else None, **error.details)


def _time(unix_s: float) -> datetime | None:
    return datetime.fromtimestamp(unix_s, UTC) if unix_s > 0 else None
