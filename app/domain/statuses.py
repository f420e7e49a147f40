"""The status of a terminal, where it came from, and how far it can be trusted now (liveness)."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.addresses import TerminalAddress


class Status(enum.Enum):
    """The values of `Status` in 3GPP TS 29.199-8."""

    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"
    BUSY = "BUSY"


class Source(enum.Enum):
    """How the gateway learned a status."""

    FETCH = "FETCH"
    """By a fetch: SUBSCRIBE with `Expires: 0` (RFC 6665 section 4.4.3)."""
    WATCH = "WATCH"
    """By a NOTIFY of a watch (RFC 6665 section 4.1)."""


class Liveness(enum.Enum):
    """Whether the last observation of a watched terminal is current."""

    LIVE = "LIVE"
    """The watch is active: the presence server reports each change."""
    STALE = "STALE"
    """The watch is interrupted: the last status is kept and ages."""
    UNKNOWN = "UNKNOWN"
    """The terminal was never observed."""


def require_utc(*times: datetime | None) -> None:
    """Raises ValueError for a datetime that is naive or in another zone. None is accepted."""
    for time in times:
        if time is not None and time.utcoffset() != timedelta(0):
            raise ValueError(f"{time!r} is not an aware UTC datetime")


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalStatus:
    """A terminal's status as the presence server reported it at `observed_at`.

    `revision` starts at 1 and grows by one with each change of the stored status. It is 0 for a status that is not
    stored: after a fetch, or just after an observation.
    """

    address: TerminalAddress
    status: Status
    observed_at: datetime
    source: Source
    revision: int = 0

    def __post_init__(self) -> None:
        require_utc(self.observed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTerminal:
    """A watched terminal now. `status` is None if it was never observed.

    `reason` explains to people why the liveness is not LIVE; `since` is when this liveness began.
    """

    address: TerminalAddress
    status: TerminalStatus | None
    liveness: Liveness
    reason: str
    since: datetime

    def __post_init__(self) -> None:
        require_utc(self.since)
