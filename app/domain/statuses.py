"""What is known of a terminal: its status, where that came from, and what it is worth now.

Invariants: pure and frozen; datetimes are aware UTC.
"""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.addresses import TerminalAddress


class Status(enum.Enum):
    """What a terminal is, in the words of 3GPP TS 29.199-8 `Status`."""

    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"
    BUSY = "BUSY"


class Source(enum.Enum):
    """Where a terminal status came from."""

    FETCH = "FETCH"
    """The presence server was asked for this answer: SUBSCRIBE with `Expires: 0` (RFC 6665 section 4.4.3)."""
    WATCH = "WATCH"
    """A live subscription at the presence server says so (RFC 6665 section 4.1)."""


class Liveness(enum.Enum):
    """What the last observation of a watched terminal is worth."""

    LIVE = "LIVE"
    """The presence server tells each change: a subscription is active."""
    STALE = "STALE"
    """It no longer does; what it said last stays, with its age."""
    UNKNOWN = "UNKNOWN"
    """Nothing was ever observed."""


def require_utc(*times: datetime | None) -> None:
    """Raises ValueError for a datetime that is naive or of another zone; None passes."""
    for time in times:
        if time is not None and time.utcoffset() != timedelta(0):
            raise ValueError(f"{time!r} is no aware UTC datetime")


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalStatus:
    """A terminal's status as the presence server stated it at `observed_at` (aware, UTC).

    `revision` grows by one with each change of the stored status, from 1; 0 is a status that is not stored: one
    that was fetched, or was just observed.
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
    """What is known of a watched terminal now. `status` is None where nothing was ever observed.

    `reason` says why it is not LIVE, in a few words for people; `since` is when the liveness began.
    """

    address: TerminalAddress
    status: TerminalStatus | None
    liveness: Liveness
    reason: str
    since: datetime

    def __post_init__(self) -> None:
        require_utc(self.since)
