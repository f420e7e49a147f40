"""The question: what is this terminal's status? Every face (gRPC, REST, SOAP) asks here.

Invariants: no framework, no wire format, no SIP. Concurrent fetches of one terminal share one SUBSCRIBE; the
number in flight is bounded; each ends within the fetch time limit. Whatever goes wrong is a `TerminalStatusError`.
A fetch belongs to the service, not to the caller who started it: a caller that leaves disturbs nobody, and when
the last one leaves the fetch is given up.

Deliberately absent: caching. A question without an accepted age is answered by the presence server.
"""

import asyncio
from collections.abc import Set
from dataclasses import dataclass

from app.domain import (
    FetchTimedOut,
    GatewayOverloaded,
    Source,
    TerminalAddress,
    TerminalStatus,
    TerminalStatusError,
    parse_address,
)
from app.ports import Fetcher, Meter
from app.presence import read_presence, status_of


@dataclass(eq=False, slots=True)
class _Flight:
    task: asyncio.Task[TerminalStatus]
    waiters: int = 0


class StatusService:
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
        self._flights: dict[TerminalAddress, _Flight] = {}
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

    async def get_status(self, address: str) -> TerminalStatus:
        """Asks the presence server for the terminal's status now.

        Raises InvalidAddress, TerminalUnknown, WatcherRefused, WatcherUnauthenticated, FetchTimedOut,
        PresenceUnavailable, WatcherRestarting, GatewayOverloaded, PresenceMisconfigured or DocumentUnreadable.
        """
        terminal = parse_address(address)
        flight = self._flights.get(terminal)
        if flight is None or flight.task.done():  # done: what the presence server said before this question
            if len(self._flights) >= self._max_fetches:
                raise GatewayOverloaded(
                    f"{self._max_fetches} fetches are in flight, as many as allowed; try again.", retry_after_s=1
                )
            flight = _Flight(asyncio.create_task(self._fetch(terminal), name=f"fetch {terminal}"))
            self._flights[terminal] = flight
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
                if self._flights.get(terminal) is flight:
                    del self._flights[terminal]

    async def _fetch(self, terminal: TerminalAddress) -> TerminalStatus:
        clock = asyncio.get_running_loop().time
        asked_at_s = clock()
        try:
            result = await self._ask(terminal)
        except TerminalStatusError as error:
            error.details.setdefault("address", terminal)
            self._meter.fetched(error.code, clock() - asked_at_s, error)
            raise
        self._meter.fetched(result.status.name, clock() - asked_at_s, None)
        return result

    async def _ask(self, terminal: TerminalAddress) -> TerminalStatus:
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                notification = await self._watcher.fetch(terminal)
        except TimeoutError:
            raise FetchTimedOut(
                f"The presence server did not answer within {self._fetch_timeout_s * 1000:.0f} ms."
            ) from None
        presence = read_presence(notification.body, notification.content_type, notification.content_encoding)
        return TerminalStatus(
            address=terminal,
            status=status_of(presence, self._busy_activities),
            observed_at=notification.observed_at,
            source=Source.FETCH,
        )
