"""Which terminals are watched, what was observed of them and is still to be written, and who wants them.

However many subscriptions and streams want a terminal, it is watched once, and for `linger_s` after the last. It counts
once for each client that wants it.
Invariants: an observation leaves `queue` only when it is written. A document that cannot be read changes no status, but
makes it STALE until one that can be read is written: it may have said anything. Losing contact makes a status STALE,
never UNREACHABLE.

Deliberately absent: the store, and who is told what (`writer.py`).
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    DocumentUnreadable,
    GatewayOverloaded,
    TerminalStatusError,
    TerminalUnknown,
    TooManyWatchedTerminals,
    WatcherRefused,
)
from app.domain.presence import read_presence, status_of
from app.domain.statuses import Liveness, TerminalStatus, WatchedTerminal
from app.live.events import StreamEnd
from app.live.subscription import LiveSubscription
from app.live.terminal import Terminal
from app.ports import ReceivedNotify, Watcher

if TYPE_CHECKING:
    from app.live.mailbox import Stream

_LOG_S = 1.0
_MAX_WANTED_BY = 20
MAX_LEFT = 10_000
"""Terminals of which the last observation is remembered when they are not watched any more; the oldest go first."""

_log = structlog.get_logger(__name__)


class TerminalRegistry:
    """The watched terminals; the `WatchObserver`."""

    def __init__(
        self,
        watcher: Watcher,
        *,
        busy_activities: Set[str],
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        linger_s: float,
        most: int,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when there is something to write or to let go; `most` terminals are watched."""
        self.by_address: dict[TerminalAddress, Terminal] = {}
        self.queue: list[Terminal] = []
        """Those with something to write, in the order in which it came."""
        self.failed: list[tuple[TerminalAddress, tuple[LiveSubscription, ...], TerminalStatusError]] = []
        """Those that cannot be watched, with whom that ends."""
        self.unreadable_counts: Counter[str] = Counter()
        """Documents that could not be read, by reason."""
        self.contradictions = 0
        """Live watches that a newer fetch contradicted."""
        self._watcher = watcher
        self._busy_activities = frozenset(busy_activities)
        self._clock = clock
        self._clock_s = clock_s
        self._linger_s = linger_s
        self._most = most
        self._wake = wake
        self._held: dict[str, dict[Terminal, int]] = {}
        """By client, the terminals that its subscriptions and streams want, and how many of these want each."""
        self._idle: deque[tuple[float, Terminal]] = deque()
        self._left: dict[TerminalAddress, tuple[TerminalStatus | None, datetime | None]] = {}
        """As `last` and `unreadable_at` tell them of terminals that are not watched any more, in the order of that."""
        self._logged_s = -math.inf

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        """A NOTIFY came; its document may be unreadable."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return
        try:
            presence = read_presence(notify.body, notify.content_type, notify.content_encoding)
        except DocumentUnreadable as error:
            self.on_notify_unreadable(address, error)
            return
        if terminal.unreadable is not None:
            terminal.readable = terminal.attentive = True
        if terminal.note(status_of(presence, self._busy_activities), notify.observed_at):
            self.enqueue(terminal)
            self._wake()

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        """A document that cannot be read is counted and logged. The last status stays and is STALE; a subscription that
        waits to be told at once how the terminal stands hears why it is not."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return
        self._count_unreadable(address, error)
        now = self._clock()
        if terminal.cannot_read(error, now):
            for stream in terminal.streams:
                stream.post_liveness(terminal)
        waiting = tuple([one for one in terminal.standings if one.wants_error(address, error)])
        if waiting:
            self.failed.append((address, waiting, error))
            self._wake()

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        """What the last observation is worth has changed."""
        terminal = self.by_address.get(address)
        refused = isinstance(error, TerminalUnknown | WatcherRefused) and error.details.get("reason") != "pending"
        if terminal is not None and liveness is Liveness.UNKNOWN and refused:
            # It would be asked again once an hour, and who wants it would wait for ever without a word.
            self._watcher.unwatch(address)
            self.on_watch_ended(address, reason, error)
            return
        if terminal is not None and terminal.tell_liveness(liveness, reason, self._clock()):
            for stream in terminal.streams:
                stream.post_liveness(terminal)

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        """The terminal cannot be watched, or (without an error) what it said last holds for good."""
        terminal = self.by_address.get(address)
        if terminal is None or error is None:
            return
        terminal.error = error
        if terminal.standings:
            self.failed.append((address, tuple(terminal.standings), error))
            self._wake()
        if terminal.tell_liveness(Liveness.STALE, reason, self._clock()):
            for stream in terminal.streams:
                stream.post_liveness(terminal)
        for stream in terminal.streams:
            if all(one.error is not None for one in stream.told):
                stream.end(StreamEnd.NOTHING_TO_WATCH)

    def fetched(self, status: TerminalStatus) -> None:
        """A fetch was answered. A live watch that was told otherwise before that is refreshed at once, by its own pace:
        a presence server may have sent it a wrong NOTIFY, and corrects that at the refresh."""
        terminal = self.by_address.get(status.address)
        if terminal is None or terminal.liveness is not Liveness.LIVE:
            return
        known = terminal.newest()
        if known is not None and known.status is not status.status and known.observed_at < status.observed_at:
            self.contradictions += 1
            self._watcher.watch(status.address)  # it may have ended, where what it said was to hold for good
            self._watcher.refresh(status.address)

    def enqueue(self, terminal: Terminal) -> None:
        """The terminal has something pending."""
        if not terminal.queued:
            terminal.queued = True
            self.queue.append(terminal)

    def live(self, address: TerminalAddress) -> TerminalStatus | None:
        """What a live watch says of the terminal now; a dictionary look-up."""
        terminal = self.by_address.get(address)
        if terminal is None or terminal.liveness is not Liveness.LIVE:
            return None
        return terminal.newest() if terminal.pending else terminal.status

    def last(self, address: TerminalAddress) -> TerminalStatus | None:
        """What was observed last of a terminal that is watched, or was lately; None where a document came thereafter
        that could not be read."""
        terminal = self.by_address.get(address)
        if terminal is not None and terminal.unreadable is not None:
            return None
        if (left := self._left.get(address)) is not None and (terminal is None or not terminal.heard):
            return left[0]
        return None if terminal is None else terminal.newest()

    def unreadable_at(self, address: TerminalAddress) -> datetime | None:
        """When the terminal's last document came, if that could not be read."""
        terminal = self.by_address.get(address)
        if (left := self._left.get(address)) is not None and (terminal is None or not terminal.heard):
            return left[1]
        return None if terminal is None else terminal.unreadable_at

    def doubt(self, address: TerminalAddress) -> WatchedTerminal | None:
        """How a terminal stands whose last document could not be read; None for others."""
        terminal = self.by_address.get(address)
        return None if terminal is None or terminal.unreadable is None else terminal.view(terminal.status)

    def wanted_by(self, address: TerminalAddress) -> list[str]:
        """Who wants the terminal watched: ids of subscriptions, and `stream:` with a client's id; at most 20."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return []
        names = [standing.id for standing in islice(terminal.standings, _MAX_WANTED_BY)]
        return names + [f"stream:{one.client_id}" for one in islice(terminal.streams, _MAX_WANTED_BY - len(names))]

    def _count_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        reason = error.details.get("reason", "unknown")
        self.unreadable_counts[reason] += 1
        now_s = self._clock_s()
        if now_s - self._logged_s >= _LOG_S:
            self._logged_s = now_s
            _log.warning("document_unreadable", address=address, message=str(error), reason=reason)

    def want(self, addresses: Sequence[TerminalAddress], client_id: str, most: int | None) -> list[Terminal]:
        """Has all of them watched for the client, and at most `most` terminals in all (None: however many, beyond the
        gateway's own limit too). What is not linked to who wants it must be told to `unwanted`.

        Raises GatewayOverloaded, TooManyWatchedTerminals, having changed nothing.
        """
        known, held = self.by_address, self._held.get(client_id, {})
        if most is not None:
            self._require_room(addresses, held, most)
        now = self._clock()
        terminals = []
        for address in addresses:
            terminal = known.get(address)
            if terminal is None:
                terminal = known[address] = Terminal(address, now)
                self._watcher.watch(address, client_id)
            elif terminal.error is not None:
                terminal.watch_again(now)
                self._watcher.watch(address, client_id)
            elif terminal not in held:
                self._watcher.watch(address, client_id)
            terminal.idle_from_s = None
            terminals.append(terminal)
        return terminals

    def _require_room(self, addresses: Sequence[TerminalAddress], held: Mapping[Terminal, int], most: int) -> None:
        known = self.by_address
        new = sum(address not in known for address in addresses)
        if new and len(known) + new > self._most:
            raise GatewayOverloaded(f"{self._most} terminals are watched, as many as allowed.", retry_after_s=60)
        more = sum(known.get(address) not in held for address in addresses)
        if more and len(held) + more > most:
            raise TooManyWatchedTerminals(
                f"Limit reached: {most} watched terminals. End a subscription or a stream, or ask the operator to "
                "raise `max_watched_terminals`."
            )

    def unwanted(self, terminal: Terminal) -> None:
        """Nobody wants it, for now."""
        terminal.idle_from_s = self._clock_s()
        if not terminal.may_go:
            terminal.may_go = True
            self._idle.append((terminal.idle_from_s, terminal))
            self._wake()

    def link(self, standing: LiveSubscription, terminal: Terminal) -> None:
        """The subscription wants this terminal, of which it is told too that it has failed since it was `want`ed."""
        if standing not in terminal.standings:
            terminal.standings[standing] = None
            self._hold(standing.client_id, terminal)
        if terminal.error is not None:
            self.failed.append((terminal.address, (standing,), terminal.error))
        elif terminal.unreadable is not None and standing.check_immediate:
            self.failed.append((terminal.address, (standing,), terminal.unreadable))

    def unlink(self, standing: LiveSubscription, addresses: Iterable[TerminalAddress]) -> None:
        """The subscription wants these terminals no more."""
        for address in addresses:
            if (terminal := self.by_address.get(address)) is not None:
                if standing in terminal.standings:
                    del terminal.standings[standing]
                    self._release(standing.client_id, terminal)
                if not terminal.wanted:
                    self.unwanted(terminal)

    def join(self, stream: "Stream", terminal: Terminal) -> None:
        """The stream wants this terminal, which it did not."""
        terminal.streams[stream] = None
        self._hold(stream.client_id, terminal)

    def leave(self, stream: "Stream", terminal: Terminal) -> None:
        """The stream wants it no more."""
        del terminal.streams[stream]
        self._release(stream.client_id, terminal)
        if not terminal.wanted:
            self.unwanted(terminal)

    def _hold(self, client_id: str, terminal: Terminal) -> None:
        held = self._held.setdefault(client_id, {})
        held[terminal] = held.get(terminal, 0) + 1

    def _release(self, client_id: str, terminal: Terminal) -> None:
        held = self._held[client_id]
        held[terminal] -= 1
        if not held[terminal]:
            del held[terminal]
            if not held:
                del self._held[client_id]

    @property
    def next_due_s(self) -> float:
        """When `let_go` may have something to do."""
        return self._idle[0][0] + self._linger_s if self._idle else math.inf

    def let_go(self, now_s: float) -> None:
        """Ends the watches that nobody wanted for long."""
        idle = self._idle
        for _ in range(len(idle)):
            if idle[0][0] + self._linger_s > now_s:
                return
            since_s, terminal = idle.popleft()
            if terminal.idle_from_s is None:
                terminal.may_go = False
                continue
            if terminal.queued or terminal.idle_from_s > since_s:  # still to be written, or wanted in between
                idle.append((now_s if terminal.queued else terminal.idle_from_s, terminal))
                continue
            del self.by_address[terminal.address]
            self._watcher.unwatch(terminal.address)
            newest = None if terminal.unreadable is not None else terminal.newest()
            self._left.pop(terminal.address, None)
            self._left[terminal.address] = newest, terminal.unreadable_at
            if len(self._left) > MAX_LEFT:
                del self._left[next(iter(self._left))]
