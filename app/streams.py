"""Live streams of statuses: the events, and the mailbox of one stream.

A mailbox holds the latest of each terminal and not a queue, so a slow reader skips what is out of date, sees the last
state, and costs memory in proportion to its terminals. A resume token holds the revisions that were told; it means
nothing but to the gateway, and only for the same list of terminals (for another, everything is told again).
Invariants: no event tells a revision that is not greater than what was told of that terminal before on this stream.

Deliberately absent: where events come from (`watching.py`), and any transport.
"""

import enum
from dataclasses import dataclass

from app.domain import TerminalAddress, TerminalStatus, TerminalStatusError, WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How one terminal stands. At the start all that the resume token does not tell already, whatever the criteria;
    after SnapshotComplete only terminals that joined a group. The first observation of one that is UNKNOWN comes as a
    Change."""

    terminal: WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotComplete:
    """Every terminal was told. Changes follow."""

    resume_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A terminal's status changed. The same object goes to every stream."""

    status: TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessChange:
    """What the last observation of a terminal is worth has changed, or the reason; `error` where the presence server
    refuses it or does not know it."""

    terminal: WatchedTerminal
    error: TerminalStatusError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The terminal left the group by which it was watched; nothing follows about it."""

    address: TerminalAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing was missed up to here; sent when nothing else was for a while."""

    resume_token: str


class StreamEnd(enum.Enum):
    """Why the gateway ended a stream."""

    GATEWAY_STOPPING = "GATEWAY_STOPPING"
    """Come again, with the last resume token."""
    NOTHING_TO_WATCH = "NOTHING_TO_WATCH"
    """Each terminal is unknown to the presence server, or refuses the gateway."""
    CREDENTIALS_EXPIRED = "CREDENTIALS_EXPIRED"
    """The client was deleted or disabled, or its credentials ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Nothing follows. `message` is for people; `resume_token` is empty where coming again makes no sense."""

    reason: StreamEnd
    message: str
    resume_token: str


WatchEvent = Snapshot | SnapshotComplete | Change | LivenessChange | Removed | Bookmark | End
