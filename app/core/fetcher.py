"""The question: what is this terminal's status? Every face (gRPC, REST, SOAP) asks here.

Invariants: no framework, no wire format, no SIP. Concurrent fetches of one terminal by one client share one SUBSCRIBE
(not those of two clients: one would wait in the other's turn); the number in flight is bounded, and no client begins
more than are left to the others; each ends within the fetch time limit. Whatever goes wrong is a `TerminalStatusError`.
A fetch belongs to the service, not to the caller who started it: a caller that leaves disturbs nobody, and when
the last one leaves the fetch is given up.

Deliberately absent: caching. A question without an accepted age is answered by the presence server.
"""

import asyncio
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import FetchTimedOut, GatewayOverloaded, TerminalStatusError
from app.domain.presence import read_presence, status_of
from app.domain.statuses import Source, TerminalStatus
from app.ports import Fetcher, Meter


@dataclass(eq=False, slots=True)
class _Flight:
    task: asyncio.Task[TerminalStatus]
    waiters: int = 0


class FetchService:
    """Answers questions about terminals. One instance per process, used from one event loop."""

    def __init__(
        self,
        watcher: Fetcher,
        meter: Meter,
        *,
        busy_activities: Set[str],
        fetch_timeout_s: float,
        max_fetches: int,
    ) -> None:
        self._watcher = watcher
        self._meter = meter
        self._busy_activities = frozenset(busy_activities)
        self._fetch_timeout_s = fetch_timeout_s
        self._max_fetches = max_fetches
        self._flights: dict[tuple[str, TerminalAddress], _Flight] = {}
        self._of_client: Counter[str] = Counter()  # how many of them
        self.leaving = False
        """Whether the gateway is about to stop: it answers, and others are to be asked (TS_DRAIN_DELAY_S)."""

    @property
    def ready(self) -> bool:
        """Whether a question should be put here: it would be put to the presence server now, and the gateway stays."""
        return self._watcher.ready and not self.leaving

    @property
    def presence_up(self) -> bool:
        """Whether a presence server answers, as far as is known."""
        return self._watcher.presence_up

    async def get_status(self, address: str, client_id: str = "") -> TerminalStatus:
        """Asks the presence server for the terminal's status now, as one of the client's fetches.

        Raises InvalidAddress, TerminalUnknown, WatcherRefused, WatcherUnauthenticated, FetchTimedOut,
        PresenceUnavailable, WatcherRestarting, GatewayOverloaded, PresenceMisconfigured or DocumentUnreadable.
        """
        terminal = parse_address(address)
        key = client_id, terminal
        flight = self._flights.get(key)
        if flight is None or flight.task.done():  # done: what the presence server said before this question
            if flight is None:
                self._require_room(client_id)
                self._of_client[client_id] += 1
            flight = _Flight(asyncio.create_task(self._fetch(terminal, client_id), name=f"fetch {terminal}"))
            self._flights[key] = flight
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]
                    self._of_client[client_id] -= 1
                    if not self._of_client[client_id]:
                        del self._of_client[client_id]

    def _require_room(self, client_id: str) -> None:
        """Raises GatewayOverloaded. A client may take half of what is free (so one alone gets half of all), and what is
        left is there for those who come: no share need be known beforehand."""
        own, free = self._of_client.get(client_id, 0), self._max_fetches - len(self._flights)
        if own < free:
            return
        if free <= 0:
            text = f"{self._max_fetches} fetches are in flight, as many as allowed; try again."
        else:
            text = f"{own} fetches of this client are in flight, as many as are left to the others; ask fewer at once."
        raise GatewayOverloaded(text, retry_after_s=1)

    async def _fetch(self, terminal: TerminalAddress, client_id: str) -> TerminalStatus:
        clock = asyncio.get_running_loop().time
        asked_at_s = clock()
        try:
            result = await self._ask(terminal, client_id)
        except TerminalStatusError as error:
            error.details.setdefault("address", terminal)
            self._meter.fetched(error.code, clock() - asked_at_s, error)
            raise
        self._meter.fetched(result.status.name, clock() - asked_at_s, None)
        return result

    async def _ask(self, terminal: TerminalAddress, client_id: str) -> TerminalStatus:
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                notify = await self._watcher.fetch(terminal, client_id)
        except TimeoutError:
            raise FetchTimedOut(
                f"The presence server did not answer within {self._fetch_timeout_s * 1000:.0f} ms."
            ) from None
        presence = read_presence(notify.body, notify.content_type, notify.content_encoding)
        return TerminalStatus(
            address=terminal,
            status=status_of(presence, self._busy_activities),
            observed_at=notify.observed_at,
            source=Source.FETCH,
        )
