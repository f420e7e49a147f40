"""Live streams of statuses: what is told.

Deliberately absent: a stream's mailbox (`mailbox.py`), what is in a resume token (`resume_tokens.py`), where events
come from (`engine.py`), and any transport.
"""

import enum
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.domain.statuses import TerminalStatus, WatchedTerminal


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
    reset: bool = False
    """The reader's resume token could not be used. The snapshot has every terminal, and takes the place of all that
    earlier streams told, also where its revisions are smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A terminal's status changed. The same object goes to every stream."""

    status: TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessChange:
    """What the last observation of a terminal is worth has changed, or the reason; `error` where the presence server
    refuses it or does not know it, or where its last document cannot be read."""

    terminal: WatchedTerminal
    error: TerminalStatusError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The terminal left the group by which it was watched; nothing follows about it."""

    address: TerminalAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing was missed up to here. One comes in each bookmark interval, whether terminals change or not."""

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


_MESSAGES = {
    StreamEnd.GATEWAY_STOPPING: "The gateway is stopping; come again, or to another one.",
    StreamEnd.NOTHING_TO_WATCH: "None of the terminals can be watched.",
    StreamEnd.CREDENTIALS_EXPIRED: "The client's credentials are no longer good.",
}


def ending(reason: StreamEnd, token: str) -> End:
    """The last event of a stream."""
    return End(reason=reason, message=_MESSAGES[reason], resume_token=token)
