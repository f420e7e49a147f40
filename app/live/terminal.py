"""A watched terminal in memory.

Invariants: `stored` is the status in the store; `status` is the same, except that its `observed_at` is the time of the
last confirmation. Observations that are not stored yet wait in `pending`, in order. Of MAX_PENDING waiting observations
the last is replaced by a new one. A terminal is LIVE only if it was observed since the gateway began to watch it.
"""

from datetime import datetime
from typing import Protocol

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, TerminalStatusError
from app.domain.statuses import Liveness, Source, Status, TerminalStatus, WatchedTerminal
from app.live.events import Change, StreamEnd
from app.live.resume_tokens import mark_of
from app.live.subscription import LiveSubscription

MAX_PENDING = 8
"""Most observations of one terminal that wait to be stored."""

NEVER_OBSERVED = "not observed yet"
LAST_STORED = "not observed since the gateway began to watch it"


class StreamOfTerminals(Protocol):
    """The methods of a stream (`mailbox.Stream`) that a terminal and the registry call."""

    @property
    def client_id(self) -> str: ...

    @property
    def groups(self) -> tuple[TerminalAddress, ...]: ...

    @property
    def addresses(self) -> tuple[TerminalAddress, ...]: ...

    def post(self, terminal: "Terminal", change: Change) -> None:
        """The terminal's status has changed."""

    def post_liveness(self, terminal: "Terminal") -> None:
        """The terminal's liveness has changed, or the reason for it."""

    def has_only_failed(self) -> bool:
        """Whether none of its terminals can be watched."""

    def end(self, reason: StreamEnd) -> None:
        """Ends the stream."""


class Terminal:
    """A watched terminal."""

    __slots__ = (
        "_marked",
        "_watch_liveness",
        "_watch_reason",
        "address",
        "error",
        "idle_from_s",
        "in_idle_queue",
        "liveness",
        "loaded",
        "observed",
        "pending",
        "queued",
        "readable_pending",
        "reason",
        "since",
        "status",
        "stored",
        "streams",
        "subscriptions",
        "unreadable",
        "unreadable_at",
        "write_next",
    )

    def __init__(self, address: TerminalAddress, now: datetime) -> None:
        self.address = address
        self.status: TerminalStatus | None = None
        self.stored: TerminalStatus | None = None
        """Its `observed_at` is the time of its revision, so that it is the same after a restart."""
        self._marked: tuple[TerminalStatus, int] | None = None
        self.loaded = False
        """Whether `stored` is known; False until it was read from the store."""
        self.observed = False
        """Whether an observation was written since the gateway began to watch it."""
        self.write_next = True
        """Whether the next observation must be written even if it repeats the status."""
        self.pending: list[tuple[Status, datetime]] = []
        self.queued = False
        """Whether the terminal is in the registry's queue for the writer."""
        self.liveness = Liveness.UNKNOWN
        self.reason = NEVER_OBSERVED
        self.since = now
        self.error: TerminalStatusError | None = None
        """Why the watch ended although a listener wants the terminal."""
        self.unreadable: DocumentUnreadable | None = None
        """Why the newest document could not be read."""
        self.unreadable_at: datetime | None = None
        self.readable_pending = False
        """Whether a readable document has come since `unreadable`, and is not written yet."""
        self.subscriptions: dict[LiveSubscription, None] = {}
        self.streams: dict[StreamOfTerminals, None] = {}
        self.idle_from_s: float | None = None
        """Since when no listener wants it; monotonic. None while one does."""
        self.in_idle_queue = False
        """Whether it is in the registry's queue of idle terminals."""
        self._watch_liveness = Liveness.UNKNOWN
        self._watch_reason = ""

    @property
    def wanted(self) -> bool:
        """Whether a subscription or a stream wants it watched."""
        return bool(self.subscriptions or self.streams)

    def take_stored(self, stored: TerminalStatus | None) -> None:
        """Sets the status that the store has now (None: no status)."""
        self.loaded = True
        self.status = self.stored = stored

    def mark_of(self, stored: TerminalStatus) -> int:
        """As `resume_tokens.mark_of`, for a present or earlier stored status of this terminal. The mark of the present
        status is computed once for all streams."""
        marked = self._marked  # read and replaced whole: threads make tokens, too
        if marked is not None and marked[0] is stored:
            return marked[1]
        mark = mark_of(stored)
        if stored is self.stored:
            self._marked = stored, mark
        return mark

    def observe(self, status: Status, at: datetime) -> bool:
        """Takes an observation. Returns whether it must be written: a repeated status only if `write_next`."""
        pending = self.pending
        if pending:
            if pending[-1][0] is status or len(pending) >= MAX_PENDING:
                pending[-1] = (status, at)
            else:
                pending.append((status, at))
            return True
        known = self.status
        if known is None or known.status is not status or self.write_next or not self.loaded:
            pending.append((status, at))
            return True
        self.status = confirmed(known, at)
        return False

    def keep_newest(self) -> None:
        """Drops all pending observations except the newest; called while the store is unavailable."""
        if len(self.pending) > 1:
            self.pending[:] = self.pending[-1:]

    def set_watch_liveness(self, liveness: Liveness, reason: str, now: datetime) -> bool:
        """Sets the watch's liveness. Returns whether that changes the terminal's liveness or reason."""
        self._watch_liveness, self._watch_reason = liveness, reason
        return self.refresh_liveness(now)

    def set_unreadable(self, error: DocumentUnreadable, now: datetime) -> bool:
        """The newest document could not be read. Returns whether that changes the terminal's liveness or reason."""
        self.unreadable, self.unreadable_at, self.readable_pending = error, now, False
        return self.refresh_liveness(now)

    def on_written(self) -> bool:
        """The oldest of `pending` was written and removed. Returns whether the liveness must be computed again."""
        first = not self.observed
        self.observed = True
        if self.readable_pending and not self.pending:
            self.readable_pending, self.unreadable, self.unreadable_at = False, None, None
            return True
        return first

    def watch_again(self, now: datetime) -> None:
        """A new watch begins, after one that ended with an error: earlier observations do not make it LIVE."""
        self.error = self.unreadable = self.unreadable_at = None
        self.observed, self.readable_pending, self.write_next = False, False, True
        self.set_watch_liveness(Liveness.UNKNOWN, "", now)

    def refresh_liveness(self, now: datetime) -> bool:
        """Computes the liveness again. Returns whether it or its reason has changed."""
        reason = self._watch_reason
        if self.unreadable is not None:
            reason = reason or f"document unreadable: {self.unreadable.details.get('reason', 'unknown')}"
        if self.status is None:
            liveness, reason = Liveness.UNKNOWN, reason or NEVER_OBSERVED
        elif self._watch_liveness is Liveness.LIVE and self.observed and self.error is None and self.unreadable is None:
            liveness, reason = Liveness.LIVE, ""
        else:
            liveness, reason = Liveness.STALE, reason or LAST_STORED
        if (liveness, reason) == (self.liveness, self.reason):
            return False
        if liveness is not self.liveness:
            self.since = now
        self.liveness, self.reason = liveness, reason
        return True

    def newest(self) -> TerminalStatus | None:
        """The last observation; its revision is 0 while it is not stored."""
        if not self.pending:
            return self.status
        status, at = self.pending[-1]
        return TerminalStatus(address=self.address, status=status, observed_at=at, source=Source.WATCH)

    def newest_readable(self) -> TerminalStatus | None:
        """As `newest`; None if a document that came later could not be read. Times are not compared, because the wall
        clock may have been set back."""
        if self.unreadable is not None and not (self.readable_pending and self.pending):
            return None
        return self.newest()

    def view(self, status: TerminalStatus | None) -> WatchedTerminal:
        """The terminal for a reader; `status` is the status that this reader may see."""
        return WatchedTerminal(
            address=self.address, status=status, liveness=self.liveness, reason=self.reason, since=self.since
        )


def confirmed(status: TerminalStatus, at: datetime) -> TerminalStatus:
    """The same status, observed again."""
    return TerminalStatus(
        address=status.address, status=status.status, observed_at=at, source=Source.WATCH, revision=status.revision
    )
