"""The life of one terminal's standing SUBSCRIBE as a pure state machine (RFC 6665 section 4.1).

The driver tells `WatchMachine.handle` what happened, in the words of `vocabulary.py`, carries out the returned actions
in order, and tells what comes of them as later events. A dialog has a generation; an event of any other (a late NOTIFY,
a fork) is ignored. Where the server sends no NOTIFY after a refresh, a subscription is renewed by another one: the
older dialog is kept until the first NOTIFY of the newer one.

Invariants: no PJSIP, no I/O, no clock, no randomness (`now_s` is of any clock, `jitter` in [0, 1)). While wanted, a
timer is armed, or it has ended with `Ended`, after which nothing follows. At most BURST + W / GAP_S SUBSCRIBEs leave in
any W seconds, digest retries and the last one counted, whatever the server does. LIVE is said only while an unexpired
subscription with an active NOTIFY exists and no refresh of it was lost on the way, and for at most TIMER_N_S after the
first accepted refresh that no NOTIFY has followed. An older dialog exists only while the newer one waits for its first
NOTIFY, so there are two at most. Losing contact is STALE (or UNKNOWN where nothing was ever observed), and never a
status. A failed refresh keeps the old subscription until its own expiry, where RFC 6665 lets it.

Deliberately absent: the choice of a route (the driver's; `attempt` counts failures in a row), the pace over all
terminals (the driver's too), and what a document says.
"""

import enum
import math
from dataclasses import dataclass, replace

from app.domain.errors import PresenceUnavailable, TerminalStatusError
from app.domain.statuses import Liveness
from app.sip.answers import BAD_ADDRESS, UNUSABLE, error_of_local_failure, error_of_notify, error_of_response
from app.sip.headers import Final, Notify
from app.sip.worker.timing import (
    BURST,
    EXPIRES_S,
    GAP_S,
    LONG_STOP_S,
    LONGEST_EXPIRES_S,
    MAX_RETRY_AFTER_S,
    STEADY_S,
    TIMER_N_S,
    TRANSACTION_S,
    backoff_s,
    refresh_delay_s,
)
from app.sip.worker.vocabulary import (
    UNWANTED,
    Accepted,
    Action,
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
    Snapshot,
    State,
    Subscribe,
    Tell,
    TimerFired,
    TransportLost,
    Unsubscribe,
    Unwanted,
    Wanted,
)

NO_NOTIFICATION = 204
"""A refresh answered so has succeeded and is followed by no NOTIFY (RFC 5839; section 4.1.2.2 cancels Timer N)."""

_ENDS_DIALOG = frozenset({404, 405, 410, 416, *range(480, 486), 489, 501, 604})
"""A refresh answered so has ended the subscription; after any other failure it is still valid (section 4.1.2.2)."""


class Step(enum.Enum):
    """What is done next, once its time has come and the pace allows."""

    ASK = "subscribe"
    """In the dialog where there is a subscription, else in a fresh one."""
    AUTHENTICATE = "authenticate"
    UNSUBSCRIBE = "unsubscribe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Older:
    """The dialog that serves until the first NOTIFY of the one that replaces it."""

    generation: int
    substate: State
    expires_at_s: float


class WatchMachine:
    """One terminal's subscription. `observed` says that an earlier usage of this terminal has observed it."""

    __slots__ = (
        "_armed_s",
        "_asked_s",
        "_code",
        "_deadline_s",
        "_digest_tried",
        "_doubt",
        "_error",
        "_expires_at_s",
        "_failures",
        "_good_since_s",
        "_held",
        "_in_flight",
        "_jitter",
        "_latest",
        "_lost",
        "_notify_due_s",
        "_now_s",
        "_observed",
        "_older",
        "_out",
        "_paced_s",
        "_quiet",
        "_reason",
        "_replaces",
        "_sent_s",
        "_since_s",
        "_stated",
        "_step",
        "_step_at_s",
        "_substate",
        "_told",
        "_wanted",
        "generation",
        "state",
    )

    def __init__(self, *, expires_s: int = EXPIRES_S, observed: bool = False) -> None:
        self.state = State.INITIAL
        self.generation = self._latest = 0
        self._wanted = False
        self._observed = observed
        self._asked_s = expires_s  # grows with a followed Min-Expires
        self._now_s = self._since_s = -math.inf
        self._jitter = 0.0
        self._out: list[Action] = []
        self._held = False  # whether the driver has a dialog of this generation
        self._older: _Older | None = None
        self._replaces = False  # whether a subscription is renewed by another one
        self._in_flight = False  # whether the answer to a request is awaited, until the deadline
        self._digest_tried = False
        self._doubt = False  # whether we lost contact under a subscription that is there still
        self._substate: State | None = None  # ACTIVE or PENDING once a NOTIFY has said so
        self._stated = False  # whether a NOTIFY has told the expiry since the last request
        self._sent_s = -math.inf  # when the last SUBSCRIBE left
        self._quiet = False  # whether that was a refresh, and no NOTIFY has come since
        self._notify_due_s = math.inf  # the end of Timer N, for the first accepted refresh that no NOTIFY has followed
        self._deadline_s = self._expires_at_s = self._step_at_s = math.inf
        self._step: Step | None = None
        self._paced_s = -math.inf  # the bucket of SUBSCRIBEs is empty until (BURST - 1) * GAP_S before this
        self._failures = 0
        self._lost = False  # whether the last try got no answer
        self._good_since_s: float | None = None  # None while the last try failed
        self._code = 0
        self._reason = ""
        self._error: TerminalStatusError | None = None
        self._told: tuple[Liveness, str] | None = None
        self._armed_s: float | None = None

    def handle(self, event: Event, now_s: float, jitter: float, *, replaces: bool = False) -> list[Action]:
        """What is to be done after `event`, in order. A `now_s` before the last one counts as that. `replaces`: the
        server is known to send no NOTIFY after a refresh, so a subscription is renewed by another one."""
        if self.state is State.TERMINATED:
            return []
        out = self._out = []
        self._now_s, self._jitter, self._replaces = max(now_s, self._now_s), jitter, replaces
        older = self._older.generation if self._older else None
        match event:
            case NotifyReceived() if event.generation == older:
                self._older_notified(event.notify, event.expires_s)
            case Refused() if event.generation == older:
                if event.dialog_gone:
                    self._why(f"{event.final.code} {event.final.phrase}".rstrip(), None)
                    self._drop_older()
            case NotifyReceived() if self._current(event.generation):
                self._notified(event.notify, event.expires_s)
            case Accepted() if self._current(event.generation) and self._in_flight:
                self._accepted(event)
            case Refused() if self._current(event.generation) and (
                self._in_flight or event.dialog_gone or self.state is State.ACCEPTED
            ):
                self._refused(event)
            case Wanted() if not self._wanted:
                self._wanted = True
                self._drop()  # an unsubscribe may be under way
                self._enter(State.INITIAL)
                self._plan(Step.ASK, 0)
            case Unwanted() if self._wanted or self.state is State.INITIAL:
                self._leave()
            case RefreshWanted():
                self._hurry(fresh=event.fresh)
            case NotifyUnusable() if event.generation == older or self._current(event.generation):
                self._unusable(event)
            case TransportLost():
                self._transport_lost(certain=event.certain)
            case TimerFired():
                self._armed_s = None
        self._tick()
        self._tell()
        self._arm()
        self._out = []
        return out

    @property
    def subscribed(self) -> bool:
        """Whether there is a subscription that a NOTIFY has told of."""
        return self._substate is not None or self._older is not None

    @property
    def unanswered(self) -> bool:
        """Whether it waits to ask again a server that could not answer."""
        waits = self._step is Step.ASK and self._good_since_s is None
        return waits and isinstance(self._error, PresenceUnavailable)

    def snapshot(self) -> Snapshot:
        """The usage as it stands."""
        wake_s = self._wake_s()
        if self._step is Step.ASK and self._substate:
            action = "refresh"
        elif self._step:
            action = self._step.value
        elif self.state is State.ACCEPTED or self.state is State.ENDING:
            action = "await NOTIFY"
        else:
            action = "await answer" if self._in_flight else ""
        at_s = self._step_at_s if self._step else wake_s
        return Snapshot(
            state=self.state,
            since_s=self._since_s,
            liveness=self._liveness(),
            expires_at_s=self._serving_until_s() if self.subscribed else None,
            code=self._code,
            reason=self._reason,
            next_action=action,
            next_at_s=at_s if at_s < math.inf else None,
        )

    def _current(self, generation: int) -> bool:
        return self._held and generation == self.generation

    def _accepted(self, event: Accepted) -> None:
        if self.state is State.ENDING:
            return  # the last NOTIFY or the deadline ends it
        self._in_flight, self._deadline_s, self._code, self._doubt = False, math.inf, event.code, False
        self._lost = False
        if self._quiet:
            due_s = min(self._notify_due_s, self._sent_s + TIMER_N_S)
            self._notify_due_s = math.inf if event.code == NO_NOTIFICATION else due_s
        granted_s = self._asked_s if event.expires_s < 0 else min(event.expires_s, self._asked_s)
        expires_at_s = self._now_s + granted_s
        # A NOTIFY may come before the 2xx, and what it says of the duration holds (section 4.1.3).
        self._expires_at_s = min(expires_at_s, self._expires_at_s) if self._stated else expires_at_s
        if self._substate:
            if self._substate is State.ACTIVE:
                self._why("", None)
            self._enter(self._substate)
            self._renewed()
        else:
            self._enter(State.ACCEPTED)
            self._deadline_s = (self._sent_s if self._older else self._now_s) + TIMER_N_S

    def _notified(self, notify: Notify, expires_s: int) -> None:
        if notify.state == "terminated":
            self._terminated(notify)
            return
        if self.state is State.ENDING:
            return
        first, before = self._substate is None, self._substate
        self._drop_older()
        self._quiet, self._notify_due_s = False, math.inf
        self._substate = State.PENDING if notify.state == "pending" else State.ACTIVE
        if self._substate is State.PENDING:
            self._why("pending", error_of_notify("pending", "", -1, 0, 0))
        else:
            if before is not State.ACTIVE or self._doubt:
                self._why("", None)
            self._observe(notify)
        self._doubt = False
        if expires_s >= 0:
            self._expires_at_s, self._stated = self._now_s + min(expires_s, self._asked_s), True
        elif first and self._in_flight:
            self._expires_at_s = self._now_s + self._asked_s  # until the 2xx says better
        if self.state is not State.REFRESHING:
            self._enter(self._substate)
        if not self._in_flight and self._step is not Step.AUTHENTICATE:
            self._deadline_s = math.inf
            # A retry after a failed refresh keeps its time: NOTIFYs are no answer to it.
            if first or (expires_s >= 0 and self._good_since_s is not None):
                self._renewed()

    def _terminated(self, notify: Notify) -> None:
        """Section 4.1.3's reasons. A body is an observation; its absence is none (Kamailio leaves it out here)."""
        if self.state is State.ENDING:
            self._end(UNWANTED, None)
            return
        reason = notify.reason
        error = error_of_notify("terminated", reason, notify.retry_after_s, 0, 0)
        if _has_status(notify):
            self._observe(notify)
        self._code = 0
        if reason == "noresource":  # "SHOULD NOT attempt to re-subscribe": whoever wants it anyway begins again
            self._end(reason, error)
        elif reason == "invariant" and (notify.body or self._substate is State.ACTIVE):
            self._end(reason, None)
        else:
            self._why(reason or "terminated", error)
            self._drop()
            self._enter(State.WAITING)
            if reason == "rejected":
                self._again(long_stop=True)
            elif reason in {"probation", "giveup"}:
                self._again(retry_after_s=notify.retry_after_s)
            elif reason in {"deactivated", "timeout"}:  # for these retry-after has no meaning
                self._again(at_once=True)
            else:  # none, an unknown one, or an invariant of nothing
                self._again(at_once=True, retry_after_s=notify.retry_after_s)

    def _older_notified(self, notify: Notify, expires_s: int) -> None:
        """While its replacement is under way; an end of it needs no other answer than that."""
        assert self._older is not None  # noqa: S101  # the caller has looked
        terminated = notify.state == "terminated"
        error = error_of_notify(notify.state, notify.reason, notify.retry_after_s, 0, 0)
        if terminated or notify.state == "pending":
            self._why(notify.reason or notify.state, error)
        elif self._older.substate is not State.ACTIVE or self._doubt:
            self._why("", None)
        if notify.state != "pending" and (not terminated or _has_status(notify)):
            self._observe(notify)
        if terminated:
            self._drop_older()
            return
        self._doubt, self._notify_due_s = False, math.inf
        self._older = replace(
            self._older,
            substate=State.PENDING if notify.state == "pending" else State.ACTIVE,
            expires_at_s=self._now_s + min(expires_s, self._asked_s) if expires_s >= 0 else self._older.expires_at_s,
        )

    def _refused(self, event: Refused) -> None:
        final = event.final
        in_flight, self._in_flight = self._in_flight, False
        challenge = final.code in {401, 407} and not final.local and event.can_authenticate
        if challenge and in_flight and not self._digest_tried and not event.dialog_gone:
            self._plan(Step.AUTHENTICATE, 0)
        elif self.state is State.ENDING:
            self._end(UNWANTED, None)
        else:
            self._failed(final, dialog_gone=event.dialog_gone)

    def _failed(self, final: Final, *, dialog_gone: bool = False) -> None:
        self._in_flight, self._deadline_s = False, math.inf
        back, self._lost = self._lost and not final.local, final.local
        code = self._code = final.code
        if final.local:
            error = error_of_local_failure(code, final.phrase)
            self._why(final.phrase or (f"failure {code}" if code else "no NOTIFY"), error)
        else:
            error = error_of_response(code, final.phrase, final.retry_after_s)
            self._why(f"{code} {final.phrase}".rstrip(), error)
        if final.local and code == BAD_ADDRESS:
            self._end(self._reason, error)  # no later try can differ
            return
        ends = dialog_gone or (code in _ENDS_DIALOG and not final.local)
        lasts = code != 0 if final.local else code not in _ENDS_DIALOG  # 0: accepted, and then no NOTIFY
        if self._older and lasts:
            self._return_to_older()
            self._doubt |= final.local
        elif self._substate and not ends:  # if only until `_tick` finds it expired
            self._doubt |= final.local and self.state is State.REFRESHING
            self._enter(self._substate)
        else:
            self._drop()
            self._enter(State.WAITING)
        if code == 423 and self._asked_s < final.min_expires_s <= LONGEST_EXPIRES_S:
            self._asked_s = final.min_expires_s
            self._again(at_once=True)
        elif code == 481:
            self._again(at_once=True, back=back)
        elif error.retryable and code != 423:
            self._again(retry_after_s=final.retry_after_s)
        else:
            self._again(long_stop=True)

    def _leave(self) -> None:
        self._wanted = False
        if self._older:
            self._return_to_older()
        if self._substate is None and self.state is not State.ACCEPTED:
            self._end(UNWANTED, None)  # no dialog that a SUBSCRIBE could end; a NOTIFY that still comes gets its 481
            return
        self._enter(State.ENDING)
        self._in_flight, self._substate, self._notify_due_s = False, None, math.inf
        self._deadline_s = self._now_s + TRANSACTION_S
        self._plan(Step.UNSUBSCRIBE, 0)

    def _hurry(self, *, fresh: bool) -> None:
        if fresh and self.subscribed:
            self._why("asked afresh", None)
            self._failures = 0  # they were of another way
            self._drop()
            self._enter(State.WAITING)
            self._plan(Step.ASK, 0)
        elif self._step:
            self._step_at_s = min(self._step_at_s, self._now_s)

    def _unusable(self, event: NotifyUnusable) -> None:
        """What the NOTIFY said is lost, and the next one in this dialog may meet the same end."""
        if self.state is State.ENDING:
            return
        why = UNUSABLE[event.reason]
        error = PresenceUnavailable(f"A NOTIFY of the presence server could not be used: {why}.")
        self._why(f"NOTIFY refused: {why}", error)
        if event.generation != self.generation:
            self._drop_older()  # its replacement is under way
            return
        self._drop()
        self._enter(State.WAITING)
        self._again(at_once=True)

    def _transport_lost(self, *, certain: bool) -> None:
        if self.state is State.ENDING:
            return
        if certain and self.subscribed:
            self._doubt = True
            self._why("contact lost", PresenceUnavailable("The presence server does not answer."))
        if self._in_flight or self.state is State.ACCEPTED:
            self._failed(Final(503, "transport lost", local=True))
        elif not certain and self._substate and self._step is Step.ASK and self._good_since_s is not None:
            # The subscription may well be there still: a refresh finds out, and opens the way again.
            self._step_at_s = min(self._step_at_s, self._now_s + self._jitter)

    def _observe(self, notify: Notify) -> None:
        self._observed = True
        self._out.append(Observe(notify=notify))

    def _renewed(self) -> None:
        left_s = self._expires_at_s - self._now_s
        if left_s > 0:  # else the server has granted nothing, and `_tick` sees to it
            if self._good_since_s is None:
                self._good_since_s = self._now_s
            self._plan(Step.ASK, refresh_delay_s(left_s, self._jitter))

    def _again(
        self, *, at_once: bool = False, back: bool = False, long_stop: bool = False, retry_after_s: int = -1
    ) -> None:
        """Plans the next try. At once is only the first time in a row, or that the server is `back`, so that no server
        has us run in circles."""
        if self._good_since_s is not None and self._now_s - self._good_since_s >= STEADY_S:
            self._failures = 0
        self._good_since_s = None
        spread = 1 + self._jitter / 10
        if long_stop:
            wait_s = LONG_STOP_S * spread
        else:
            wait_s = 0.0 if at_once and (back or not self._failures) else backoff_s(self._failures, self._jitter)
            if retry_after_s > 0:
                wait_s = max(wait_s, min(retry_after_s, MAX_RETRY_AFTER_S) * spread)
        self._failures += 1
        self._plan(Step.ASK, wait_s)

    def _plan(self, step: Step, wait_s: float) -> None:
        self._step, self._step_at_s = step, self._now_s + wait_s

    def _tick(self) -> None:
        """Does what is due: gives up waiting, lets the subscription expire, takes the next step."""
        if self._now_s >= self._deadline_s:
            if self.state is State.ENDING:
                self._end(UNWANTED, None)
                return
            silent = Final(0, "", local=True) if self.state is State.ACCEPTED else Final(408, "no answer", local=True)
            self._failed(silent)
        if self._older and self._now_s >= self._older.expires_at_s:
            self._why("expired", PresenceUnavailable("The subscription expired before it could be renewed."))
            self._drop_older()
        if self._now_s >= self._notify_due_s:  # section 4.1.2.2: the subscription counts as terminated
            self._why("no NOTIFY after a refresh", error_of_local_failure(0, ""))
            if not self._doubt:  # else it is known that we lost contact
                self._out.append(Omitted())
            if self._older:  # its replacement is under way
                self._drop_older()
            else:
                self._drop()
                self._enter(State.WAITING)
                self._again(at_once=True)
        if self._substate and self._now_s >= self._expires_at_s:
            retry_at_s = self._step_at_s if self._step is Step.ASK and self._good_since_s is None else None
            if not self._reason or self._reason == "pending":
                self._why("expired", PresenceUnavailable("The subscription expired before it could be renewed."))
            self._drop()
            self._enter(State.WAITING)
            if retry_at_s is None:
                self._again(at_once=True)
            else:
                self._plan(Step.ASK, max(0.0, retry_at_s - self._now_s))
        if self._step and self._now_s >= self._step_at_s:
            self._send(self._step)

    def _send(self, step: Step) -> None:
        allowed_s = self._paced_s - (BURST - 1) * GAP_S
        if self._now_s < allowed_s:
            self._step_at_s = allowed_s
            return
        self._paced_s = max(self._paced_s, self._now_s) + GAP_S
        self._step, self._step_at_s, self._in_flight = None, math.inf, True
        if self.state is not State.ENDING:
            self._deadline_s = self._now_s + TRANSACTION_S
        self._digest_tried = step is Step.AUTHENTICATE
        if step is Step.UNSUBSCRIBE:
            self._out.append(Unsubscribe(generation=self.generation))
            return
        if step is Step.AUTHENTICATE:
            expires_s = 0 if self.state is State.ENDING else self._asked_s
            self._out.append(Authenticate(generation=self.generation, expires_s=expires_s))
            return
        fresh, self._stated, self._sent_s = self._substate is None or self._replaces, False, self._now_s
        if self._substate and fresh:
            self._older = _Older(generation=self.generation, substate=self._substate, expires_at_s=self._expires_at_s)
            self._substate, self._expires_at_s = None, math.inf
        self._quiet = not fresh
        if fresh:
            self._latest += 1
            self.generation, self._held = self._latest, True
        self._enter(State.INITIAL if fresh else State.REFRESHING)
        self._out.append(
            Subscribe(generation=self.generation, fresh=fresh, expires_s=self._asked_s, attempt=self._failures)
        )

    def _drop(self) -> None:
        self._drop_older()
        if self._held:
            self._out.append(Forget(generation=self.generation))
        self._held = self._in_flight = self._doubt = self._quiet = False
        self._substate = self._step = None
        self._deadline_s = self._expires_at_s = self._step_at_s = self._notify_due_s = math.inf

    def _drop_older(self) -> None:
        if self._older:
            self._out.append(Forget(generation=self._older.generation))
            self._older, self._notify_due_s = None, math.inf

    def _return_to_older(self) -> None:
        """Gives up the dialog that was to replace it."""
        older, self._older = self._older, None
        assert older is not None  # noqa: S101  # the caller has looked
        doubt, notify_due_s = self._doubt, self._notify_due_s
        self._drop()
        self._held, self._doubt, self._notify_due_s = True, doubt, notify_due_s
        self.generation, self._substate, self._expires_at_s = older.generation, older.substate, older.expires_at_s
        self._enter(older.substate)

    def _end(self, reason: str, error: TerminalStatusError | None) -> None:
        self._drop()
        self._enter(State.TERMINATED)
        self._why(reason, error)
        self._out.append(Ended(reason=reason, error=error))

    def _enter(self, state: State) -> None:
        if state is not self.state or self._since_s == -math.inf:
            self.state, self._since_s = state, self._now_s

    def _why(self, reason: str, error: TerminalStatusError | None) -> None:
        self._reason, self._error = reason, error

    def _liveness(self) -> Liveness:
        serving = self._older.substate if self._older else self._substate
        if serving is State.ACTIVE and self._now_s < self._serving_until_s() and not self._doubt:
            return Liveness.LIVE
        return Liveness.STALE if self._observed else Liveness.UNKNOWN

    def _tell(self) -> None:
        liveness = self._liveness()
        live = liveness is Liveness.LIVE
        told = (liveness, "" if live else self._reason or "subscribing")
        if self._wanted and self.state is not State.TERMINATED and told != self._told:
            self._told = told
            self._out.append(Tell(liveness=told[0], reason=told[1], error=None if live else self._error))

    def _serving_until_s(self) -> float:
        return self._older.expires_at_s if self._older else self._expires_at_s

    def _wake_s(self) -> float:
        expires_at_s = self._serving_until_s() if self.subscribed else math.inf
        return min(self._step_at_s, self._deadline_s, expires_at_s, self._notify_due_s)

    def _arm(self) -> None:
        at_s = max(self._wake_s(), self._now_s)
        if at_s != self._armed_s and at_s < math.inf:
            self._armed_s = at_s
            self._out.append(Arm(at_s=at_s))


def _has_status(last: Notify) -> bool:
    """Whether a NOTIFY in state terminated is an observation (section 4.1.3)."""
    return bool(last.body) and last.reason not in {"rejected", "noresource"}
