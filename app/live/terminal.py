"""Watched terminals as they are held in memory.

Invariants: of a terminal, `stored` is what the store has, and `status` the same, but `observed_at` is when it was last
confirmed. What was observed and is not stored yet waits in `pending`, in order, MAX_PENDING at most, above which the
newest takes the place of the last. LIVE is said only of one that was observed since the gateway began to watch it.

Deliberately absent: the store, and deciding who is told.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, TerminalStatusError
from app.domain.statuses import Liveness, Source, Status, TerminalStatus, WatchedTerminal
from app.live.resume_tokens import mark_of
from app.live.subscription import LiveSubscription

if TYPE_CHECKING:
    from app.live.mailbox import Stream

MAX_PENDING = 8
"""Observations of one terminal that wait to be stored."""

NEVER_OBSERVED = "not observed yet"
LAST_STORED = "not observed since the gateway began to watch it"


class Terminal:
    """A watched terminal."""

    __slots__ = (
        "_marked",
        "_reason",
        "_watch",
        "address",
        "attentive",
        "error",
        "idle_from_s",
        "liveness",
        "loaded",
        "may_go",
        "observed",
        "pending",
        "queued",
        "readable",
        "reason",
        "since",
        "standings",
        "status",
        "stored",
        "streams",
        "unreadable",
        "unreadable_at",
    )

    streams: "dict[Stream, None]"

    def __init__(self, address: TerminalAddress, now: datetime) -> None:
        self.address = address
        self.status: TerminalStatus | None = None
        self.stored: TerminalStatus | None = None
        """Observed at the time of its revision: it is the same after a restart."""
        self._marked: tuple[TerminalStatus, int] | None = None
        self.loaded = False
        """Whether `status` is what the store has."""
        self.observed = False
        """Whether it was observed, and that was dealt with, since the gateway watches it."""
        self.attentive = True
        """Whether somebody waits for the next observation even if it says nothing new."""
        self.pending: list[tuple[Status, datetime]] = []
        self.queued = False
        """Whether it waits for the writer."""
        self.liveness = Liveness.UNKNOWN
        self.reason = NEVER_OBSERVED
        self.since = now
        self.error: TerminalStatusError | None = None
        """Why it is not watched any more, though it is wanted."""
        self.unreadable: DocumentUnreadable | None = None
        """Why the newest document could not be read."""
        self.unreadable_at: datetime | None = None
        self.readable = False
        """Whether one that could be read has come since, and is still to be written."""
        self.standings: dict[LiveSubscription, None] = {}
        self.streams = {}
        self.idle_from_s: float | None = None
        """Since when nobody wants it."""
        self.may_go = False
        """Whether it is among those that are let go one day."""
        self._watch = Liveness.UNKNOWN
        self._reason = ""

    @property
    def wanted(self) -> bool:
        """Whether a subscription or a stream wants it watched."""
        return bool(self.standings or self.streams)

    def take(self, stored: TerminalStatus | None) -> None:
        """Takes in what the store has now."""
        self.loaded = True
        self.status = self.stored = stored

    def mark_of(self, stored: TerminalStatus) -> int:
        """Identifies a status that is or was stored of this terminal; that of now is hashed once for all streams."""
        marked = self._marked  # read and replaced whole: threads make tokens, too
        if marked is not None and marked[0] is stored:
            return marked[1]
        mark = mark_of(stored)
        if stored is self.stored:
            self._marked = stored, mark
        return mark

    def note(self, status: Status, at: datetime) -> bool:
        """Takes in an observation; whether it must be written or told, which one that says nothing new need not."""
        pending = self.pending
        if pending:
            if pending[-1][0] is status or len(pending) >= MAX_PENDING:
                pending[-1] = (status, at)
            else:
                pending.append((status, at))
            return True
        known = self.status
        if known is None or known.status is not status or self.attentive or not self.loaded:
            pending.append((status, at))
            return True
        self.status = confirmed(known, at)
        return False

    def keep_newest(self) -> None:
        """Forgets what was observed in between, while the store is away."""
        if len(self.pending) > 1:
            self.pending[:] = self.pending[-1:]

    def tell_liveness(self, liveness: Liveness, reason: str, now: datetime) -> bool:
        """Takes in what the watch says; whether that changes anything."""
        self._watch, self._reason = liveness, reason
        return self.refresh(now)

    def cannot_read(self, error: DocumentUnreadable, now: datetime) -> bool:
        """Takes in that a document could not be read; whether that changes its liveness or the reason."""
        self.unreadable, self.unreadable_at, self.readable = error, now, False
        return self.refresh(now)

    def was_written(self) -> bool:
        """Takes in that the newest observation is written; whether its liveness is to be said anew."""
        first = not self.observed
        self.observed = True
        if self.readable and not self.pending:
            self.readable, self.unreadable, self.unreadable_at = False, None, None
            return True
        return first

    def watch_again(self, now: datetime) -> None:
        """A new watch begins, after one that ended with an error: what was observed before is no sign of life."""
        self.error = self.unreadable = self.unreadable_at = None
        self.observed, self.readable, self.attentive = False, False, True
        self.tell_liveness(Liveness.UNKNOWN, "", now)

    def refresh(self, now: datetime) -> bool:
        """Says anew what the status is worth; whether that or its reason has changed."""
        reason = self._reason
        if self.unreadable is not None:
            reason = reason or f"document unreadable: {self.unreadable.details.get('reason', 'unknown')}"
        if self.status is None:
            liveness, reason = Liveness.UNKNOWN, reason or NEVER_OBSERVED
        elif self._watch is Liveness.LIVE and self.observed and self.error is None and self.unreadable is None:
            liveness, reason = Liveness.LIVE, ""
        else:
            liveness, reason = Liveness.STALE, reason or LAST_STORED
        if (liveness, reason) == (self.liveness, self.reason):
            return False
        if liveness is not self.liveness:
            self.since = now
        self.liveness, self.reason = liveness, reason
        return True

    @property
    def heard(self) -> bool:
        """Whether anything came of it since the gateway began to watch it."""
        return self.observed or bool(self.pending) or self.unreadable is not None

    def newest(self) -> TerminalStatus | None:
        """What was observed last; of revision 0 while it is not stored."""
        if not self.pending:
            return self.status
        status, at = self.pending[-1]
        return TerminalStatus(address=self.address, status=status, observed_at=at, source=Source.WATCH)

    def view(self, status: TerminalStatus | None) -> WatchedTerminal:
        """How it stands, with its status as the reader may see it."""
        return WatchedTerminal(
            address=self.address, status=status, liveness=self.liveness, reason=self.reason, since=self.since
        )


def confirmed(status: TerminalStatus, at: datetime) -> TerminalStatus:
    """The same status, observed again."""
    return TerminalStatus(
        address=status.address, status=status.status, observed_at=at, source=Source.WATCH, revision=status.revision
    )
