"""A live stream's mailbox: what waits for its reader, and what was told.

It holds the latest of each terminal and not a queue, so a slow reader skips what is out of date, sees the last state,
and costs memory in proportion to its terminals.
Invariants: each Change is of a greater revision than what was told of that terminal before.

Deliberately absent: the events themselves (`events.py`), and where they come from (`engine.py`).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import Any, TypeVar

from app.domain.addresses import TerminalAddress
from app.domain.policy import visible_status, with_status
from app.domain.statuses import Liveness, Source, Status, TerminalStatus, WatchedTerminal
from app.live.events import (
    Bookmark,
    Change,
    LivenessChange,
    Removed,
    Snapshot,
    SnapshotComplete,
    StreamEnd,
    WatchEvent,
    ending,
)
from app.live.resume_tokens import MAX_NAMED, NOTHING, Known, Told, known_by, mark_of, token_of
from app.live.terminal import Terminal

_Made = TypeVar("_Made")
_LEFT = TerminalStatus(
    address=TerminalAddress(""),
    status=Status.UNREACHABLE,
    observed_at=datetime.min.replace(tzinfo=UTC),
    source=Source.WATCH,
    revision=1 << 63,
)
"""Stands for what was told of a terminal that left: nothing of it is newer."""


class Stream:
    """One stream's mailbox, and what was told of it. Put into from the event loop, read by one reader."""

    __slots__ = (
        "_bookmark_due",
        "_busy",
        "_changes",
        "_criteria",
        "_doubtful",
        "_ended",
        "_interval_s",
        "_joined",
        "_livenesses",
        "_removed",
        "_shown",
        "_token",
        "_told_at_s",
        "_waiter",
        "addresses",
        "client_id",
        "groups",
        "most",
        "ticks",
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
        self.told: dict[Terminal, TerminalStatus | None] = {}
        """Its terminals, with the newest status, as stored, that was told of each; None before any."""
        self.ticks = 0
        """Ticks since it was given a bookmark."""
        self._criteria = criteria
        self._interval_s = interval_s
        self._busy = busy
        self._shown: dict[Terminal, Status] = {}  # what was told, where BUSY is not
        self._told_at_s: dict[Terminal, float] = {}  # where there is an interval
        self._doubtful: dict[Terminal, None] = {}  # told last that they are not LIVE
        self._token = ""  # made last; "" where something was told since
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
        if self._criteria and visible_status(self._busy, change.status.status) not in self._criteria:
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
        self.told[terminal] = None
        self._token = ""
        self._joined[terminal] = None
        self.wake()

    def leave(self, terminal: Terminal) -> None:
        """A terminal has left its groups."""
        self.told.pop(terminal, None)
        self._token = ""
        for box in (self._joined, self._changes, self._livenesses, self._shown, self._told_at_s, self._doubtful):
            box.pop(terminal, None)
        self._removed[terminal] = None
        self.wake()

    def bookmark(self) -> None:
        """It is time for a resume token."""
        self._bookmark_due = True
        self.wake()

    def end(self, reason: StreamEnd) -> None:
        """Nothing more is told."""
        self._ended = self._ended or reason
        self.wake()

    async def read(self, resume_token: str, clock_s: Callable[[], float]) -> AsyncGenerator[WatchEvent, None]:
        """Its events, beginning with the snapshot of what the reader of `resume_token` does not know. Once; by one
        reader."""
        known = await self._known_by(resume_token) if resume_token else {}
        for terminal in list(self.told):
            if terminal not in self.told:  # it left meanwhile
                continue
            if known and terminal.liveness is Liveness.LIVE and known.get(terminal) is terminal.stored:
                self._has_told(terminal, terminal.stored)
            else:
                yield self._snapshot(terminal)
        yield SnapshotComplete(resume_token=await self._token_now(), reset=known is None)
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
                    before = self.told.get(terminal, _LEFT)
                    if before is not None and change.status.revision <= before.revision:
                        continue
                    if self._interval_s:
                        due_s = self._told_at_s.get(terminal, -math.inf) + self._interval_s
                        if now_s < due_s:
                            self._changes[terminal] = change
                            wait_s = min(wait_s, due_s - now_s)
                            continue
                        self._told_at_s[terminal] = now_s
                    if (shown := self._change(terminal, change)) is not None:
                        yield shown
                    if self._bookmark_due:  # a slow reader may take long for the rest
                        yield await self._bookmark()
            if self._livenesses:
                for terminal in self._taken("_livenesses"):
                    self._says_liveness(terminal)
                    yield LivenessChange(terminal=self._view(terminal), error=terminal.error or terminal.unreadable)
            while self._removed:
                terminal = next(iter(self._removed))
                del self._removed[terminal]
                yield Removed(address=terminal.address)
            if self._ended is not None:
                gone = self._ended is StreamEnd.CREDENTIALS_EXPIRED
                yield ending(self._ended, "" if gone else await self._token_now())
                return
            if self._bookmark_due:
                yield await self._bookmark()
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

    async def _known_by(self, resume_token: str) -> dict[Terminal, TerminalStatus | None] | None:
        """What the reader with this token knows of the terminals, where that is how they are; None where the token
        cannot be used."""
        stored = {terminal: terminal.stored for terminal in self.told}
        known = await _apart(len(stored), self._compared, resume_token, stored)
        if not known.usable:
            return None
        return {terminal: status for terminal, status in stored.items() if terminal.address in known.addresses}

    def _compared(self, resume_token: str, stored: Mapping[Terminal, TerminalStatus | None]) -> Known:
        return known_by(resume_token, {one.address: self._as_told(one, of, live=True) for one, of in stored.items()})

    async def _token_now(self) -> str:
        """What resumes it after what was told until now."""
        if self._token:
            return self._token
        token = await _apart(len(self.told), self._made, tuple(self.told.items()), frozenset(self._doubtful))
        if len(self.told) <= MAX_NAMED:  # else more may have been told, or have left, while it was made
            self._token = token
        return token

    def _made(self, told: Iterable[tuple[Terminal, TerminalStatus | None]], doubtful: Set[Terminal]) -> str:
        return token_of({one.address: self._as_told(one, status, live=one not in doubtful) for one, status in told})

    async def _bookmark(self) -> Bookmark:
        self._bookmark_due = False
        return Bookmark(resume_token=await self._token_now())

    def _as_told(self, terminal: Terminal, status: TerminalStatus | None, *, live: bool) -> Told:
        if status is None:
            return NOTHING
        shown = visible_status(self._busy, status.status)
        mark = terminal.mark_of(status) if shown is status.status else mark_of(with_status(status, shown))
        return Told(status.revision, mark, live)

    def _says_liveness(self, terminal: Terminal) -> None:
        """Its liveness of now is about to be told."""
        self._token = ""
        if terminal.liveness is Liveness.LIVE:
            self._doubtful.pop(terminal, None)
        else:
            self._doubtful[terminal] = None

    def _snapshot(self, terminal: Terminal) -> Snapshot:
        self._livenesses.pop(terminal, None)
        self._says_liveness(terminal)
        self._has_told(terminal, terminal.stored)
        return Snapshot(terminal=self._view(terminal))

    def _view(self, terminal: Terminal) -> WatchedTerminal:
        status = terminal.status
        return terminal.view(status and with_status(status, visible_status(self._busy, status.status)))

    def _change(self, terminal: Terminal, change: Change) -> Change | None:
        status = change.status
        if self._busy:
            self.told[terminal] = status
            self._token = ""
            return change
        before = self._shown.get(terminal)
        self._has_told(terminal, status)
        shown = visible_status(False, status.status)
        return None if shown is before else Change(status=with_status(status, shown))

    def _has_told(self, terminal: Terminal, status: TerminalStatus | None) -> None:
        if status is None:
            return
        self.told[terminal] = status
        self._token = ""
        if not self._busy:
            self._shown[terminal] = visible_status(False, status.status)


async def _apart(terminals: int, function: Callable[..., _Made], *arguments: Any) -> _Made:
    """Calls the function; in a thread where it goes through so many terminals that others would wait for it."""
    if terminals <= MAX_NAMED:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
