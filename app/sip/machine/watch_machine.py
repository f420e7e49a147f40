"""The state machine of one watch (RFC 6665 section 4.1).

The driver (`worker/watches.py`) passes each event to `WatchMachine.handle` and carries out the returned actions in
order; their results come back as later events. Each dialog has a generation number, and an event of an unknown
generation (a late NOTIFY, a fork) is ignored. If a server sends no NOTIFY after a refresh, the machine opens a second
dialog instead of refreshing. It keeps the older dialog until the first NOTIFY of the newer one.

Invariants: pure (`now_s` is of any monotonic clock, `jitter` is in [0, 1)). Until `ReportEnd`, the last action, a timer
is set. In any W seconds at most BURST + W / GAP_S SUBSCRIBEs leave, whatever the server does; this includes repetitions
with credentials and the unsubscribe. LIVE is reported only while a subscription is unexpired, its last NOTIFY was
active and no refresh got lost. After an accepted refresh without a NOTIFY, LIVE ends within TIMER_N_S. Lost contact is
STALE (UNKNOWN where nothing was observed), never a status. A failed refresh keeps the old subscription until its own
expiry, where RFC 6665 allows that. At most two dialogs exist.

Deliberately absent: the choice of a server and the send rate over all watches (both the driver's).
"""

import math

from app.domain.errors import AddressIsList, PresenceUnavailable, TerminalStatusError
from app.sip.answers import (
    BAD_ADDRESS,
    UNUSABLE,
    error_of_list,
    error_of_local_failure,
    error_of_notify,
    error_of_response,
)
from app.sip.headers import Final, Notify
from app.sip.machine import actions, events
from app.sip.machine.retries import AT_ONCE, FOLLOW, retry_after_failure, retry_after_termination, should_ask_longer
from app.sip.machine.states import Snapshot, State, Step
from app.sip.machine.timing import EXPIRES_S, TIMER_N_S, TRANSACTION_S
from app.sip.machine.watch_state import WatchState

_ENDS_DIALOG = frozenset({404, 405, 410, 416, *range(480, 486), 489, 501, 604})
"""These answers to a refresh end the subscription; after any other failure it stays valid (section 4.1.2.2)."""


class WatchMachine:
    """One watch. `observed`: the terminal's status was observed before, by an earlier machine."""

    __slots__ = ("_watch",)

    def __init__(self, *, expires_s: int = EXPIRES_S, observed: bool = False) -> None:
        self._watch = WatchState(expires_s=expires_s, observed=observed)

    def handle(
        self, event: events.Event, now_s: float, jitter: float, *, omits_notify: bool = False
    ) -> list[actions.Action]:
        """The actions that `event` calls for, in order. If `now_s` went back, the latest earlier value is used.

        `omits_notify`: the server is known to send no NOTIFY after a refresh, so a second dialog replaces the first.
        """
        watch = self._watch
        if watch.state is State.TERMINATED:
            return []
        out = watch.out = []
        watch.now_s, watch.jitter, watch.omits_notify = max(now_s, watch.now_s), jitter, omits_notify
        older = watch.older.generation if watch.older else None
        match event:
            case events.NotifyReceived() if self._is_of_list(event, older):
                watch.end("eventlist", error_of_list())
            case events.NotifyReceived() if event.generation == older:
                self._on_notify_in_older(event.notify, event.expires_s)
            case events.SubscribeFailed() if event.generation == older:
                if event.dialog_gone:
                    self._explain_failure(event.final)
                    watch.drop_older()
            case events.NotifyReceived() if watch.is_newest(event.generation):
                self._on_notify(event.notify, event.expires_s)
            case events.SubscribeAccepted() if watch.is_newest(event.generation) and watch.in_flight:
                self._on_accepted(event)
            case events.SubscribeFailed() if watch.is_newest(event.generation) and (
                watch.in_flight or event.dialog_gone or watch.state is State.ACCEPTED
            ):
                self._on_failed(event)
            case events.WatchRequested() if not watch.wanted:
                watch.wanted = True
                watch.drop()  # an unsubscribe may be in progress
                watch.enter(State.INITIAL)
                watch.plan(Step.SUBSCRIBE, 0)
            case events.WatchCancelled() if watch.wanted or watch.state is State.INITIAL:
                self._on_cancelled()
            case events.RefreshRequested():
                self._on_refresh_requested(fresh=event.fresh)
            case events.NotifyUnusable() if event.generation == older or watch.is_newest(event.generation):
                self._on_notify_unusable(event)
            case events.TransportLost():
                self._on_transport_lost(certain=event.certain)
            case events.TimerFired():
                watch.timer_s = None
        self._do_what_is_due()
        watch.report_liveness()
        watch.set_timer()
        watch.out = []
        return out

    @property
    def state(self) -> State:
        """The present state."""
        return self._watch.state

    @property
    def generation(self) -> int:
        """The generation of the newest dialog."""
        return self._watch.dialog.generation

    @property
    def subscribed(self) -> bool:
        """Whether a subscription exists and has brought a NOTIFY."""
        return self._watch.subscribed

    @property
    def waits_for_server(self) -> bool:
        """Whether the watch waits to repeat its request to a server that could not answer."""
        watch = self._watch
        waits = watch.step is Step.SUBSCRIBE and not watch.retries.good
        return waits and isinstance(watch.report.error, PresenceUnavailable)

    def snapshot(self) -> Snapshot:
        """The present state, for operators."""
        return self._watch.snapshot()

    def _is_of_list(self, event: events.NotifyReceived, older: int | None) -> bool:
        """Whether the NOTIFY says that the address is a list's, and the watch is still wanted."""
        notify = event.notify
        if not notify.of_list or self._watch.state is State.ENDING:
            return False
        in_use = event.generation == older or self._watch.is_newest(event.generation)
        error = error_of_notify(notify.state, notify.reason, -1, -1, 0, of_list=True)
        return in_use and isinstance(error, AddressIsList)

    def _on_accepted(self, event: events.SubscribeAccepted) -> None:
        watch = self._watch
        if watch.state is State.ENDING:
            return  # the last NOTIFY or the deadline ends the watch
        watch.in_flight, watch.deadline_s, watch.code, watch.contact_lost = False, math.inf, event.code, False
        watch.unanswered = watch.redirected = False
        watch.timer_n.on_accepted(event.code)
        dialog = watch.dialog
        granted_s = watch.asked_s if event.expires_s < 0 else min(event.expires_s, watch.asked_s)
        expires_at_s = watch.now_s + granted_s
        # A NOTIFY may come before the 2xx, and its expiry takes precedence (section 4.1.3).
        dialog.expires_at_s = min(expires_at_s, dialog.expires_at_s) if watch.expiry_from_notify else expires_at_s
        if dialog.substate:
            if dialog.substate is State.ACTIVE:
                watch.explain("", None)
            watch.enter(dialog.substate)
            watch.plan_refresh()
        else:
            watch.enter(State.ACCEPTED)
            watch.deadline_s = (watch.timer_n.sent_s if watch.older else watch.now_s) + TIMER_N_S

    def _on_notify(self, notify: Notify, expires_s: int) -> None:
        watch = self._watch
        if notify.state == "terminated":
            self._on_terminated(notify)
            return
        if watch.state is State.ENDING:
            return
        dialog = watch.dialog
        before = dialog.substate
        watch.drop_older()
        watch.timer_n.cancel()
        if notify.state == "pending":
            dialog.substate = State.PENDING
            watch.explain("pending", error_of_notify("pending", "", -1, 0, 0))
        else:
            dialog.substate = State.ACTIVE
            if before is not State.ACTIVE or watch.contact_lost:
                watch.explain("", None)
            watch.report_observation(notify)
        watch.contact_lost = False
        if expires_s >= 0:
            dialog.expires_at_s, watch.expiry_from_notify = watch.now_s + min(expires_s, watch.asked_s), True
        elif before is None and watch.in_flight:
            dialog.expires_at_s = watch.now_s + watch.asked_s  # until the 2xx sets the granted duration
        if watch.state is not State.REFRESHING:
            watch.enter(dialog.substate)
        if not watch.in_flight and watch.step is not Step.AUTHENTICATE:
            watch.deadline_s = math.inf
            # The retry of a failed refresh keeps its time: a NOTIFY does not answer the refresh.
            if before is None or (expires_s >= 0 and watch.retries.good):
                watch.plan_refresh()

    def _on_terminated(self, notify: Notify) -> None:
        """Acts on a NOTIFY with `terminated`, by its reason (section 4.1.3). Only a body makes it an observation:
        Kamailio sends none here."""
        watch = self._watch
        if watch.state is State.ENDING:
            watch.end(actions.UNWANTED, None)
            return
        reason = notify.reason
        error = error_of_notify("terminated", reason, notify.retry_after_s, 0, 0)
        if _has_status(notify):
            watch.report_observation(notify)
        watch.code = 0
        if reason == "noresource":  # "SHOULD NOT attempt to re-subscribe"; a new watch may
            watch.end(reason, error)
        elif reason == "invariant" and (notify.body or watch.dialog.substate is State.ACTIVE):
            watch.end(reason, None)
        else:
            watch.explain(reason or "terminated", error)
            watch.drop()
            watch.enter(State.WAITING)
            watch.plan_retry(retry_after_termination(notify))

    def _on_notify_in_older(self, notify: Notify, expires_s: int) -> None:
        """Acts on a NOTIFY of the older dialog. If the older dialog ended, no retry is needed: the newer one replaces
        it."""
        watch = self._watch
        older = watch.older
        assert older is not None  # noqa: S101  # the caller has checked
        terminated = notify.state == "terminated"
        if terminated or notify.state == "pending":
            error = error_of_notify(notify.state, notify.reason, notify.retry_after_s, 0, 0)
            watch.explain(notify.reason or notify.state, error)
        elif older.substate is not State.ACTIVE or watch.contact_lost:
            watch.explain("", None)
        if notify.state != "pending" and (not terminated or _has_status(notify)):
            watch.report_observation(notify)
        if terminated:
            watch.drop_older()
            return
        watch.contact_lost = False
        watch.timer_n.cancel()
        older.substate = State.PENDING if notify.state == "pending" else State.ACTIVE
        if expires_s >= 0:
            older.expires_at_s = watch.now_s + min(expires_s, watch.asked_s)

    def _on_failed(self, event: events.SubscribeFailed) -> None:
        watch = self._watch
        final = event.final
        in_flight, watch.in_flight = watch.in_flight, False
        challenge = final.code in {401, 407} and not final.local and event.can_authenticate
        if challenge and in_flight and not watch.digest_tried and not event.dialog_gone:
            watch.plan(Step.AUTHENTICATE, 0)
        elif watch.state is State.ENDING:
            watch.end(actions.UNWANTED, None)
        else:
            self._fail(final, dialog_gone=event.dialog_gone, redirected=event.redirected)

    def _fail(self, final: Final, *, dialog_gone: bool = False, redirected: bool = False) -> None:
        watch = self._watch
        watch.redirected = redirected and not watch.redirected  # a second redirection in a row is not followed
        watch.in_flight, watch.deadline_s = False, math.inf
        back, watch.unanswered = watch.unanswered and not final.local, final.local
        code = watch.code = final.code
        error = self._explain_failure(final)
        if watch.redirected:
            watch.explain("redirected", None)
        if final.of_list or (final.local and code == BAD_ADDRESS):
            watch.end(watch.report.reason, error)  # every later attempt would fail too
            return
        ends = dialog_gone or (code in _ENDS_DIALOG and not final.local)
        older_lasts = code != 0 if final.local else code not in _ENDS_DIALOG  # 0: accepted, and no NOTIFY came
        if watch.older and older_lasts:
            watch.return_to_older()
            watch.contact_lost |= final.local
        elif watch.dialog.substate and not ends:  # `_do_what_is_due` then checks its expiry
            watch.contact_lost |= final.local and watch.state is State.REFRESHING
            watch.enter(watch.dialog.substate)
        else:
            watch.drop()
            watch.enter(State.WAITING)
        retry = FOLLOW if watch.redirected else retry_after_failure(final, error, watch.asked_s, back=back)
        if should_ask_longer(final, watch.asked_s):
            watch.asked_s = final.min_expires_s
        watch.plan_retry(retry)

    def _explain_failure(self, final: Final) -> TerminalStatusError:
        """Sets the failure as the reason why the watch is not LIVE, and returns its error."""
        code = final.code
        if final.local:
            error = error_of_local_failure(code, final.phrase)
            self._watch.explain(final.phrase or (f"failure {code}" if code else "no NOTIFY"), error)
        else:
            error = error_of_response(code, final.phrase, final.retry_after_s, of_list=final.of_list)
            self._watch.explain(f"{code} {final.phrase}".rstrip(), error)
        return error

    def _on_cancelled(self) -> None:
        watch = self._watch
        watch.wanted = False
        if watch.older:
            watch.return_to_older()
        if watch.dialog.substate is None and watch.state is not State.ACCEPTED:
            watch.end(actions.UNWANTED, None)  # there is no dialog to unsubscribe in; a late NOTIFY gets 481
            return
        watch.enter(State.ENDING)
        watch.in_flight, watch.dialog.substate = False, None
        watch.timer_n.cancel()
        watch.deadline_s = watch.now_s + TRANSACTION_S
        watch.plan(Step.UNSUBSCRIBE, 0)

    def _on_refresh_requested(self, *, fresh: bool) -> None:
        watch = self._watch
        if fresh and watch.subscribed:
            watch.explain("asked afresh", None)
            watch.retries.failures = 0  # the failures were of another server or transport
            watch.drop()
            watch.enter(State.WAITING)
            watch.plan(Step.SUBSCRIBE, 0)
        elif watch.step:
            watch.step_at_s = min(watch.step_at_s, watch.now_s)

    def _on_notify_unusable(self, event: events.NotifyUnusable) -> None:
        """Leaves the dialog: a status is lost, and the stack may refuse the next NOTIFY in this dialog too."""
        watch = self._watch
        if watch.state is State.ENDING:
            return
        why = UNUSABLE[event.reason]
        error = PresenceUnavailable(f"A NOTIFY of the presence server could not be used: {why}.")
        watch.explain(f"NOTIFY refused: {why}", error)
        if event.generation != watch.dialog.generation:
            watch.drop_older()  # its replacement is in progress
            return
        watch.drop()
        watch.enter(State.WAITING)
        watch.plan_retry(AT_ONCE)

    def _on_transport_lost(self, *, certain: bool) -> None:
        watch = self._watch
        if watch.state is State.ENDING:
            return
        if certain and self.subscribed:
            watch.contact_lost = True
            watch.explain("contact lost", PresenceUnavailable("The presence server does not answer."))
        if watch.in_flight or watch.state is State.ACCEPTED:
            self._fail(Final(503, "transport lost", local=True))
        elif not certain and watch.dialog.substate and watch.step is Step.SUBSCRIBE and watch.retries.good:
            # The subscription may still exist: a refresh finds out, and opens a connection again.
            watch.step_at_s = min(watch.step_at_s, watch.now_s + watch.jitter)

    def _do_what_is_due(self) -> None:
        """Gives up waiting, lets subscriptions expire, and takes the next step, each at its time."""
        watch = self._watch
        if watch.now_s >= watch.deadline_s:
            if watch.state is State.ENDING:
                watch.end(actions.UNWANTED, None)
                return
            no_notify = watch.state is State.ACCEPTED
            self._fail(Final(0, "", local=True) if no_notify else Final(408, "no answer", local=True))
        if watch.older and watch.now_s >= watch.older.expires_at_s:
            watch.explain_expiry()
            watch.drop_older()
        if watch.now_s >= watch.timer_n.due_s:  # section 4.1.2.2: the subscription counts as terminated
            watch.explain("no NOTIFY after a refresh", error_of_local_failure(0, ""))
            if not watch.contact_lost:  # otherwise the lost contact explains it
                watch.out.append(actions.ReportOmittedNotify())
            if watch.older:  # its replacement is in progress
                watch.drop_older()
            else:
                watch.drop()
                watch.enter(State.WAITING)
                watch.plan_retry(AT_ONCE)
        if watch.dialog.substate and watch.now_s >= watch.dialog.expires_at_s:
            retries = watch.step is Step.SUBSCRIBE and not watch.retries.good
            retry_at_s = watch.step_at_s if retries else None
            if not watch.report.reason or watch.report.reason == "pending":
                watch.explain_expiry()
            watch.drop()
            watch.enter(State.WAITING)
            if retry_at_s is None:
                watch.plan_retry(AT_ONCE)
            else:
                watch.plan(Step.SUBSCRIBE, max(0.0, retry_at_s - watch.now_s))
        if watch.step and watch.now_s >= watch.step_at_s:
            watch.send(watch.step)


def _has_status(last: Notify) -> bool:
    """Whether a NOTIFY with `terminated` is an observation (section 4.1.3)."""
    return bool(last.body) and last.reason not in {"rejected", "noresource"}
