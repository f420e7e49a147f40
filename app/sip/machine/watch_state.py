"""What the state machine keeps of one watch, and the elementary changes: plan, send, drop a dialog, end, report.

`watch_machine.py` decides which event causes which change. Each change appends its actions to `out`.
"""

import math

from app.domain.errors import PresenceUnavailable, TerminalStatusError
from app.sip.headers import Notify
from app.sip.machine import actions
from app.sip.machine.liveness_report import LivenessReport
from app.sip.machine.retries import Retries, Retry
from app.sip.machine.send_limit import SendLimit
from app.sip.machine.states import Dialog, Snapshot, State, Step
from app.sip.machine.timer_n import TimerN
from app.sip.machine.timing import TRANSACTION_S, refresh_delay_s


class WatchState:
    """The state of one watch. `expires_s`: the duration to ask for; `observed`: the terminal was observed before."""

    __slots__ = (
        "asked_s",
        "code",
        "contact_lost",
        "deadline_s",
        "dialog",
        "digest_tried",
        "expiry_from_notify",
        "generations",
        "in_flight",
        "jitter",
        "now_s",
        "older",
        "omits_notify",
        "out",
        "redirected",
        "report",
        "retries",
        "send_limit",
        "since_s",
        "state",
        "step",
        "step_at_s",
        "timer_n",
        "timer_s",
        "unanswered",
        "wanted",
    )

    def __init__(self, *, expires_s: int, observed: bool) -> None:
        self.state = State.INITIAL
        self.wanted = False
        self.asked_s = expires_s  # a followed Min-Expires makes it longer
        self.now_s = self.since_s = -math.inf
        self.jitter = 0.0
        self.out: list[actions.Action] = []
        self.dialog = Dialog(generation=0, held=False)
        self.older: Dialog | None = None  # serves until the first NOTIFY of `dialog`
        self.generations = 0
        self.omits_notify = False  # whether the server is known to send no NOTIFY after a refresh
        self.in_flight = False  # whether a request awaits its response, until `deadline_s`
        self.digest_tried = False
        self.redirected = False  # whether the last response was a redirection that is being followed
        self.contact_lost = False  # whether contact was lost under a subscription that still exists
        self.expiry_from_notify = False  # whether a NOTIFY has set the expiry since the last request
        self.deadline_s = self.step_at_s = math.inf
        self.step: Step | None = None
        self.timer_n = TimerN()
        self.send_limit = SendLimit()
        self.retries = Retries()
        self.unanswered = False  # whether the last attempt got no response
        self.code = 0
        self.report = LivenessReport(observed=observed)
        self.timer_s: float | None = None

    @property
    def subscribed(self) -> bool:
        """Whether a subscription exists and has brought a NOTIFY."""
        return self.dialog.substate is not None or self.older is not None

    def snapshot(self) -> Snapshot:
        """The present state, for operators."""
        wake_s = self.wake_s()
        if self.step is Step.SUBSCRIBE and self.dialog.substate:
            action = "refresh"
        elif self.step:
            action = self.step.value
        elif self.state is State.ACCEPTED or self.state is State.ENDING:
            action = "await NOTIFY"
        else:
            action = "await answer" if self.in_flight else ""
        at_s = self.step_at_s if self.step else wake_s
        return Snapshot(
            state=self.state,
            since_s=self.since_s,
            liveness=self.report.liveness(live=self.is_live()),
            expires_at_s=(self.older or self.dialog).expires_at_s if self.subscribed else None,
            code=self.code,
            reason=self.report.reason,
            next_action=action,
            next_at_s=at_s if at_s < math.inf else None,
        )

    def is_newest(self, generation: int) -> bool:
        """Whether `generation` is the newest dialog, and the driver still has it."""
        return self.dialog.held and generation == self.dialog.generation

    def plan_refresh(self) -> None:
        """Plans the refresh of a subscription that was granted or renewed."""
        left_s = self.dialog.expires_at_s - self.now_s
        if left_s > 0:  # otherwise the server granted no time: the subscription expires now
            self.retries.on_success(self.now_s)
            self.plan(Step.SUBSCRIBE, refresh_delay_s(left_s, self.jitter))

    def plan_retry(self, retry: Retry) -> None:
        """Counts a failure, and plans the next attempt."""
        self.plan(Step.SUBSCRIBE, self.retries.wait_s(retry, self.now_s, self.jitter))

    def plan(self, step: Step, wait_s: float) -> None:
        """Plans the next request, in place of the one planned so far."""
        self.step, self.step_at_s = step, self.now_s + wait_s

    def send(self, step: Step) -> None:
        """Sends the request, or postpones it to the time that the send limit allows."""
        allowed_at_s = self.send_limit.allowed_at_s
        if self.now_s < allowed_at_s:
            self.step_at_s = allowed_at_s
            return
        self.send_limit.on_sent(self.now_s)
        self.step, self.step_at_s, self.in_flight = None, math.inf, True
        if self.state is not State.ENDING:
            self.deadline_s = self.now_s + TRANSACTION_S
        self.digest_tried = step is Step.AUTHENTICATE
        if step is Step.UNSUBSCRIBE:
            self.out.append(actions.SendUnsubscribe(generation=self.dialog.generation))
            return
        if step is Step.AUTHENTICATE:
            expires_s = 0 if self.state is State.ENDING else self.asked_s
            self.out.append(actions.SendCredentials(generation=self.dialog.generation, expires_s=expires_s))
            return
        fresh, self.expiry_from_notify = self.dialog.substate is None or self.omits_notify or self.redirected, False
        self.timer_n.on_sent(self.now_s, refresh=not fresh)
        if fresh:
            if self.dialog.substate:
                self.older = self.dialog
            self.generations += 1
            self.dialog = Dialog(generation=self.generations)
        self.enter(State.INITIAL if fresh else State.REFRESHING)
        self.out.append(
            actions.SendSubscribe(
                generation=self.dialog.generation,
                fresh=fresh,
                expires_s=self.asked_s,
                attempt=self.retries.failures,
                redirected=self.redirected,
            )
        )

    def drop(self) -> None:
        """Drops every dialog. Requests planned in them are cancelled, and responses no longer awaited."""
        self.drop_older()
        dialog = self.dialog
        if dialog.held:
            self.out.append(actions.DropDialog(generation=dialog.generation))
        dialog.held, dialog.substate, dialog.expires_at_s = False, None, math.inf
        self.in_flight = self.contact_lost = False
        self.step = None
        self.deadline_s = self.step_at_s = math.inf
        self.timer_n.cancel()

    def drop_older(self) -> None:
        """Drops the older dialog, if there is one."""
        if self.older:
            self.out.append(actions.DropDialog(generation=self.older.generation))
            self.older = None
            self.timer_n.cancel()

    def return_to_older(self) -> None:
        """Drops the newer dialog, which was to replace the older one."""
        older, self.older = self.older, None
        assert older is not None  # noqa: S101  # the caller has checked
        assert older.substate is not None  # noqa: S101  # only a dialog with a NOTIFY is replaced
        contact_lost, due_s = self.contact_lost, self.timer_n.due_s
        self.drop()
        self.contact_lost, self.timer_n.due_s = contact_lost, due_s
        self.dialog = older
        self.enter(older.substate)

    def end(self, reason: str, error: TerminalStatusError | None) -> None:
        """Ends the watch for good."""
        self.drop()
        self.enter(State.TERMINATED)
        self.explain(reason, error)
        self.out.append(actions.ReportEnd(reason=reason, error=error))

    def enter(self, state: State) -> None:
        """Changes the state, and notes when."""
        if state is not self.state or self.since_s == -math.inf:
            self.state, self.since_s = state, self.now_s

    def explain(self, reason: str, error: TerminalStatusError | None) -> None:
        """Sets why the watch is not LIVE; empty while it is."""
        report = self.report
        report.reason, report.error = reason, error

    def explain_expiry(self) -> None:
        """Sets the expiry as the reason why the watch is not LIVE."""
        self.explain("expired", PresenceUnavailable("The subscription expired before it could be renewed."))

    def report_observation(self, notify: Notify) -> None:
        """Reports the status that the NOTIFY carries."""
        self.report.observed = True
        self.out.append(actions.ReportObservation(notify=notify))

    def report_liveness(self) -> None:
        """Reports the liveness and its reason where either has changed."""
        if self.wanted and self.state is not State.TERMINATED:
            change = self.report.change(live=self.is_live())
            if change is not None:
                self.out.append(change)

    def is_live(self) -> bool:
        """Whether the last observation is known to be still true."""
        serving = self.older or self.dialog
        return serving.substate is State.ACTIVE and self.now_s < serving.expires_at_s and not self.contact_lost

    def wake_s(self) -> float:
        """The time of the next due action; infinite without one."""
        serving = self.older or self.dialog
        expires_at_s = serving.expires_at_s if serving.substate else math.inf
        return min(self.step_at_s, self.deadline_s, expires_at_s, self.timer_n.due_s)

    def set_timer(self) -> None:
        """Sets the timer where its time has changed."""
        at_s = max(self.wake_s(), self.now_s)
        if at_s != self.timer_s and at_s < math.inf:
            self.timer_s = at_s
            self.out.append(actions.SetTimer(at_s=at_s))
