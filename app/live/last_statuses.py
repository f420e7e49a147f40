"""The newest status known of each terminal: from its watch, from a watch that has ended, or from a fetch.

Queries that accept an age are answered from here.
Invariants: a status is not used if a later document of the terminal could not be read. At most MAX_REMEMBERED terminals
that are not watched are remembered.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from app.domain.addresses import TerminalAddress
from app.domain.bounded import BoundedDict
from app.domain.statuses import TerminalStatus
from app.live.registry import TerminalRegistry
from app.live.terminal import Terminal

MAX_REMEMBERED = 20_000


class _Past(NamedTuple):
    """What was known of a terminal when it was fetched, or when its watch ended."""

    status: TerminalStatus | None
    unreadable_at: datetime | None


class LastStatuses:
    """The statuses of all terminals, for `core/queries.py`. One per process."""

    def __init__(self, registry: TerminalRegistry) -> None:
        self._registry = registry
        self._past: BoundedDict[TerminalAddress, _Past] = BoundedDict(MAX_REMEMBERED)

    def newest(self, address: TerminalAddress, now: datetime, age_s: float) -> TerminalStatus | None:
        """The newest status, if the terminal is LIVE, or if it was observed at most `age_s` seconds before `now`."""
        if (live := self._registry.live(address)) is not None:
            return live
        terminal = self._registry.by_address.get(address)
        status, unreadable_at = self._past.get(address, _NOTHING)
        if terminal is not None:
            status = _newer(status, terminal.newest_readable())
            unreadable_at = _later(unreadable_at, terminal.unreadable_at)
        if status is None or (unreadable_at is not None and unreadable_at >= status.observed_at):
            return None
        # A status observed after `now` is from before the wall clock was set back: its age is not known.
        return status if now - timedelta(seconds=age_s) <= status.observed_at <= now else None

    def knows(self, address: str) -> bool:
        """Whether something is known of the terminal; then the address is canonical."""
        return address in self._past or address in self._registry.by_address

    def on_fetched(self, status: TerminalStatus) -> bool:
        """Remembers a fetched status. Returns False if the result of this same fetch is remembered already."""
        past = self._past.get(status.address, _NOTHING)
        if past.status is status:
            return False
        self._past[status.address] = _Past(status, past.unreadable_at)
        return True

    def on_unwatched(self, terminal: Terminal) -> None:
        """Remembers the terminal's status when its watch ended."""
        past = self._past.get(terminal.address, _NOTHING)
        unreadable_at = _later(past.unreadable_at, terminal.unreadable_at)
        self._past[terminal.address] = _Past(_newer(past.status, terminal.newest_readable()), unreadable_at)


_NOTHING = _Past(None, None)


def _newer(one: TerminalStatus | None, other: TerminalStatus | None) -> TerminalStatus | None:
    if one is None or (other is not None and other.observed_at > one.observed_at):
        return other
    return one


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return other if one is None or (other is not None and other > one) else one
