"""Watched terminals as they are held in memory, and the mailboxes of the streams that watch them.

A mailbox holds the latest of each terminal and not a queue, so a slow reader skips what is out of date, sees the last
state, and costs memory in proportion to its terminals.
Invariants: of a terminal, `status` is what the store has (but `observed_at` is when it was last confirmed); what was
observed and is not stored yet waits in `pending`, in order, MAX_PENDING at most, above which the newest takes the place
of the last. LIVE is said only of one that was observed since the gateway began to watch it. On a stream, each Change is
of a greater revision than what was told of that terminal before.

Deliberately absent: the store, and deciding who is told.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime

from app.core.policy import told_status
from app.core.standing import Standing, shown_as
from app.core.streams import (
    Bookmark,
    Change,
    LivenessChange,
    Removed,
    Snapshot,
    SnapshotComplete,
    StreamEnd,
    WatchEvent,
    ending,
    resume_token,
)
from app.domain import (
    DocumentUnreadable,
    Liveness,
    Source,
    Status,
    TerminalAddress,
    TerminalStatus,
    TerminalStatusError,
    WatchedTerminal,
)

MAX_PENDING = 8
"""Observations of one terminal that wait to be stored."""

NEVER_OBSERVED = "not observed yet"
LAST_STORED = "not observed since the gateway began to watch it"


class Terminal:
    """A watched terminal."""

    __slots__ = (
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
        "streams",
        "unreadable",
        "unreadable_at",
    )

    streams: "dict[Stream, None]"

    def __init__(self, address: TerminalAddress, now: datetime) -> None:
        self.address = address
        self.status: TerminalStatus | None = None
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
        self.standings: dict[Standing, None] = {}
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


class Stream:
    """One stream's mailbox, and what was told of it. Put into from the event loop, read by one reader."""

    __slots__ = (
        "_bookmark_due",
        "_busy",
        "_changes",
        "_criteria",
        "_ended",
        "_interval_s",
        "_joined",
        "_livenesses",
        "_removed",
        "_shown",
        "_told_at_s",
        "_waiter",
        "addresses",
        "client_id",
        "groups",
        "most",
        "quiet_ticks",
        "told",
    )

    def __init__(
        self,
        client_id: str,
        *,
        addresses: tuple[TerminalAddress, ...] = (),
        groups: tuple[TerminalAddress, ...] = (),
        criteria: frozenset[Status] = frozenset(),
        interval_s: float = 0,
        busy: bool = True,
        most: int = 1000,
    ) -> None:
        self.client_id = client_id
        self.addresses = addresses if groups else ()
        """What it was asked for, where that may come to mean other terminals; at most `most`."""
        self.groups = groups
        self.most = most
        self.told: dict[Terminal, int] = {}
        """Its terminals, with the newest revision that was told of each; 0 before any."""
        self.quiet_ticks = 0
        """Ticks since something was told."""
        self._criteria = criteria
        self._interval_s = interval_s
        self._busy = busy
        self._shown: dict[Terminal, Status] = {}  # what was told, where BUSY is not
        self._told_at_s: dict[Terminal, float] = {}  # where there is an interval
        self._changes: dict[Terminal, Change] = {}
        self._livenesses: dict[Terminal, None] = {}
        self._joined: dict[Terminal, None] = {}
        self._removed: dict[Terminal, None] = {}
        self._bookmark_due = False
        self._ended: StreamEnd | None = None
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Lets the reader look."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def post(self, terminal: Terminal, change: Change) -> None:
        """A terminal's status has changed."""
        if self._criteria and told_status(self._busy, change.status.status) not in self._criteria:
            self._changes.pop(terminal, None)  # the newest state wins, and it is none to be told
            return
        self._changes[terminal] = change
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def post_liveness(self, terminal: Terminal) -> None:
        """A terminal's liveness has changed."""
        self._livenesses[terminal] = None
        self.wake()

    def join(self, terminal: Terminal) -> None:
        """A terminal has come into a group."""
        self._removed.pop(terminal, None)
        self.told[terminal] = 0
        self._joined[terminal] = None
        self.wake()

    def leave(self, terminal: Terminal) -> None:
        """A terminal has left its groups."""
        self.told.pop(terminal, None)
        for box in (self._joined, self._changes, self._livenesses, self._shown, self._told_at_s):
            box.pop(terminal, None)
        self._removed[terminal] = None
        self.wake()

    def bookmark(self) -> None:
        """Nothing was told for a while."""
        self._bookmark_due = True
        self.wake()

    def end(self, reason: StreamEnd) -> None:
        """Nothing more is told."""
        self._ended = self._ended or reason
        self.wake()

    @property
    def token(self) -> str:
        """What resumes it after what was told until now."""
        return resume_token({terminal.address: revision for terminal, revision in self.told.items()})

    async def read(
        self, resumed: dict[TerminalAddress, int], clock_s: Callable[[], float]
    ) -> AsyncGenerator[WatchEvent, None]:
        """Its events, beginning with the snapshot of what differs from `resumed`. Once; by one reader."""
        for terminal in list(self.told):
            if terminal not in self.told:  # it left meanwhile
                continue
            status = terminal.status
            revision = status.revision if status else 0
            if terminal.liveness is Liveness.LIVE and resumed.get(terminal.address) == revision:
                self._has_told(terminal, status)
            else:
                yield self._snapshot(terminal)
        yield SnapshotComplete(resume_token=self.token)
        loop = asyncio.get_running_loop()
        while True:
            wait_s = math.inf
            if self._joined:
                for terminal in self._taken("_joined"):
                    yield self._snapshot(terminal)
            if self._changes:
                changes, self._changes = self._changes, {}
                now_s = clock_s() if self._interval_s else 0.0
                for terminal, change in changes.items():
                    change = self._changes.pop(terminal, change)  # a newer one came while the reader was away
                    if change.status.revision <= self.told.get(terminal, math.inf):
                        continue
                    if self._interval_s:
                        due_s = self._told_at_s.get(terminal, -math.inf) + self._interval_s
                        if now_s < due_s:
                            self._changes[terminal] = change
                            wait_s = min(wait_s, due_s - now_s)
                            continue
                        self._told_at_s[terminal] = now_s
                    if (shown := self._change(terminal, change)) is not None:
                        self.quiet_ticks = 0
                        yield shown
            if self._livenesses:
                for terminal in self._taken("_livenesses"):
                    self.quiet_ticks = 0
                    yield LivenessChange(terminal=self._view(terminal), error=terminal.error or terminal.unreadable)
            while self._removed:
                terminal = next(iter(self._removed))
                del self._removed[terminal]
                yield Removed(address=terminal.address)
            if self._ended is not None:
                gone = self._ended is StreamEnd.CREDENTIALS_EXPIRED
                yield ending(self._ended, "" if gone else self.token)
                return
            if self._bookmark_due:
                self._bookmark_due = False
                yield Bookmark(resume_token=self.token)
            if self._joined or self._livenesses or self._removed or (self._changes and wait_s == math.inf):
                continue  # it came while the reader was away
            self._waiter = loop.create_future()
            timer = loop.call_later(wait_s, self.wake) if wait_s < math.inf else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()

    def _taken(self, box: str) -> Iterable[Terminal]:
        taken: dict[Terminal, None] = getattr(self, box)
        setattr(self, box, {})
        return [terminal for terminal in taken if terminal in self.told]

    def _snapshot(self, terminal: Terminal) -> Snapshot:
        self._livenesses.pop(terminal, None)
        self._has_told(terminal, terminal.status)
        return Snapshot(terminal=self._view(terminal))

    def _view(self, terminal: Terminal) -> WatchedTerminal:
        status = terminal.status
        return terminal.view(status and shown_as(status, told_status(self._busy, status.status)))

    def _change(self, terminal: Terminal, change: Change) -> Change | None:
        status = change.status
        if self._busy:
            self.told[terminal] = status.revision
            return change
        before = self._shown.get(terminal)
        self._has_told(terminal, status)
        shown = told_status(False, status.status)
        return None if shown is before else Change(status=shown_as(status, shown))

    def _has_told(self, terminal: Terminal, status: TerminalStatus | None) -> None:
        if status is None:
            return
        self.told[terminal] = status.revision
        if not self._busy:
            self._shown[terminal] = told_status(False, status.status)
