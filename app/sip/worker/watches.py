"""Standing subscriptions in the worker: one `WatchMachine` for each watched terminal, driven by PJSIP and a clock.

Invariants: the state machine decides, this carries out: each action becomes one call of PJSIP, one timer or one report.
Set-ups leave at the operator's pace, clients in turn, of each the newest wish first; refreshes after a break leave at
that pace too. Whatever happens to a dialog, its watch stays until the parent wants it no longer, or the machine has
ended it.

Deliberately absent: what a status is, and which applications want it.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Iterator

from app.domain.errors import TerminalStatusError
from app.sip import headers
from app.sip.answers import BAD_ADDRESS, CUT
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.stack import GRANTED, Stack, Subscription
from app.sip.protocol import Error, NotifyRefused, Observed, Report, Told, WatchEnded, WatchState
from app.sip.worker.failover import Routes
from app.sip.worker.fair_queue import Turns
from app.sip.worker.fetches import Large
from app.sip.worker.machine import WatchMachine
from app.sip.worker.send_rate import Pace
from app.sip.worker.vocabulary import (
    Accepted,
    Arm,
    Authenticate,
    Ended,
    Event,
    Forget,
    NotifyReceived,
    NotifyUnusable,
    Observe,
    Omitted,
    RefreshWanted,
    Refused,
    State,
    Subscribe,
    Tell,
    TimerFired,
    TransportLost,
    Unsubscribe,
    Unwanted,
    Wanted,
)


class Watch:
    """One watched terminal."""

    __slots__ = (
        "address",
        "armed_s",
        "clients",
        "id",
        "older",
        "over_tcp",
        "queued",
        "recent",
        "route",
        "sent_at_s",
        "subscription",
        "timer_s",
        "usage",
    )

    def __init__(self, number: int, address: str, clients: tuple[int, ...], usage: WatchMachine) -> None:
        self.id = number
        self.address = address
        self.clients = clients
        """In whose turn it is set up, by number."""
        self.usage = usage
        self.subscription: Subscription | None = None
        self.older: Subscription | None = None
        """The one that `subscription` is to replace."""
        self.route = 0
        self.over_tcp = False
        self.armed_s = 0.0
        self.timer_s = 0.0
        self.queued: Event | None = None
        """The event for it that waits for the pace."""
        self.recent = False
        self.sent_at_s = 0.0


class Watches:
    """The worker's watches. `reports` is where what they find out goes."""

    def __init__(
        self, stack: Stack, pace: Pace, routes: Routes, large: Large, reports: list[Report], expires_s: int
    ) -> None:
        self._stack = stack
        self._pace = pace
        self._routes = routes
        self._large = large
        self._reports = reports
        self._expires_s = expires_s
        self._watches: dict[int, Watch] = {}
        self._ending: set[Watch] = set()  # unwanted, and unsubscribing
        self._timers: list[tuple[float, int, Watch]] = []
        self._order = 0
        self._queue = Turns[Watch]()
        self.sent = self.notified = self.cut = 0
        """SUBSCRIBEs sent, NOTIFYs received, and documents that UDP cut."""
        self.failures: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def waiting(self) -> bool:
        """Whether some wait for the pace."""
        return bool(self._queue)

    def want(self, wishes: list[tuple[int, str, bool]], clients: tuple[int, ...]) -> None:
        """Takes on `(id, address, observed)`, the most urgent first and all before those that wait already for the
        clients. One that was taken on before gets these clients."""
        for number, address, observed in reversed(wishes):
            watch = self._watches.get(number)
            if watch is None:
                usage = WatchMachine(expires_s=self._expires_s, observed=observed)
                watch = self._watches[number] = Watch(number, address, clients, usage)
                watch.queued = Wanted()
            else:
                self._queue.discard(watch)
                watch.clients = clients
            if watch.queued is not None:
                self._queue.add(watch, first=True)

    def unwant(self, number: int) -> None:
        """Ends one; nothing more is reported about it."""
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._queue.discard(watch)
            watch.queued = None
            self._ending.add(watch)
            self._tell(watch, Unwanted())

    def refresh(self, number: int) -> None:
        """Asks now."""
        watch = self._watches.get(number)
        if watch is not None and watch.queued is None:
            self._tell(watch, RefreshWanted())

    def contact_lost(self, *, route: int | None = None) -> None:
        """A connection broke (None: it is not known whose), or the route's server does not answer."""
        other_up = any(self._routes.up)
        for watch in list(self._watches.values()):
            if route is None:
                self._later(watch, TransportLost())
            elif watch.route == route:
                self._tell(watch, TransportLost(certain=True))
                if other_up:
                    self._later(watch, RefreshWanted(fresh=True))

    def contact_found(self, route: int) -> None:
        """The route's server answers again: whoever is at a worse one returns, and the others make sure."""
        for watch in list(self._watches.values()):
            if watch.route > route:
                self._later(watch, RefreshWanted(fresh=True))
            elif watch.route == route:
                self._later(watch, RefreshWanted() if watch.usage.unanswered else TransportLost())

    def send_waiting(self) -> float:
        """Sends what the pace lets go, and fires due timers; returns the seconds until there is more to do."""
        now_s = time.monotonic()
        timers = self._timers
        while timers and timers[0][0] <= now_s:
            at_s, _, watch = heapq.heappop(timers)
            if watch.timer_s != at_s:
                continue  # an earlier one took its place
            watch.timer_s = 0.0
            if watch.armed_s > now_s:
                self._set_timer(watch)
            elif watch.armed_s:
                watch.armed_s = 0.0
                if watch.usage.state is State.WAITING:
                    self._later(watch, TimerFired())
                else:
                    self._tell(watch, TimerFired())
        while self._queue and self._pace.open(now_s):
            delay_s = self._pace.setup_delay_s(now_s)
            if delay_s:
                return min(delay_s, timers[0][0] - now_s) if timers else delay_s
            watch = self._queue.pop()
            event, watch.queued = watch.queued, None
            if event is not None and watch.usage.state is not State.TERMINATED and watch not in self._ending:
                self._pace.sent(watch, now_s, setup=True)
                self._tell(watch, event)
        if self._queue:
            return 0.005
        return max(0.0, timers[0][0] - now_s) if timers else 3600.0

    def handle(self, watch: Watch, subscription: Subscription, event: headers.Event) -> None:
        """What PJSIP saw of one."""
        self._pace.answered(watch)
        generation = subscription.generation
        if isinstance(event, headers.Notify):
            self.notified += 1
            self._routes.answered(subscription.route)
            if event.declared_bytes not in (-1, len(event.body)) and self._try_tcp(watch, generation):
                return
            self._tell(watch, NotifyReceived(generation=generation, notify=event, expires_s=event.expires_s))
        elif isinstance(event, headers.Unusable):
            self._routes.answered(subscription.route)
            if watch not in self._ending:
                self._reports.append(NotifyRefused(watch.id, event.reason))
            self._tell(watch, NotifyUnusable(generation=generation, reason=event.reason))
        elif 200 <= event.code < 300:
            self._routes.answered(subscription.route)
            expires_s = self._stack.granted_s(subscription) if event.expires_s == GRANTED else event.expires_s
            self._tell(watch, Accepted(generation=generation, code=event.code, expires_s=expires_s))
        else:
            self.failures[f"local-{event.code}" if event.local else str(event.code)] += 1
            if event.local:
                self._routes.failed(subscription.route, event.code, time.monotonic())
            else:
                self._routes.answered(subscription.route)
            self._tell(watch, Refused(generation=generation, final=event, dialog_gone=event.dialog_gone))
            if event.local and not self._routes.up[watch.route] and any(self._routes.up) and watch.usage.subscribed:
                self._later(watch, RefreshWanted(fresh=True))

    def states(self) -> dict[str, int]:
        """How many watches are in each state."""
        return dict(Counter(watch.usage.state.value for watch in self._watches.values()))

    def list(self) -> Iterator[WatchState]:
        """Each watch for operators."""
        unix_s = time.time() - time.monotonic()
        for watch in self._watches.values():
            seen = watch.usage.snapshot()
            yield WatchState(
                watch.id,
                seen.state.value,
                seen.liveness.value,
                seen.since_s + unix_s if seen.since_s > 0 else 0.0,
                seen.expires_at_s + unix_s if seen.expires_at_s is not None else 0.0,
                seen.code,
                seen.reason,
                "wait for the pace" if watch.queued else seen.next_action,
                seen.next_at_s + unix_s if seen.next_at_s is not None else 0.0,
                watch.route,
            )

    def _later(self, watch: Watch, event: Event) -> None:
        if watch.queued is None:
            self._queue.add(watch)
        if watch.queued is None or (watch.queued != Wanted() and event == RefreshWanted(fresh=True)):
            watch.queued = event

    def _tell(self, watch: Watch, event: Event) -> None:
        """Tells the machine, and carries out what it wants."""
        now_s, omits = time.monotonic(), self._routes.omits[watch.route]
        for action in watch.usage.handle(event, now_s, random.random(), replaces=omits):  # noqa: S311  # no secret
            match action:
                case Subscribe():
                    self._subscribe(watch, action)
                case Observe():
                    self._observe(watch, action.notify)
                case Arm():
                    watch.armed_s = action.at_s
                    self._set_timer(watch)
                case Tell() if watch not in self._ending and action.reason != "subscribing":  # as he supposes
                    told = Told(watch.id, action.liveness.value, action.reason, _frame_of(action.error))
                    self._reports.append(told)
                case Forget():
                    self._forget(watch, action.generation)
                case Omitted():
                    self._routes.omitted(watch.route)
                case Unsubscribe() if watch.subscription is not None:
                    self._send(watch, watch.subscription, 0)
                case Authenticate() if watch.subscription is not None:
                    self._send(watch, watch.subscription, action.expires_s)
                case Ended():
                    self._end(watch, action)

    def _set_timer(self, watch: Watch) -> None:
        """One entry for each watch, at most: it moves to a later time only once it has come."""
        if not watch.timer_s or watch.armed_s < watch.timer_s:
            self._order += 1
            watch.timer_s = watch.armed_s
            heapq.heappush(self._timers, (watch.armed_s, self._order, watch))

    def _subscribe(self, watch: Watch, action: Subscribe) -> None:
        if not action.fresh and watch.subscription is not None:
            self._send(watch, watch.subscription, action.expires_s)
            return
        watch.route = self._routes.choose(action.attempt)
        watch.over_tcp = watch.address in self._large
        self.sent += 1
        try:
            subscription = self._stack.subscribe(
                watch,
                watch.address,
                action.expires_s,
                route=watch.route,
                over_tcp=watch.over_tcp,
                generation=action.generation,
            )
        except SipStackError as error:
            code = BAD_ADDRESS if isinstance(error, AddressRefused) else 503
            self._failed(watch, action.generation, code, str(error))
        else:
            watch.subscription, watch.older = subscription, watch.subscription

    def _send(self, watch: Watch, subscription: Subscription, expires_s: int) -> None:
        self.sent += 1
        if subscription.pointer is None:
            self._failed(watch, subscription.generation, 503, "the dialog is gone")
            return
        try:
            self._stack.refresh(subscription, expires_s)
        except SipStackError as error:
            self._failed(watch, subscription.generation, 503, str(error))

    def _failed(self, watch: Watch, generation: int, code: int, phrase: str) -> None:
        """As an event of its own, once the actions at hand are done."""
        final = headers.Final(code, headers.plain(phrase), local=True, dialog_gone=True)
        failed = Subscription(watch, None, None, True, generation=generation, route=watch.route)
        self._stack.events.append((failed, final))

    def _forget(self, watch: Watch, generation: int) -> None:
        newest, older = watch.subscription, watch.older
        if newest is not None and newest.generation == generation:
            watch.subscription, watch.older = older, None
            self._stack.forget(newest)
        elif older is not None and older.generation == generation:
            watch.older = None
            self._stack.forget(older)
        if watch.subscription is not None:
            watch.route = watch.subscription.route

    def _try_tcp(self, watch: Watch, generation: int) -> bool:
        """What to do about a document that was cut: ask again over TCP, where that is another way."""
        self.cut += 1
        if watch.over_tcp or watch in self._ending or not self._stack.can_use_tcp(watch.route):
            return False
        self._large.add(watch.address)
        cut = headers.Final(CUT, "document cut", local=True)
        self._tell(watch, Refused(generation=generation, final=cut, dialog_gone=True))
        self._tell(watch, RefreshWanted())
        return True

    def _observe(self, watch: Watch, notify: headers.Notify) -> None:
        if watch not in self._ending:
            self._reports.append(
                Observed(
                    watch.id,
                    time.time(),
                    notify.content_type,
                    notify.content_encoding,
                    notify.declared_bytes,
                    notify.body,
                )
            )

    def _end(self, watch: Watch, ended: Ended) -> None:
        self._queue.discard(watch)
        self._pace.answered(watch)
        watch.armed_s = 0.0
        if watch in self._ending:
            self._ending.discard(watch)
        elif self._watches.pop(watch.id, None) is not None:
            self._reports.append(WatchEnded(watch.id, ended.reason, _frame_of(ended.error)))


def _frame_of(error: TerminalStatusError | None) -> Error | None:
    if error is None:
        return None
    wait_s = -1.0 if error.retry_after_s is None else error.retry_after_s
    return Error(error.code, str(error), wait_s, error.details)
