"""Watches in the worker: drives one `WatchMachine` for each watched terminal with PJSIP, a clock and the send rate.

The machine decides; `Watches` carries each action out as one PJSIP call, one timer or one report. New watches and
refreshes after a lost connection leave at the operator's rate. Clients take turns; each client's newest watch leaves
first.

Invariants: a watch stays until the gateway ends it or its machine reports the end, whatever happens to its dialogs.

Deliberately absent: the meaning of a document, and which applications want the watch.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator

from app.domain.errors import TerminalStatusError
from app.sip import headers
from app.sip.answers import BAD_ADDRESS, CUT
from app.sip.machine import actions, events
from app.sip.machine.states import State
from app.sip.machine.watch_machine import WatchMachine
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.stack import GRANTED, Stack
from app.sip.pjsip.subscribe_dialog import SubscribeDialog
from app.sip.protocol import Error, LivenessChanged, NotifyRefused, Observed, Report, WatchEnded, WatchRow
from app.sip.worker.failover import Routes
from app.sip.worker.fair_queue import FairQueue
from app.sip.worker.large_documents import LargeDocuments
from app.sip.worker.send_rate import SendRate
from app.sip.worker.watch import Watch
from app.sip.worker.watch_timers import WatchTimers

_ASK_AFRESH = events.RefreshRequested(fresh=True)
_LOST = headers.Final(503, "contact lost", local=True, dialog_gone=True)


class Watches:
    """The worker's watches. They append what they find out to `reports`."""

    def __init__(
        self,
        stack: Stack,
        rate: SendRate,
        routes: Routes,
        large: LargeDocuments,
        reports: list[Report],
        expires_s: int,
    ) -> None:
        self._stack = stack
        self._rate = rate
        self._routes = routes
        self._large = large
        self._reports = reports
        self._expires_s = expires_s
        self._watches: dict[int, Watch] = {}
        self._ending: set[Watch] = set()  # ended by the gateway, and still unsubscribing
        self._timers = WatchTimers()
        self._queue = FairQueue[Watch]()
        self.sent = self.notified = self.cut = 0
        """SUBSCRIBEs sent, NOTIFYs received, and documents that UDP cut."""
        self.failures: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def queued(self) -> bool:
        """Whether a watch waits for the send rate."""
        return bool(self._queue)

    def start(self, wanted: list[tuple[int, str, bool]], clients: tuple[int, ...]) -> None:
        """Starts the watches `(id, address, observed)`, the most urgent first, and queues them before the clients'
        other ones. A watch that exists is only assigned to these clients."""
        for number, address, observed in reversed(wanted):
            watch = self._watches.get(number)
            if watch is None:
                machine = WatchMachine(expires_s=self._expires_s, observed=observed)
                watch = self._watches[number] = Watch(number, address, clients, machine)
                watch.queued = events.WatchRequested()
            else:
                self._queue.discard(watch)
                watch.clients = clients
            if watch.queued is not None:
                self._queue.add(watch, first=True)

    def end(self, number: int) -> None:
        """Ends a watch; nothing more is reported of it."""
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._queue.discard(watch)
            watch.queued = None
            self._ending.add(watch)
            self._handle(watch, events.WatchCancelled())

    def refresh(self, number: int) -> None:
        """Asks the presence server now, before the planned refresh."""
        watch = self._watches.get(number)
        if watch is not None and watch.queued is None:
            self._handle(watch, events.RefreshRequested())

    def on_contact_lost(self, *, route: int | None = None) -> None:
        """The presence server of `route` cannot be reached any more. None means that a connection broke, and PJSIP does
        not say to which server: every watch checks its subscription."""
        other_up = any(self._routes.up)
        for watch in list(self._watches.values()):
            if route is None:
                self._enqueue(watch, events.TransportLost())
            elif watch.route == route:
                self._handle(watch, events.TransportLost(certain=True))
                if other_up:
                    self._enqueue(watch, _ASK_AFRESH)
            elif watch.older is not None and watch.older.route == route:
                generation = watch.older.generation
                self._handle(watch, events.SubscribeFailed(generation=generation, final=_LOST, dialog_gone=True))

    def on_contact_restored(self, route: int) -> None:
        """A route came up: watches on a less preferred route return to it, and watches on it check their
        subscriptions."""
        for watch in list(self._watches.values()):
            if watch.route > route:
                self._enqueue(watch, _ASK_AFRESH)
            elif watch.route == route:
                waits = watch.machine.waits_for_server
                self._enqueue(watch, events.RefreshRequested() if waits else events.TransportLost())

    def send_queued(self) -> float:
        """Fires due timers, and sends what the send rate allows. Returns the seconds until more is due."""
        now_s = time.monotonic()
        timers = self._timers
        for watch in timers.fired(now_s):
            if watch.machine.state is State.WAITING:
                self._enqueue(watch, events.TimerFired())
            else:
                self._handle(watch, events.TimerFired())
        while self._queue and self._rate.allows(now_s):
            delay_s = self._rate.setup_delay_s(now_s)
            if delay_s:
                return delay_s if timers.next_s is None else min(delay_s, timers.next_s - now_s)
            watch = self._queue.pop()
            event, watch.queued = watch.queued, None
            if event is not None and watch.machine.state is not State.TERMINATED and watch not in self._ending:
                self._rate.on_sent(watch, now_s, setup=True)
                self._handle(watch, event)
        if self._queue:
            return 0.005
        return 3600.0 if timers.next_s is None else max(0.0, timers.next_s - now_s)

    def on_event(self, watch: Watch, dialog: SubscribeDialog, event: headers.Event) -> None:
        """PJSIP reported a NOTIFY, an answer or a failure of this dialog."""
        self._rate.on_answered(watch)
        generation = dialog.generation
        if isinstance(event, headers.Notify):
            self.notified += 1
            self._routes.on_answered(dialog.route)
            if event.declared_bytes not in (-1, len(event.body)) and self._retry_over_tcp(watch, generation):
                return
            self._handle(watch, events.NotifyReceived(generation=generation, notify=event, expires_s=event.expires_s))
        elif isinstance(event, headers.Unusable):
            self._routes.on_answered(dialog.route)
            if watch not in self._ending:
                self._reports.append(NotifyRefused(watch.id, event.reason))
            self._handle(watch, events.NotifyUnusable(generation=generation, reason=event.reason))
        elif 200 <= event.code < 300:
            self._routes.on_answered(dialog.route)
            expires_s = self._stack.granted_s(dialog) if event.expires_s == GRANTED else event.expires_s
            self._handle(watch, events.SubscribeAccepted(generation=generation, code=event.code, expires_s=expires_s))
        else:
            self.failures[f"local-{event.code}" if event.local else str(event.code)] += 1
            if event.local:
                self._routes.on_failed(dialog.route, event.code, time.monotonic())
            else:
                self._routes.on_answered(dialog.route)
            watch.redirected_to = self._routes.named_by(event)
            self._handle(
                watch,
                events.SubscribeFailed(
                    generation=generation,
                    final=event,
                    dialog_gone=event.dialog_gone,
                    redirected=watch.redirected_to is not None,
                ),
            )
            lost_route = event.local and not self._routes.up[watch.route]
            if lost_route and any(self._routes.up) and watch.machine.subscribed:
                self._enqueue(watch, _ASK_AFRESH)

    def states(self) -> dict[str, int]:
        """The number of watches in each state."""
        return dict(Counter(watch.machine.state.value for watch in self._watches.values()))

    def rows(self) -> Iterator[WatchRow]:
        """Each watch, for operators."""
        unix_s = time.time() - time.monotonic()
        for watch in self._watches.values():
            seen = watch.machine.snapshot()
            yield WatchRow(
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

    def _enqueue(self, watch: Watch, event: events.Event) -> None:
        """Queues an event for the time that the send rate allows. A watch has one queued event: the first.
        `_ASK_AFRESH` replaces it, unless the watch is still to be set up."""
        if watch.queued is None:
            self._queue.add(watch)
        if watch.queued is None or (watch.queued != events.WatchRequested() and event == _ASK_AFRESH):
            watch.queued = event

    def _handle(self, watch: Watch, event: events.Event) -> None:
        """Passes the event to the machine, and carries out the machine's actions."""
        now_s, omits = time.monotonic(), self._routes.omits_notify[watch.route]
        for action in watch.machine.handle(event, now_s, random.random(), omits_notify=omits):  # noqa: S311  # no secret
            match action:
                case actions.SendSubscribe():
                    self._subscribe(watch, action)
                case actions.ReportObservation():
                    self._report_observation(watch, action.notify)
                case actions.SetTimer():
                    self._timers.set(watch, action.at_s)
                case actions.ReportLiveness() if watch not in self._ending:
                    if action.reason != "subscribing":  # the gateway assumes this until another report
                        error = _frame_of(action.error)
                        self._reports.append(LivenessChanged(watch.id, action.liveness.value, action.reason, error))
                case actions.DropDialog():
                    self._drop_dialog(watch, action.generation)
                case actions.ReportOmittedNotify():
                    self._routes.on_notify_omitted(watch.route)
                case actions.SendUnsubscribe() if watch.dialog is not None:
                    self._send(watch, watch.dialog, 0)
                case actions.SendCredentials() if watch.dialog is not None:
                    self._send(watch, watch.dialog, action.expires_s)
                case actions.ReportEnd():
                    self._end(watch, action)

    def _subscribe(self, watch: Watch, action: actions.SendSubscribe) -> None:
        if not action.fresh and watch.dialog is not None:
            self._send(watch, watch.dialog, action.expires_s)
            return
        named = watch.redirected_to if action.redirected else None
        watch.route = self._routes.choose(action.attempt) if named is None else named
        watch.over_tcp = watch.address in self._large
        self.sent += 1
        try:
            dialog = self._stack.subscribe(
                watch,
                watch.address,
                action.expires_s,
                route=watch.route,
                over_tcp=watch.over_tcp,
                generation=action.generation,
            )
        except SipStackError as error:
            code = BAD_ADDRESS if isinstance(error, AddressRefused) else 503
            self._fail(watch, action.generation, code, str(error))
        else:
            watch.dialog, watch.older = dialog, watch.dialog

    def _send(self, watch: Watch, dialog: SubscribeDialog, expires_s: int) -> None:
        self.sent += 1
        if dialog.pointer is None:
            self._fail(watch, dialog.generation, 503, "the dialog is gone")
            return
        try:
            self._stack.refresh(dialog, expires_s)
        except SipStackError as error:
            self._fail(watch, dialog.generation, 503, str(error))

    def _fail(self, watch: Watch, generation: int, code: int, phrase: str) -> None:
        """Reports a failure as an event of its own, because the machine's present actions are not all carried out
        yet."""
        final = headers.Final(code, headers.plain(phrase), local=True, dialog_gone=True)
        dialog = SubscribeDialog(watch, None, None, True, generation=generation, route=watch.route)
        self._stack.events.append((dialog, final))

    def _drop_dialog(self, watch: Watch, generation: int) -> None:
        newest, older = watch.dialog, watch.older
        if newest is not None and newest.generation == generation:
            watch.dialog, watch.older = older, None
            self._stack.drop(newest)
        elif older is not None and older.generation == generation:
            watch.older = None
            self._stack.drop(older)
        if watch.dialog is not None:
            watch.route = watch.dialog.route

    def _retry_over_tcp(self, watch: Watch, generation: int) -> bool:
        """Subscribes over TCP after UDP cut the document. Returns whether that was possible."""
        self.cut += 1
        if watch.over_tcp or watch in self._ending or not self._stack.can_use_tcp(watch.route):
            return False
        self._large.add(watch.address)
        cut = headers.Final(CUT, "document cut", local=True)
        self._handle(watch, events.SubscribeFailed(generation=generation, final=cut, dialog_gone=True))
        self._handle(watch, events.RefreshRequested())
        return True

    def _report_observation(self, watch: Watch, notify: headers.Notify) -> None:
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

    def _end(self, watch: Watch, ended: actions.ReportEnd) -> None:
        self._queue.discard(watch)
        self._rate.on_answered(watch)
        watch.timer_at_s = 0.0
        if watch in self._ending:
            self._ending.discard(watch)
        elif self._watches.pop(watch.id, None) is not None:
            self._reports.append(WatchEnded(watch.id, ended.reason, _frame_of(ended.error)))


def _frame_of(error: TerminalStatusError | None) -> Error | None:
    if error is None:
        return None
    wait_s = -1.0 if error.retry_after_s is None else error.retry_after_s
    return Error(error.code, str(error), wait_s, error.details)
