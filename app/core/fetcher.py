"""Fetches a terminal's status from the presence server, for `queries.py`.

Invariants: concurrent fetches of one terminal by one client share one SUBSCRIBE. Two clients never do, because
one client would wait in the other's queue. The number of fetches in flight is bounded; a client may start a fetch while
it has fewer in flight than are free. Each fetch ends within the time limit. A fetch goes on while one of its callers
waits, and is cancelled when the last caller leaves. Every failure is a `TerminalStatusError`.

Deliberately absent: caching (`live/last_statuses.py`).
"""

import asyncio
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from functools import partial

from app.domain.addresses import TerminalAddress
from app.domain.errors import FetchTimedOut, GatewayOverloaded, TerminalStatusError
from app.domain.presence import read_presence, status_of
from app.domain.statuses import Source, TerminalStatus
from app.ports.metrics import Meter
from app.ports.sip import Fetcher, ReceivedNotify


@dataclass(eq=False, slots=True)
class _Flight:
    """A fetch in progress, and a future for each caller that waits for it."""

    answer: asyncio.Future[ReceivedNotify]
    time_limit: asyncio.TimerHandle | None = None
    is_overdue: bool = False
    waiting: list[asyncio.Future[TerminalStatus]] = field(default_factory=list)


class FetchService:
    """One per process, used from one event loop."""

    def __init__(
        self,
        watcher: Fetcher,
        meter: Meter,
        *,
        busy_activities: Set[str],
        busy_when_closed: bool,
        fetch_timeout_s: float,
        max_fetches: int,
    ) -> None:
        self._watcher = watcher
        self._meter = meter
        self._busy_activities = frozenset(busy_activities)
        self._busy_when_closed = busy_when_closed
        self._fetch_timeout_s = fetch_timeout_s
        self._max_fetches = max_fetches
        self._flights: dict[tuple[str, TerminalAddress], _Flight] = {}
        self._of_client: Counter[str] = Counter()  # how many flights each client has
        self.leaving = False
        """Whether the gateway is about to stop: it still answers, but is reported as not ready (TS_DRAIN_DELAY_S)."""

    @property
    def ready(self) -> bool:
        """Whether queries should be sent to this gateway: the SIP side takes fetches, and the gateway is not about to
        stop."""
        return self._watcher.ready and not self.leaving

    @property
    def presence_up(self) -> bool:
        """Whether a presence server answers, as far as the SIP side knows."""
        return self._watcher.presence_up

    async def fetch(self, terminal: TerminalAddress, client_id: str = "") -> TerminalStatus:
        """Asks the presence server for the terminal's status now, as one of the client's fetches.

        Raises TerminalUnknown, AddressIsList, WatcherRefused, WatcherUnauthenticated, FetchTimedOut,
        PresenceUnavailable, WatcherRestarting, GatewayOverloaded, PresenceMisconfigured or DocumentUnreadable.
        """
        key = client_id, terminal
        flight = self._flights.get(key)
        if flight is None or flight.answer.done():  # a finished fetch is older than this query
            if flight is None:
                self._require_room(client_id)
                self._of_client[client_id] += 1
            flight = self._flights[key] = self._start(terminal, client_id)
        waiter: asyncio.Future[TerminalStatus] = asyncio.get_running_loop().create_future()
        flight.waiting.append(waiter)
        try:
            return await waiter
        finally:
            flight.waiting.remove(waiter)
            if not flight.waiting:
                flight.answer.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]
                    self._of_client[client_id] -= 1
                    if not self._of_client[client_id]:
                        del self._of_client[client_id]

    def _require_room(self, client_id: str) -> None:
        """Raises GatewayOverloaded. A client may have as many fetches in flight as are still free. So a single client
        gets half of all, and the other half stays free for other clients."""
        own, free = self._of_client.get(client_id, 0), self._max_fetches - len(self._flights)
        if own < free:
            return
        if free <= 0:
            text = f"Limit reached: {self._max_fetches} fetches are in flight. Try again later."
        else:
            text = f"Limit reached: {own} fetches of this client are in flight. Start fewer at once."
        raise GatewayOverloaded(text, retry_after_s=1)

    def _start(self, terminal: TerminalAddress, client_id: str) -> _Flight:
        """Starts a fetch: futures and one timer, since a task with its own time limit costs three times as much."""
        loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(self._watcher.fetch(terminal, client_id))
        flight = _Flight(answer)
        flight.time_limit = loop.call_later(self._fetch_timeout_s, self._on_overdue, flight)
        answer.add_done_callback(partial(self._on_answered, flight, terminal, loop.time()))
        return flight

    def _on_overdue(self, flight: _Flight) -> None:
        flight.is_overdue = True
        flight.answer.cancel()

    def _on_answered(
        self, flight: _Flight, terminal: TerminalAddress, asked_at_s: float, answer: asyncio.Future[ReceivedNotify]
    ) -> None:
        if flight.time_limit is not None:
            flight.time_limit.cancel()
        waiting = [waiter for waiter in flight.waiting if not waiter.done()]
        if answer.cancelled() and not flight.is_overdue:  # the last caller has left, or the event loop ends
            for waiter in waiting:
                waiter.cancel()
            return
        seconds = asyncio.get_running_loop().time() - asked_at_s
        try:
            status = self._status(terminal, answer)
        except Exception as error:
            if isinstance(error, TerminalStatusError):
                error.details.setdefault("address", terminal)
                self._meter.fetched(error.code, seconds, error)
            for waiter in waiting:
                waiter.set_exception(error)
            return
        self._meter.fetched(status.status.name, seconds, None)
        for waiter in waiting:
            waiter.set_result(status)

    def _status(self, terminal: TerminalAddress, answer: asyncio.Future[ReceivedNotify]) -> TerminalStatus:
        """The status in the NOTIFY. Raises what the fetch has failed with."""
        if answer.cancelled():
            raise FetchTimedOut(f"The presence server did not answer within {self._fetch_timeout_s * 1000:.0f} ms.")
        notify = answer.result()
        presence = read_presence(notify.body, notify.content_type, notify.content_encoding, at=notify.observed_at)
        return TerminalStatus(
            address=terminal,
            status=status_of(presence, self._busy_activities, busy_when_closed=self._busy_when_closed),
            observed_at=notify.observed_at,
            source=Source.FETCH,
        )
