"""A live stream's mailbox: what waits for its reader, and what was told.

It holds the latest of each terminal and not a queue, so a slow reader skips what is out of date, sees the last state,
and costs memory in proportion to its terminals.
Invariants: each Change is of a greater revision than what was told of that terminal before.

Deliberately absent: the events themselves (`streams.py`), and where they come from (`watching.py`).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable

from app.core.policy import shown_as, told_status
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
from app.core.terminals import Terminal
from app.domain import Liveness, Status, TerminalAddress, TerminalStatus, WatchedTerminal


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
