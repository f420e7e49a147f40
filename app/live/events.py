"""The events of a stream: Snapshots, SnapshotComplete, then Changes, LivenessChanges, Removed, Bookmarks; End is last.

A stream whose addresses are changed while it is open also has a ChangeApplied for each such change.

Deliberately absent: when each is sent (`mailbox.py`), resume tokens (`resume_tokens.py`), and any transport.
"""

import enum
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.domain.statuses import TerminalStatus, WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One terminal as it is now, whatever the criteria. Sent at the start for each terminal that the reader's resume
    token does not cover, and after SnapshotComplete for each terminal that is added or joins a group. The first
    observation of an UNKNOWN terminal is sent as a Change."""

    terminal: WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotComplete:
    """The snapshot is complete. Changes follow."""

    resume_token: str
    reset: bool = False
    """Whether the reader's resume token could not be used. Then the snapshot has every terminal, and replaces
    everything that earlier streams sent, even if its revisions are smaller."""
    bookmark_interval_s: float
    """The longest time without an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A terminal's status changed. The same object goes to every stream."""

    status: TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessChange:
    """A terminal's liveness has changed, or the reason for it. `error` is set if the presence server refuses the
    terminal or does not know it, or if its last document is unreadable."""

    terminal: WatchedTerminal
    error: TerminalStatusError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The client removed the terminal, or it left the group by which it was watched. Nothing about it follows."""

    address: TerminalAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """All changes up to here were sent. Sent once in each bookmark interval, also without changes."""

    resume_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeApplied:
    """The answer to one change of the stream's addresses. If the change was made, its Snapshot and Removed events were
    sent before this event. If it was refused, `error` is set, and the stream watches what it watched before."""

    change_id: str
    resume_token: str
    """Resumes a stream with the new addresses; empty if the change was refused."""
    error: TerminalStatusError | None = None
    """Why the change was refused; None if it was made."""


class StreamEnd(enum.Enum):
    """Why the gateway ended a stream."""

    GATEWAY_STOPPING = "GATEWAY_STOPPING"
    """Open the stream again, with the last resume token."""
    NOTHING_TO_WATCH = "NOTHING_TO_WATCH"
    """The presence server knows none of the terminals, or refuses to let them be watched."""
    CREDENTIALS_EXPIRED = "CREDENTIALS_EXPIRED"
    """The client was deleted or disabled, or its credentials expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The last event. `message` is for people; `resume_token` is empty if opening the stream again is of no use."""

    reason: StreamEnd
    message: str
    resume_token: str


StreamEvent = Snapshot | SnapshotComplete | Change | LivenessChange | Removed | Bookmark | End
OpenStreamEvent = StreamEvent | ChangeApplied
"""The events of a stream whose addresses can be changed."""


_MESSAGES = {
    StreamEnd.GATEWAY_STOPPING: "The gateway is stopping. Open the stream again, here or at another gateway.",
    StreamEnd.NOTHING_TO_WATCH: "None of the terminals can be watched.",
    StreamEnd.CREDENTIALS_EXPIRED: "The client's credentials are no longer valid.",
}


def end_event(reason: StreamEnd, token: str) -> End:
    """The last event of a stream."""
    return End(reason=reason, message=_MESSAGES[reason], resume_token=token)
