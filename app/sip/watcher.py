"""The event loop's side of the watcher: SIP workers, their supervision, and the list of what is watched.

Terminals are shared out over the workers by a hash of their address, fetches as well as watches. The list here is what
is wanted; a worker's is its copy, so a worker that dies or hangs is replaced at once (with a growing pause only where
it keeps dying young) and told its watches again. A worker knows clients by hashes of their ids; two of one hash would
share their turns.

Invariants: queries of a dead worker fail with WatcherRestarting, which is retryable, and later ones wait for nothing:
while there is no worker they fail likewise. The observer hears of a watch only between `watch` and `unwatch`.

Deliberately absent: time limits on a fetch (the use case's) and the reading of documents.
"""

import asyncio
import itertools
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import msgspec
import structlog

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, PresenceUnavailable, TerminalStatusError, WatchUnknown
from app.domain.statuses import Liveness
from app.ports import ReceivedNotify, WatchObserver, WatchView
from app.sip.answers import error_of_notify
from app.sip.protocol import (
    Build,
    Configure,
    Counts,
    Error,
    NotifyRefused,
    Observed,
    Ping,
    Refresh,
    Told,
    Unwatch,
    Watch,
    WatchEnded,
)
from app.sip.worker_process import WatcherCannotStart, WatchReport, WorkerProcess, reap, restarting

__all__ = ["SipWatcher", "WatcherCannotStart"]

_log = structlog.get_logger()

PING_EVERY_S = 2.0
HANG_LIMIT_S = 10.0
_YOUNG_S = 2.0
_LONGEST_PAUSE_S = 5.0
_WISHES_PER_FRAME = 1000
MOST_CLIENTS = 8
"""A watch is set up in the turn of one of so many clients that want it, those that wanted it last."""

_LOG_S = 1.0
_ERRORS: dict[str, type[TerminalStatusError]] = {
    error.code: error for error in TerminalStatusError.__subclasses__() if hasattr(error, "code")
}


@dataclass(eq=False, slots=True)
class _Watched:
    """One wish, of the clients of these numbers. `observed`: the presence server has told a status, once; `liveness` is
    what the observer knows."""

    id: int
    address: TerminalAddress
    clients: tuple[int, ...]
    observed: bool = False
    liveness: Liveness = Liveness.UNKNOWN


class _Slot:
    """One place for a worker, which its supervisor fills again and again."""

    def __init__(self, configure: Configure) -> None:
        self.configure = configure
        self.worker: WorkerProcess | None = None
        self.supervisor: asyncio.Task[None] | None = None
        self.ports: dict[str, int] = {}
        self.watched: dict[TerminalAddress, _Watched] = {}
        self.by_id: dict[int, _Watched] = {}
        self.wishes: list[_Watched] = []  # of this turn of the event loop, yet to be said
        self.counts = Counts(0, 0, 0, {}, {}, [], registered=False)
        self.before = Counter[str]()  # what workers that are gone had counted


class SipWatcher:
    """The `Watcher` port over SIP. `restarted` is called after each replacement of a dead worker, and `lag` with the
    seconds that each observation took from the NOTIFY to here."""

    def __init__(
        self,
        configure: Configure,
        *,
        workers: int = 1,
        restarted: Callable[[], None] = lambda: None,
        lag: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._slots = [_Slot(_configured(configure, number)) for number in range(workers)]
        self._restarted = restarted
        self._lag = lag
        self._observer: WatchObserver | None = None
        self._cut, self._cut_logged_s = 0, -math.inf  # documents that were cut since that was logged
        self._refused_logged_s = -math.inf
        self._numbers = itertools.count(1)
        self._routes = [route.uri for route in configure.routes]
        self._up = [True] * len(self._routes)
        self.turns = [0] * len(self._routes)
        """How often each route went down or came back."""
        self.build: Build | None = None
        """The PJSIP that the workers found; None before `start`."""

    @property
    def ready(self) -> bool:
        """Whether every worker is there to ask through."""
        return all(slot.worker is not None for slot in self._slots)

    @property
    def presence_up(self) -> bool:
        """See `app.ports.Fetcher`: each worker asks for terminals of its own."""
        return all(any(slot.counts.routes_up or [True]) for slot in self._slots)

    @property
    def ports(self) -> dict[str, int]:
        """The SIP ports that the first worker listens on, by transport."""
        return self._slots[0].ports

    @property
    def worker_pids(self) -> list[int | None]:
        """The process ids of the workers in service, for operators and tests."""
        return [slot.worker.process.pid if slot.worker and slot.worker.process else None for slot in self._slots]

    @property
    def worker_pid(self) -> int | None:
        """The first worker's process id."""
        return self.worker_pids[0]

    async def start(self) -> None:
        """Starts the workers and their supervision. Raises WatcherCannotStart."""
        started = await asyncio.gather(*(self._spawn(slot) for slot in self._slots), return_exceptions=True)
        for failed in started:
            if isinstance(failed, BaseException):
                await self.aclose()
                raise failed
        for number, slot in enumerate(self._slots):
            slot.supervisor = asyncio.create_task(self._supervise(slot), name=f"sip-supervisor-{number}")

    async def aclose(self) -> None:
        """Ends the workers. Queries in flight fail with WatcherRestarting."""
        await asyncio.gather(*(self._end(slot) for slot in self._slots))

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        """Asks the presence server once; see `app.ports.Fetcher`."""
        worker = self._slot(address).worker
        if worker is None:
            raise restarting("The SIP worker is being replaced.")
        notified = await worker.fetch(address, _number(client_id))
        error = error_of_notify(
            notified.state, notified.reason, notified.retry_after_s, notified.declared_bytes, len(notified.body)
        )
        if error is not None:
            raise error
        return ReceivedNotify(
            body=notified.body,
            content_type=notified.content_type,
            content_encoding=notified.content_encoding,
            observed_at=datetime.fromtimestamp(notified.observed_at_s, UTC),
        )

    def set_observer(self, observer: WatchObserver) -> None:
        """See `app.ports.Watcher`."""
        self._observer = observer

    def watch(self, address: TerminalAddress, client_id: str = "") -> None:
        """See `app.ports.Watcher`."""
        slot, client = self._slot(address), _number(client_id)
        watched = slot.watched.get(address)
        if watched is None:
            watched = slot.watched[address] = _Watched(next(self._numbers), address, (client,))
            slot.by_id[watched.id] = watched
        elif client in watched.clients:
            return
        else:
            watched.clients = (*watched.clients, client)[-MOST_CLIENTS:]
        if not slot.wishes:
            asyncio.get_running_loop().call_soon(self._say_wishes, slot)
        slot.wishes.append(watched)

    def unwatch(self, address: TerminalAddress) -> None:
        """See `app.ports.Watcher`."""
        slot = self._slot(address)
        watched = slot.watched.pop(address, None)
        if watched is not None:
            del slot.by_id[watched.id]
            if slot.worker is not None:
                slot.worker.say(Unwatch(watched.id))

    def refresh(self, address: TerminalAddress) -> None:
        """See `app.ports.Watcher`. Raises WatchUnknown."""
        slot = self._slot(address)
        watched = slot.watched.get(address)
        if watched is None:
            raise WatchUnknown("Nobody watches this terminal.", address=address)
        if slot.worker is not None:
            slot.worker.say(Refresh(watched.id))

    async def watches(self) -> list[WatchView]:
        """See `app.ports.Watcher`. A watch whose worker is being replaced is `waiting`."""
        views = {}
        listed = await asyncio.gather(*(slot.worker.list_watches() for slot in self._slots if slot.worker is not None))
        states = {state.id: state for states in listed for state in states}
        now = datetime.now(UTC)
        for slot in self._slots:
            for watched in slot.watched.values():
                state = states.get(watched.id)
                views[watched.address] = WatchView(
                    address=watched.address,
                    state=state.state if state else "waiting",
                    liveness=Liveness[state.liveness] if state else watched.liveness,
                    since=_time(state.since_s if state else 0) or now,
                    expires_at=_time(state.expires_at_s) if state else None,
                    code=state.code if state else 0,
                    reason=state.reason if state else "the SIP worker is being replaced",
                    next_action=state.next_action if state else "subscribe",
                    next_at=_time(state.next_at_s) if state else None,
                    route=self._routes[state.route] if state else "",
                )
        return [views[address] for address in sorted(views)]

    def counts(self) -> Counts:
        """What all workers counted, those that are gone included; states and routes as they are now."""
        total, failures, states = Counter[str](), Counter[str](), Counter[str]()
        for slot in self._slots:
            total.update(slot.before)
            total.update(_plain(slot.counts))
            states.update(slot.counts.states)
        failures.update({name[8:]: count for name, count in total.items() if name.startswith("failure ")})
        registered = all(slot.counts.registered for slot in self._slots)
        refused = {name[8:]: count for name, count in total.items() if name.startswith("refused ")}
        omitted = [total[f"omitted {route}"] for route in range(len(self._routes))]
        return Counts(
            total["sent"],
            total["notified"],
            total["cut"],
            dict(failures),
            dict(states),
            self._routes_up(),
            registered,
            omitted,
            refused,
        )

    def _routes_up(self) -> list[bool]:
        """Those that are up for each worker."""
        return [all(answers) for answers in zip(*(slot.counts.routes_up for slot in self._slots), strict=False)]

    def _look_at_routes(self) -> None:
        """Logs which went down or came back."""
        for number, up in enumerate(self._routes_up()):
            if up is not self._up[number]:
                self._up[number] = up
                self.turns[number] += 1
                if up:
                    _log.info("presence_server_up", route=self._routes[number])
                else:
                    _log.warning("presence_server_down", route=self._routes[number])

    def _slot(self, address: TerminalAddress) -> _Slot:
        slots = self._slots
        return slots[0] if len(slots) == 1 else slots[zlib.crc32(address.encode()) % len(slots)]

    def _heard(self, slot: _Slot, report: WatchReport) -> None:
        if isinstance(report, Counts):
            self._log_refused(Counter(report.refused) - Counter(slot.counts.refused))
            slot.counts = report
            self._look_at_routes()
            return
        watched = slot.by_id.get(report.id)
        observer = self._observer
        if watched is None or observer is None:
            return  # it is not wanted any more
        match report:
            case Observed():
                self._lag(max(0.0, time.time() - report.observed_at_s))
                self._observed(watched, report, observer)
            case NotifyRefused():
                self._log_notify_refused(watched.address, report.reason)
            case Told():
                watched.liveness = Liveness[report.liveness]
                observer.on_liveness_changed(watched.address, watched.liveness, report.reason, _error_of(report.error))
            case WatchEnded():
                del slot.by_id[watched.id], slot.watched[watched.address]
                observer.on_watch_ended(watched.address, report.reason, _error_of(report.error))

    def _observed(self, watched: _Watched, report: Observed, observer: WatchObserver) -> None:
        received = len(report.body)
        if report.declared_bytes not in (-1, received):
            self._log_cut(watched.address, report.declared_bytes, received)
            text = f"The presence document was cut short: {received} of {report.declared_bytes} bytes arrived."
            observer.on_notify_unreadable(watched.address, DocumentUnreadable(text, reason="cut"))
            return
        watched.observed = True
        observer.on_notify_received(
            watched.address,
            ReceivedNotify(
                body=report.body,
                content_type=report.content_type,
                content_encoding=report.content_encoding,
                observed_at=datetime.fromtimestamp(report.observed_at_s, UTC),
            ),
        )

    @staticmethod
    def _log_refused(messages: Counter[str]) -> None:
        """A worker counts once a second."""
        if messages:
            _log.warning(
                "sip_messages_refused", **{reason.replace("-", "_"): count for reason, count in messages.items()}
            )

    def _log_notify_refused(self, address: TerminalAddress, reason: str) -> None:
        now_s = time.monotonic()
        if now_s - self._refused_logged_s >= _LOG_S:
            _log.warning("notify_refused", address=address, reason=reason)
            self._refused_logged_s = now_s

    def _log_cut(self, address: TerminalAddress, declared: int, received: int) -> None:
        self._cut += 1
        now_s = time.monotonic()
        if now_s - self._cut_logged_s >= _LOG_S:
            _log.warning("document_cut", address=address, declared=declared, received=received, count=self._cut)
            self._cut, self._cut_logged_s = 0, now_s

    async def _spawn(self, slot: _Slot) -> None:
        configure = msgspec.structs.replace(slot.configure, routes_up=slot.counts.routes_up)
        worker = WorkerProcess(configure, partial(self._heard, slot))
        try:
            started = await worker.start()
        except BaseException:
            worker.kill()
            await reap(worker)
            raise
        self.build, slot.ports, slot.worker = started.build, started.ports, worker
        self._wish(worker, list(slot.watched.values()))
        _log.info(
            "sip_worker_started",
            pid=worker.process.pid if worker.process else None,
            ports=started.ports,
            watches=len(slot.watched),
        )

    def _say_wishes(self, slot: _Slot) -> None:
        wishes, slot.wishes = [each for each in slot.wishes if each.id in slot.by_id], []
        if slot.worker is not None and wishes:
            self._wish(slot.worker, wishes)

    @staticmethod
    def _wish(worker: WorkerProcess, wishes: list[_Watched]) -> None:
        """Tells the worker what is wanted, from the oldest wish to the newest."""
        by_clients: dict[tuple[int, ...], list[_Watched]] = {}
        for each in wishes:
            by_clients.setdefault(each.clients, []).append(each)
        for clients, its in by_clients.items():
            for start in range(0, len(its), _WISHES_PER_FRAME):
                # A worker takes the most urgent first, and each part before those that it has.
                part = its[start : start + _WISHES_PER_FRAME]
                worker.say(Watch([(each.id, each.address, each.observed) for each in reversed(part)], clients))

    async def _supervise(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while True:
            worker = slot.worker
            if worker is not None:
                born_at_s = loop.time()
                await self._until_gone(worker)
                slot.worker = None
                self._lost(slot)
                status = await reap(worker)
                pause_s = 0.0 if loop.time() - born_at_s > _YOUNG_S else min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_died", exit_status=status, replaced_after_s=pause_s, watches=len(slot.watched))
            await asyncio.sleep(pause_s)
            try:
                await self._spawn(slot)
            except (WatcherCannotStart, OSError) as error:  # OSError: no descriptor, process or memory to be had now
                pause_s = min(max(pause_s * 2, 0.1), _LONGEST_PAUSE_S)
                _log.error("sip_worker_cannot_start", reason=str(error), again_after_s=pause_s)
            else:
                self._restarted()

    def _lost(self, slot: _Slot) -> None:
        """What its watches said last is stale until the next worker has set them up again."""
        slot.before.update(_plain(slot.counts))
        slot.counts = Counts(0, 0, 0, {}, {}, slot.counts.routes_up, registered=False)
        reason = "the SIP worker is being replaced"
        for watched in list(slot.watched.values()):
            if watched.liveness is Liveness.LIVE and self._observer is not None:
                watched.liveness = Liveness.STALE
                error = restarting("The SIP worker died; it is being replaced.")
                self._observer.on_liveness_changed(watched.address, Liveness.STALE, reason, error)

    async def _until_gone(self, worker: WorkerProcess) -> None:
        """Waits for the worker's end, and brings it about where it no longer answers.

        Counts pings and not time: where the gateway itself was stopped (SIGSTOP, a suspended VM), the worker is asked
        afterwards and has its time to answer.
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
            worker.say(Ping())

    @staticmethod
    async def _end(slot: _Slot) -> None:
        if slot.supervisor is not None:
            slot.supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await slot.supervisor
        if slot.worker is not None:
            worker, slot.worker = slot.worker, None
            worker.close()
            await reap(worker)


def _configured(configure: Configure, number: int) -> Configure:
    """A further worker listens on a port of its own: two further on, for UDP and TCP, and TLS beside them."""
    port = configure.listen_port
    return msgspec.structs.replace(configure, listen_port=port + 2 * number if port else 0)


def _number(client_id: str) -> int:
    return zlib.crc32(client_id.encode())


def _plain(counts: Counts) -> dict[str, int]:
    failures = {f"failure {name}": count for name, count in counts.failures.items()}
    return {
        "sent": counts.subscribes_sent,
        "notified": counts.notifies_received,
        "cut": counts.cut_messages,
        **failures,
        **{f"omitted {route}": count for route, count in enumerate(counts.omitted)},
        **{f"refused {reason}": count for reason, count in counts.refused.items()},
    }


def _error_of(error: Error | None) -> TerminalStatusError | None:
    if error is None:
        return None
    kind = _ERRORS.get(error.code, PresenceUnavailable)
    return kind(error.message, retry_after_s=error.retry_after_s if error.retry_after_s >= 0 else None, **error.details)


def _time(unix_s: float) -> datetime | None:
    return datetime.fromtimestamp(unix_s, UTC) if unix_s > 0 else None
