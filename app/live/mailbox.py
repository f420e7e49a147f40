"""A stream's mailbox: the events that wait for its reader, and the statuses that were sent.

The mailbox keeps the newest change of each terminal, not a queue. So a slow reader skips outdated changes, sees the
last one, and costs memory in proportion to its terminals. It keeps at most one answer to a change of its addresses:
the next change waits until the reader has taken that answer.
Invariants: each Change has a greater revision than every status of that terminal that was sent before.

Deliberately absent: where events come from (`writer.py`, `registry.py`).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import Any, TypeVar

from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.domain.policy import visible_status, with_status
from app.domain.statuses import Liveness, Source, Status, TerminalStatus, WatchedTerminal
from app.live.events import (
    Bookmark,
    Change,
    ChangeApplied,
    LivenessChange,
    OpenStreamEvent,
    Removed,
    Snapshot,
    SnapshotComplete,
    StreamEnd,
    end_event,
)
from app.live.resume_tokens import MAX_NAMED, NOTHING_SEEN, Known, Seen, known_by, mark_of, token_of
from app.live.terminal import Terminal

_Result = TypeVar("_Result")
_LEFT = TerminalStatus(
    address=TerminalAddress(""),
    status=Status.UNREACHABLE,
    observed_at=datetime.min.replace(tzinfo=UTC),
    source=Source.WATCH,
    revision=1 << 63,
)
"""Recorded as the sent status of a terminal that has left: no Change has a greater revision, so none is sent."""


class Stream:
    """One stream. It is posted to from the event loop, and read by one reader."""

    __slots__ = (
        "_answer",
        "_answer_taken",
        "_bookmark_due",
        "_busy",
        "_changes",
        "_criteria",
        "_ended",
        "_interval_s",
        "_joined",
        "_livenesses",
        "_not_live",
        "_removed",
        "_sent_at_s",
        "_token",
        "_visible",
        "_waiter",
        "addresses",
        "client_id",
        "groups",
        "sent",
        "ticks",
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
    ) -> None:
        self.client_id = client_id
        self.addresses = addresses if groups else ()
        """The addresses of the request; kept only if there are groups among them, whose members may change."""
        self.groups = groups
        self.sent: dict[Terminal, TerminalStatus | None] = {}
        """Its terminals, each with the newest stored status that was sent; None if none was sent yet."""
        self.ticks = 0
        """Ticks of `open_streams.py` since its last bookmark."""
        self._criteria = criteria
        self._interval_s = interval_s
        self._busy = busy
        self._visible: dict[Terminal, Status] = {}  # the last status sent, if BUSY is not visible
        self._sent_at_s: dict[Terminal, float] = {}  # only with an interval
        self._not_live: dict[Terminal, None] = {}  # terminals whose last reported liveness is not LIVE
        self._token = ""  # the last one made; "" if something was sent since
        self._changes: dict[Terminal, Change] = {}
        self._livenesses: dict[Terminal, None] = {}
        self._joined: dict[Terminal, None] = {}
        self._removed: dict[Terminal, None] = {}
        self._answer: tuple[str, TerminalStatusError | None] | None = None
        self._answer_taken: asyncio.Future[None] | None = None
        self._bookmark_due = False
        self._ended: StreamEnd | None = None
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wakes the reader."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def has_only_failed(self) -> bool:
        """Whether none of its terminals can be watched."""
        return all(terminal.error is not None for terminal in self.sent)

    def post(self, terminal: Terminal, change: Change) -> None:
        """The terminal's status has changed."""
        if self._criteria and visible_status(self._busy, change.status.status) not in self._criteria:
            self._changes.pop(terminal, None)  # an older change is obsolete, and the newest is excluded
            return
        self._changes[terminal] = change
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def post_liveness(self, terminal: Terminal) -> None:
        """The terminal's liveness has changed, or the reason for it."""
        self._livenesses[terminal] = None
        self.wake()

    def add(self, terminal: Terminal) -> None:
        """The terminal was added, or has joined a group of the stream."""
        self._removed.pop(terminal, None)
        self.sent[terminal] = None
        self._token = ""
        self._joined[terminal] = None
        self.wake()

    def remove(self, terminal: Terminal) -> None:
        """The terminal was removed, or has left the groups of the stream."""
        self.sent.pop(terminal, None)
        self._token = ""
        for box in (self._joined, self._changes, self._livenesses, self._visible, self._sent_at_s, self._not_live):
            box.pop(terminal, None)
        self._removed[terminal] = None
        self.wake()

    def answer(self, change_id: str, error: TerminalStatusError | None = None) -> None:
        """Sends ChangeApplied, after the events of the change. Await `until_answered` before the change."""
        self._answer = change_id, error
        self.wake()

    async def until_answered(self) -> None:
        """Waits until the reader has taken the answer to the last change."""
        while self._answer is not None:
            if self._answer_taken is None:
                self._answer_taken = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._answer_taken)

    def drop_answer(self) -> None:
        """Ends `until_answered`: the reader has taken the answer, or has left."""
        self._answer = None
        if (taken := self._answer_taken) is not None:
            self._answer_taken = None
            taken.set_result(None)

    @property
    def ended(self) -> bool:
        """Whether End was sent, or is sent soon."""
        return self._ended is not None

    def bookmark(self) -> None:
        """Sends a Bookmark as one of the next events."""
        self._bookmark_due = True
        self.wake()

    def end(self, reason: StreamEnd) -> None:
        """Sends End, after the changes that are due."""
        self._ended = self._ended or reason
        self.wake()

    async def read(
        self, resume_token: str, clock_s: Callable[[], float], bookmark_s: float
    ) -> AsyncGenerator[OpenStreamEvent, None]:
        """The stream's events, beginning with a snapshot of the terminals that `resume_token` does not cover. There is
        an event in each `bookmark_s`. Call it once."""
        known = await self._known_by(resume_token) if resume_token else {}
        for terminal in list(self.sent):
            if terminal not in self.sent:  # removed meanwhile
                continue
            if known and terminal.liveness is Liveness.LIVE and known.get(terminal) is terminal.stored:
                self._mark_sent(terminal, terminal.stored)
            else:
                yield self._snapshot(terminal)
        token = await self._token_now()
        yield SnapshotComplete(resume_token=token, reset=known is None, bookmark_interval_s=bookmark_s)
        del known, token
        loop = asyncio.get_running_loop()
        while True:
            wait_s = math.inf
            answer = self._answer  # it follows the events of its change, which are in the boxes now
            if self._joined:
                for terminal in self._take("_joined"):
                    if terminal in self.sent:  # not removed while the reader was busy
                        yield self._snapshot(terminal)
            if self._changes:
                changes, self._changes = self._changes, {}
                now_s = clock_s() if self._interval_s else 0.0
                for terminal, change in changes.items():
                    change = self._changes.pop(terminal, change)  # a newer one came while the reader was busy
                    before = self.sent.get(terminal, _LEFT)
                    if before is not None and change.status.revision <= before.revision:
                        continue
                    if self._interval_s:
                        due_s = self._sent_at_s.get(terminal, -math.inf) + self._interval_s
                        if now_s < due_s:
                            self._changes[terminal] = change
                            wait_s = min(wait_s, due_s - now_s)
                            continue
                        self._sent_at_s[terminal] = now_s
                    if (visible := self._visible_change(terminal, change)) is not None:
                        yield visible
                    if self._bookmark_due:  # a slow reader may need long for the others
                        yield await self._bookmark()
            if self._livenesses:
                for terminal in self._take("_livenesses"):
                    self._note_liveness(terminal)
                    yield LivenessChange(terminal=self._view(terminal), error=terminal.error or terminal.unreadable)
            while self._removed:
                terminal = next(iter(self._removed))
                del self._removed[terminal]
                yield Removed(address=terminal.address)
            if answer is not None:
                yield await self._change_applied(*answer)
            if self._ended is not None:
                gone = self._ended is StreamEnd.CREDENTIALS_EXPIRED
                yield end_event(self._ended, "" if gone else await self._token_now())
                return
            if self._bookmark_due:
                yield await self._bookmark()
            posted = self._joined or self._livenesses or self._removed or self._answer
            if posted or (self._changes and wait_s == math.inf):
                continue  # posted while the reader was busy
            self._waiter = loop.create_future()
            timer = loop.call_later(wait_s, self.wake) if wait_s < math.inf else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()

    async def _change_applied(self, change_id: str, error: TerminalStatusError | None) -> ChangeApplied:
        token = "" if error is not None else await self._token_now()
        self.drop_answer()
        return ChangeApplied(change_id=change_id, resume_token=token, error=error)

    def _take(self, box: str) -> Iterable[Terminal]:
        taken: dict[Terminal, None] = getattr(self, box)
        setattr(self, box, {})
        return [terminal for terminal in taken if terminal in self.sent]

    async def _known_by(self, resume_token: str) -> dict[Terminal, TerminalStatus | None] | None:
        """The terminals whose present status the reader with this token knows; None if the token cannot be used."""
        stored = {terminal: terminal.stored for terminal in self.sent}
        known = await _in_thread_if_many(len(stored), self._compare, resume_token, stored)
        if not known.usable:
            return None
        return {terminal: status for terminal, status in stored.items() if terminal.address in known.addresses}

    def _compare(self, resume_token: str, stored: Mapping[Terminal, TerminalStatus | None]) -> Known:
        return known_by(resume_token, {one.address: self._seen(one, of, live=True) for one, of in stored.items()})

    async def _token_now(self) -> str:
        """A token that resumes the stream after what was sent until now."""
        if self._token:
            return self._token
        token = await _in_thread_if_many(
            len(self.sent), self._make_token, tuple(self.sent.items()), frozenset(self._not_live)
        )
        if len(self.sent) <= MAX_NAMED:  # otherwise something may have been sent or removed while it was made
            self._token = token
        return token

    def _make_token(self, sent: Iterable[tuple[Terminal, TerminalStatus | None]], not_live: Set[Terminal]) -> str:
        return token_of({one.address: self._seen(one, status, live=one not in not_live) for one, status in sent})

    async def _bookmark(self) -> Bookmark:
        self._bookmark_due = False
        return Bookmark(resume_token=await self._token_now())

    def _seen(self, terminal: Terminal, status: TerminalStatus | None, *, live: bool) -> Seen:
        if status is None:
            return NOTHING_SEEN
        visible = visible_status(self._busy, status.status)
        mark = terminal.mark_of(status) if visible is status.status else mark_of(with_status(status, visible))
        return Seen(status.revision, mark, live)

    def _note_liveness(self, terminal: Terminal) -> None:
        """Notes the terminal's present liveness, which is sent next."""
        self._token = ""
        if terminal.liveness is Liveness.LIVE:
            self._not_live.pop(terminal, None)
        else:
            self._not_live[terminal] = None

    def _snapshot(self, terminal: Terminal) -> Snapshot:
        self._livenesses.pop(terminal, None)
        self._note_liveness(terminal)
        self._mark_sent(terminal, terminal.stored)
        return Snapshot(terminal=self._view(terminal))

    def _view(self, terminal: Terminal) -> WatchedTerminal:
        status = terminal.status
        return terminal.view(status and with_status(status, visible_status(self._busy, status.status)))

    def _visible_change(self, terminal: Terminal, change: Change) -> Change | None:
        status = change.status
        if self._busy:
            self.sent[terminal] = status
            self._token = ""
            return change
        before = self._visible.get(terminal)
        self._mark_sent(terminal, status)
        visible = visible_status(False, status.status)
        return None if visible is before else Change(status=with_status(status, visible))

    def _mark_sent(self, terminal: Terminal, status: TerminalStatus | None) -> None:
        if status is None:
            return
        self.sent[terminal] = status
        self._token = ""
        if not self._busy:
            self._visible[terminal] = visible_status(False, status.status)


async def _in_thread_if_many(terminals: int, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Calls the function; in a thread if there are so many terminals that others would wait for it."""
    if terminals <= MAX_NAMED:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
