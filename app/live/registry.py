"""The watched terminals: their observations that wait to be written, and the subscriptions and streams that want them.

A terminal has one watch for all subscriptions and streams that want it. The watch ends `linger_s` after the last of
them left. The terminal counts once against each client's limit.
Invariants: an observation leaves `queue` only when it is written. An unreadable document changes no status, but makes
the terminal STALE, because its content is unknown, until a readable document is written. A watch that loses contact
makes its terminal STALE, never UNREACHABLE.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NamedTuple

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
from app.live.terminal import StreamOfTerminals, Terminal
from app.ports.sip import ReceivedNotify, Watcher

_LOG_S = 1.0
_MAX_WANTED_BY = 20
_MAX_LOOKED_AT = 1000
"""Streams of one terminal whose clients are looked at; a client may have many."""

_log = structlog.get_logger(__name__)


class Failure(NamedTuple):
    """An error about a terminal, or a group, that is still to be reported to these subscriptions."""

    address: TerminalAddress
    subscriptions: tuple[LiveSubscription, ...]
    error: TerminalStatusError


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedBy:
    """The subscriptions, and the clients with streams, that want a terminal; false if there is none."""

    subscription_ids: Sequence[str] = ()
    stream_client_ids: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.subscription_ids or self.stream_client_ids)


class TerminalRegistry:
    """The watched terminals. Implements `ports.sip.WatchObserver`."""

    def __init__(
        self,
        watcher: Watcher,
        *,
        busy_activities: Set[str],
        busy_when_closed: bool,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        linger_s: float,
        max_terminals: int,
    ) -> None:
        self.on_work: Callable[[], None] = lambda: None
        """Called when there are observations to write or terminals to release; may not block or raise."""
        self.on_unwatched: Callable[[Terminal], None] = lambda terminal: None
        """Called with each terminal whose watch was ended; may not block or raise."""
        self.by_address: dict[TerminalAddress, Terminal] = {}
        self.queue: list[Terminal] = []
        """Terminals with pending observations, in the order in which these came."""
        self.failures: list[Failure] = []
        """Failures that are still to be written."""
        self.unreadable_counts: Counter[str] = Counter()
        """How many documents could not be read, by reason."""
        self.contradictions = 0
        """How many live watches were refreshed because a newer fetch had another result."""
        self._watcher = watcher
        self._busy_activities = frozenset(busy_activities)
        self._busy_when_closed = busy_when_closed
        self._clock = clock
        self._clock_s = clock_s
        self._linger_s = linger_s
        self._max_terminals = max_terminals
        self._wanted_of: dict[str, dict[Terminal, int]] = {}
        """By client id: the client's terminals, with how many of its subscriptions and streams want each."""
        self._idle: deque[tuple[float, Terminal]] = deque()
        self._logged_s = -math.inf

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        """A NOTIFY came. Its document may be unreadable."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return
        try:
            presence = read_presence(notify.body, notify.content_type, notify.content_encoding, at=notify.observed_at)
        except DocumentUnreadable as error:
            self.on_notify_unreadable(address, error)
            return
        if terminal.unreadable is not None:
            terminal.readable_pending = terminal.write_next = True
        status = status_of(presence, self._busy_activities, busy_when_closed=self._busy_when_closed)
        if terminal.observe(status, notify.observed_at):
            self.enqueue(terminal)
            self.on_work()

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        """A document could not be read. The last status stays and becomes STALE. Subscriptions that wait for the first
        status of the terminal are sent the error."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return
        self._count_unreadable(address, error)
        if terminal.set_unreadable(error, self._clock()):
            self.post_liveness(terminal)
        self.report_error(address, [one for one in terminal.subscriptions if one.wants_error(address, error)], error)

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        """The liveness of a watch has changed."""
        terminal = self.by_address.get(address)
        refused = isinstance(error, TerminalUnknown | WatcherRefused) and error.details.get("reason") != "pending"
        if terminal is not None and liveness is Liveness.UNKNOWN and refused:
            # Otherwise the SIP side tries again once an hour, and listeners are not sent the reason.
            self._watcher.unwatch(address)
            self.on_watch_ended(address, reason, error)
        elif terminal is not None and terminal.set_watch_liveness(liveness, reason, self._clock()):
            self.post_liveness(terminal)

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        """The terminal cannot be watched, or (without an error) its last status is final."""
        terminal = self.by_address.get(address)
        if terminal is None or error is None:
            return
        terminal.error = error
        self.report_error(address, terminal.subscriptions, error)
        if terminal.set_watch_liveness(Liveness.STALE, reason, self._clock()):
            self.post_liveness(terminal)
        for stream in terminal.streams:
            if stream.has_only_failed():
                stream.end(StreamEnd.NOTHING_TO_WATCH)

    def report_error(
        self, address: TerminalAddress, subscriptions: Iterable[LiveSubscription], error: TerminalStatusError
    ) -> None:
        """Queues the error about a terminal or a group for these subscriptions, if there are any."""
        if affected := tuple(subscriptions):
            self.failures.append(Failure(address, affected, error))
            self.on_work()

    def post_liveness(self, terminal: Terminal) -> None:
        """Reports the terminal's liveness to its streams."""
        for stream in terminal.streams:
            stream.post_liveness(terminal)

    def on_fetched(self, status: TerminalStatus) -> None:
        """A fetch was answered. If a live watch has an older, different status, the watch is refreshed at once (the SIP
        side limits the rate): its last NOTIFY may have been wrong."""
        terminal = self.by_address.get(status.address)
        if terminal is None or terminal.liveness is not Liveness.LIVE:
            return
        known = terminal.newest()
        if known is not None and known.status is not status.status and known.observed_at < status.observed_at:
            self.contradictions += 1
            self._watcher.watch(status.address)  # it may have ended with a final status
            self._watcher.refresh(status.address)

    def enqueue(self, terminal: Terminal) -> None:
        """Adds the terminal to `queue`, once."""
        if not terminal.queued:
            terminal.queued = True
            self.queue.append(terminal)

    def live(self, address: TerminalAddress) -> TerminalStatus | None:
        """The status of the terminal if it is LIVE: a dictionary look-up."""
        terminal = self.by_address.get(address)
        if terminal is None or terminal.liveness is not Liveness.LIVE:
            return None
        return terminal.newest() if terminal.pending else terminal.status

    def unreadable_view(self, address: TerminalAddress) -> WatchedTerminal | None:
        """The terminal, if it is watched and its last document could not be read; otherwise None."""
        terminal = self.by_address.get(address)
        return None if terminal is None or terminal.unreadable is None else terminal.view(terminal.status)

    def wanted_by(self, address: TerminalAddress) -> WantedBy:
        """Who wants the terminal; at most 20 subscriptions and 20 clients."""
        terminal = self.by_address.get(address)
        if terminal is None:
            return WantedBy()
        clients: dict[str, None] = {}
        for stream in islice(terminal.streams, _MAX_LOOKED_AT):
            clients[stream.client_id] = None
            if len(clients) == _MAX_WANTED_BY:
                break
        subscriptions = islice(terminal.subscriptions, _MAX_WANTED_BY)
        return WantedBy(subscription_ids=[one.id for one in subscriptions], stream_client_ids=list(clients))

    def _count_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        reason = error.details.get("reason", "unknown")
        self.unreadable_counts[reason] += 1
        now_s = self._clock_s()
        if now_s - self._logged_s >= _LOG_S:
            self._logged_s = now_s
            _log.warning("document_unreadable", address=address, message=str(error), reason=reason)

    def want(
        self,
        addresses: Sequence[TerminalAddress],
        client_id: str,
        max_of_client: int | None,
        *,
        leaving: Iterable[Terminal] = (),
    ) -> list[Terminal]:
        """Watches the terminals for the client, which may have `max_of_client` watched terminals (None: any number, and
        the gateway's own limit is ignored too). The caller then links each to a listener, or calls `release_unwanted`.
        `leaving` are terminals that the caller unlinks from one of the client's listeners; they make room.

        Raises GatewayOverloaded, TooManyWatchedTerminals, having changed nothing.
        """
        known, wanted = self.by_address, self._wanted_of.get(client_id, {})
        if max_of_client is not None:
            left = sum(wanted.get(terminal) == 1 for terminal in leaving)
            self._require_room(addresses, wanted, left, max_of_client)
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
            elif terminal not in wanted:
                self._watcher.watch(address, client_id)
            terminal.idle_from_s = None
            terminals.append(terminal)
        return terminals

    def _require_room(
        self, addresses: Sequence[TerminalAddress], wanted: Mapping[Terminal, int], left: int, max_of_client: int
    ) -> None:
        known = self.by_address
        new = sum(address not in known for address in addresses)
        if new and len(known) + new > self._max_terminals:
            raise GatewayOverloaded(
                f"Limit reached: the gateway watches {self._max_terminals} terminals. Try again later.",
                retry_after_s=60,
            )
        more = sum(known.get(address) not in wanted for address in addresses)
        if more and len(wanted) - left + more > max_of_client:
            raise TooManyWatchedTerminals(
                f"Limit reached: {max_of_client} watched terminals. End a subscription or a stream, or ask the "
                "operator to raise `max_watched_terminals`."
            )

    def release_unwanted(self, terminals: Iterable[Terminal]) -> None:
        """Starts `linger_s` for the terminals that no subscription or stream wants."""
        for terminal in terminals:
            if terminal.wanted:
                continue
            terminal.idle_from_s = self._clock_s()
            if not terminal.in_idle_queue:
                terminal.in_idle_queue = True
                self._idle.append((terminal.idle_from_s, terminal))
                self.on_work()

    def add_subscription(self, subscription: LiveSubscription, terminal: Terminal) -> None:
        """Links a subscription to a terminal. If the terminal has failed since `want`, the error is reported."""
        if subscription not in terminal.subscriptions:
            terminal.subscriptions[subscription] = None
            self._count(subscription.client_id, terminal)
        if terminal.error is not None:
            self.report_error(terminal.address, [subscription], terminal.error)
        elif terminal.unreadable is not None and subscription.check_immediate:
            self.report_error(terminal.address, [subscription], terminal.unreadable)

    def remove_subscription(self, subscription: LiveSubscription, addresses: Iterable[TerminalAddress]) -> None:
        """Unlinks a subscription from terminals."""
        for address in addresses:
            if (terminal := self.by_address.get(address)) is not None:
                if subscription in terminal.subscriptions:
                    del terminal.subscriptions[subscription]
                    self._uncount(subscription.client_id, terminal)
                self.release_unwanted([terminal])

    def add_stream(self, stream: StreamOfTerminals, terminal: Terminal) -> None:
        """Links a stream to a terminal."""
        if stream not in terminal.streams:
            terminal.streams[stream] = None
            self._count(stream.client_id, terminal)

    def remove_stream(self, stream: StreamOfTerminals, terminal: Terminal) -> None:
        """Unlinks a stream from a terminal."""
        del terminal.streams[stream]
        self._uncount(stream.client_id, terminal)
        self.release_unwanted([terminal])

    def _count(self, client_id: str, terminal: Terminal) -> None:
        wanted = self._wanted_of.setdefault(client_id, {})
        wanted[terminal] = wanted.get(terminal, 0) + 1

    def _uncount(self, client_id: str, terminal: Terminal) -> None:
        wanted = self._wanted_of[client_id]
        wanted[terminal] -= 1
        if not wanted[terminal]:
            del wanted[terminal]
            if not wanted:
                del self._wanted_of[client_id]

    @property
    def next_due_s(self) -> float:
        """When `release_idle` may have something to do."""
        return self._idle[0][0] + self._linger_s if self._idle else math.inf

    def release_idle(self, now_s: float) -> None:
        """Ends the watches of terminals that nobody has wanted for `linger_s`."""
        idle = self._idle
        for _ in range(len(idle)):
            if idle[0][0] + self._linger_s > now_s:
                return
            since_s, terminal = idle.popleft()
            if terminal.idle_from_s is None:
                terminal.in_idle_queue = False
                continue
            if terminal.queued or terminal.idle_from_s > since_s:  # still to be written, or wanted in between
                idle.append((now_s if terminal.queued else terminal.idle_from_s, terminal))
                continue
            del self.by_address[terminal.address]
            self._watcher.unwatch(terminal.address)
            self.on_unwatched(terminal)
