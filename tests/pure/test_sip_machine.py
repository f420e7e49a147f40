"""The life of a standing subscription: each row of RFC 6665 by name, and what holds whatever the server does.

`LIFE_CYCLE` in `tests/support/life_cycle.py` has the rows. A `Play` is one machine with driver and clock.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import (
    FetchTimedOut,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.domain.statuses import Liveness
from app.sip.answers import BAD_ADDRESS, UNUSABLE
from app.sip.headers import Final, Notify
from app.sip.machine import timing as life
from app.sip.machine.actions import (
    UNWANTED,
    Action,
    DropDialog,
    ReportEnd,
    ReportLiveness,
    ReportObservation,
    ReportOmittedNotify,
    SendCredentials,
    SendSubscribe,
    SendUnsubscribe,
    SetTimer,
)
from app.sip.machine.events import (
    Event,
    NotifyReceived,
    NotifyUnusable,
    RefreshRequested,
    SubscribeAccepted,
    SubscribeFailed,
    TimerFired,
    TransportLost,
    WatchCancelled,
    WatchRequested,
)
from app.sip.machine.states import State
from app.sip.machine.watch_machine import WatchMachine

HOUR = 3600
A = TypeVar("A", bound=Action)


def notify(state: str = "active", reason: str = "", retry_after_s: int = -1, body: bytes = b"") -> Notify:
    return Notify(state, reason, retry_after_s, "application/pidf+xml", "", len(body), body)


class Play:
    """One machine. Time advances only by `run`, which fires the armed timer at its time."""

    def __init__(self, *, observed: bool = False, expires_s: int = HOUR, jitter: float = 0.5) -> None:
        self.machine = WatchMachine(expires_s=expires_s, observed=observed)
        self.now_s, self.jitter = 1000.0, jitter
        self.armed_s: float | None = None
        self.sent_s: list[float] = []
        self.omits = False  # whether the server is known to send no NOTIFY after a refresh
        self.dialogs: list[int] = []
        self.liveness: Liveness | None = None
        self.ended: ReportEnd | None = None
        self.unsubscribed = False
        self.last: list[Action] = []

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def held(self) -> int | None:
        """The newest dialog that there is."""
        return self.dialogs[-1] if self.dialogs else None

    def handle(self, event: Event) -> list[Action]:
        """Hands one event over, and checks what holds of any answer."""
        ended = self.ended
        self.last = self.machine.handle(event, self.now_s, self.jitter, omits_notify=self.omits)
        assert not (ended and self.last), "nothing follows ReportEnd"
        for action in self.last:
            self._carry_out(action)
        return self.last

    def _carry_out(self, action: Action) -> None:
        assert self.ended is None, "ReportEnd is the last action"
        match action:
            case SetTimer():
                assert action.at_s >= self.now_s
                self.armed_s = action.at_s
            case SendSubscribe(fresh=True):
                assert len(self.dialogs) <= self.omits, "an older dialog is kept only where another one replaces it"
                assert action.generation > max(self.dialogs, default=0)
                self.dialogs.append(action.generation)
                self.sent_s.append(self.now_s)
            case SendSubscribe() | SendCredentials() | SendUnsubscribe():
                assert action.generation == self.held
                self.unsubscribed |= isinstance(action, SendUnsubscribe)
                self.sent_s.append(self.now_s)
            case DropDialog():
                self.dialogs.remove(action.generation)
            case ReportOmittedNotify():
                self.omits = True
            case ReportLiveness():
                self.liveness = action.liveness
            case ReportEnd():
                assert self.held is None, "a dialog is forgotten before the end"
                self.ended, self.armed_s = action, None
            case ReportObservation():
                pass

    def run(self, for_s: float) -> list[Action]:
        """Lets time pass, and gives what the timers led to."""
        until_s, actions, fired = self.now_s + for_s, list[Action](), 0
        while self.armed_s is not None and self.armed_s <= until_s:
            fired += 1
            assert fired < 10_000, "timers run in circles"
            self.now_s, self.armed_s = self.armed_s, None
            actions += self.handle(TimerFired())
        self.now_s = until_s
        return actions

    def accept(self, expires_s: int = -1, code: int = 200) -> list[Action]:
        return self.handle(SubscribeAccepted(generation=self.machine.generation, code=code, expires_s=expires_s))

    def refuse(self, code: int, *, retry_after_s: int = -1, min_expires_s: int = -1, **more: bool) -> list[Action]:
        final = Final(code, "Phrase", retry_after_s, min_expires_s, local=more.pop("local", False))
        return self.handle(SubscribeFailed(generation=self.machine.generation, final=final, **more))

    def notify(
        self,
        state: str = "active",
        reason: str = "",
        *,
        expires_s: int = -1,
        retry_after_s: int = -1,
        body: bytes = b"",
    ) -> list[Action]:
        what = notify(state, reason, retry_after_s, body)
        return self.handle(NotifyReceived(generation=self.machine.generation, notify=what, expires_s=expires_s))

    def wait_s(self) -> float:
        """How long until the next step."""
        at_s = self.machine.snapshot().next_at_s
        assert at_s is not None
        return at_s - self.now_s


def active(expires_s: int = HOUR, **more: float) -> Play:
    """A machine with an active subscription of so many seconds, fresh."""
    play = Play(**more)  # type: ignore[arg-type]  # its own arguments
    play.handle(WatchRequested())
    play.accept(expires_s)
    play.notify()
    assert (play.state, play.liveness) == (State.ACTIVE, Liveness.LIVE)
    return play


def refreshing(expires_s: int = HOUR, **more: float) -> Play:
    """A machine whose first refresh is in flight."""
    play = active(expires_s, **more)
    play.run(play.wait_s())
    assert play.state is State.REFRESHING
    return play


def of(kind: type[A], actions: Iterable[Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def reported(actions: Iterable[Action]) -> list[tuple[Liveness, str]]:
    return [(action.liveness, action.reason) for action in of(ReportLiveness, actions)]


def test_start() -> None:
    """A SUBSCRIBE in a new dialog leaves at once; the status is UNKNOWN, and the wait for the answer is bounded."""
    play = Play()
    assert play.handle(WatchRequested()) == [
        SendSubscribe(generation=1, fresh=True, expires_s=HOUR, attempt=0),
        ReportLiveness(liveness=Liveness.UNKNOWN, reason="subscribing", error=None),
        SetTimer(at_s=1000 + life.TRANSACTION_S),
    ]
    assert play.state is State.INITIAL
    assert play.handle(WatchRequested()) == []


def test_established() -> None:
    """The NOTIFY is an observation and makes the status LIVE; the refresh is due before the expiry."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    assert play.accept(600) == [SetTimer(at_s=1000 + life.TIMER_N_S)]
    assert play.state is State.ACCEPTED
    actions = play.notify(body=b"<presence/>")
    assert [type(action) for action in actions] == [ReportObservation, ReportLiveness, SetTimer]
    assert reported(actions) == [(Liveness.LIVE, "")]
    assert play.armed_s == 1570
    assert play.machine.snapshot().expires_at_s == 1600
    assert play.notify(body=b"again") == [ReportObservation(notify=notify(body=b"again"))]


def test_accepted_202() -> None:
    """202 is a 2xx like any other (RFC 6665 section 8.3.1): only the NOTIFY says more."""
    play = Play()
    play.handle(WatchRequested())
    play.accept(600, code=202)
    assert (play.state, play.machine.snapshot().code) == (State.ACCEPTED, 202)
    play.notify()
    assert play.liveness is Liveness.LIVE


def test_shorter_expires() -> None:
    """The granted duration counts, and the next SUBSCRIBE asks for the full one again."""
    play = active(60, jitter=0.0)
    assert play.wait_s() == 30
    assert of(SendSubscribe, play.run(30)) == [SendSubscribe(generation=1, fresh=False, expires_s=HOUR, attempt=0)]


@pytest.mark.parametrize("expires_s", [-1, 10**6])
def test_expires_beyond_what_was_asked(expires_s: int) -> None:
    """A server may shorten the duration, not lengthen it; without Expires the requested duration counts."""
    assert active(expires_s).machine.snapshot().expires_at_s == 1000 + HOUR


def test_notify_before_2xx() -> None:
    """The NOTIFY counts at once, and the 2xx that follows sets the expiry."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    assert reported(play.notify()) == [(Liveness.LIVE, "")]
    assert play.state is State.ACTIVE
    play.accept(600)
    assert (play.state, play.armed_s) == (State.ACTIVE, 1570)


def test_notify_and_never_a_2xx() -> None:
    """The requested duration counts, and refreshes are tried; when they stay unanswered the status is STALE."""
    play = Play()
    play.handle(WatchRequested())
    play.notify()
    play.run(30)
    assert (play.liveness, play.machine.generation) == (Liveness.LIVE, 1)
    assert (Liveness.STALE, "no answer") in reported(play.run(HOUR - 30))


def test_notify_expires_is_authoritative() -> None:
    """The duration in a NOTIFY replaces that of the 2xx (section 4.1.3), in either order."""
    early, late = Play(jitter=0), active(600, jitter=0.0)
    early.handle(WatchRequested())
    early.notify(expires_s=100)
    early.accept(600)
    late.notify(expires_s=100)
    assert early.armed_s == late.armed_s == 1070


def test_no_notify_after_2xx() -> None:
    """A subscription without a NOTIFY within Timer N has failed, and is tried again in another dialog."""
    play = Play(observed=True)
    play.handle(WatchRequested())
    play.accept()
    assert play.run(life.TIMER_N_S - 0.1) == []
    actions = play.run(0.1)
    assert (actions[0], reported(actions)) == (DropDialog(generation=1), [(Liveness.STALE, "no NOTIFY")])
    assert isinstance(of(ReportLiveness, actions)[0].error, FetchTimedOut)
    assert of(SendSubscribe, play.run(2)) == [SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)]


def test_no_answer() -> None:
    """A driver that never reports the end of a request does not block the machine."""
    play = Play()
    play.handle(WatchRequested())
    assert reported(play.run(life.TRANSACTION_S)) == [(Liveness.UNKNOWN, "no answer")]
    assert play.state is State.WAITING


def test_pending() -> None:
    """A pending subscription keeps its dialog and is refreshed; it says nothing of the terminal until it is active."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    play.accept(600)
    actions = play.notify("pending", body=b"neutral")
    assert not of(ReportObservation, actions)
    assert reported(actions) == [(Liveness.UNKNOWN, "pending")]
    assert isinstance(of(ReportLiveness, actions)[0].error, WatcherRefused)
    assert of(SendSubscribe, play.run(570))[0].fresh is False
    assert not of(ReportLiveness, play.accept(600))
    assert play.state is State.PENDING
    assert reported(play.notify()) == [(Liveness.LIVE, "")]
    assert reported(play.notify("pending")) == [(Liveness.STALE, "pending")]


@pytest.mark.parametrize("reason", ["deactivated", "timeout"])
def test_terminated_comes_back_at_once(reason: str) -> None:
    """A SUBSCRIBE in a new dialog leaves at once, whatever retry-after says; the status is STALE until its NOTIFY."""
    play = active()
    play.run(60)
    actions = play.notify("terminated", reason, retry_after_s=900)
    assert actions[:2] == [DropDialog(generation=1), SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)]
    assert reported(actions) == [(Liveness.STALE, reason)]


def test_terminated_again_and_again() -> None:
    """Only the first termination in a row is followed at once; later ones meet the back-off."""
    play = active()
    waits = []
    for _ in range(12):
        play.notify("terminated", "deactivated")
        waits.append(play.wait_s() if play.state is State.WAITING else 0)
        play.run(waits[-1])
        play.accept()
        play.notify()
    assert waits == [0.0, 1.5, 3.0, 6.0, 12.0, 24.0, 45.0, 45.0, 45.0, 45.0, 45.0, 45.0]


@pytest.mark.parametrize("reason", ["probation", "giveup"])
def test_terminated_for_a_while(reason: str) -> None:
    """The next try is after retry-after, bounded, or after the back-off where retry-after is absent."""
    waits = []
    for retry_after_s in (-1, 0, 100, 10**9):
        play = active(jitter=0.0)
        assert reported(play.notify("terminated", reason, retry_after_s=retry_after_s)) == [(Liveness.STALE, reason)]
        waits.append(play.wait_s())
    assert waits == [1, 1, 100, life.MAX_RETRY_AFTER_S]


def test_terminated_rejected() -> None:
    """Rejected is a long stop; retry-after has no meaning for it."""
    play = active(jitter=0.0)
    actions = play.notify("terminated", "rejected", retry_after_s=1, body=b"no observation")
    assert not of(ReportObservation, actions)
    assert isinstance(of(ReportLiveness, actions)[0].error, WatcherRefused)
    assert play.wait_s() == life.LONG_STOP_S


def test_terminated_noresource() -> None:
    """Noresource ends the watch: section 4.1.3 says not to subscribe again."""
    play = active()
    actions = play.notify("terminated", "noresource")
    assert actions[0] == DropDialog(generation=1)
    assert play.ended
    assert isinstance(play.ended.error, TerminalUnknown)
    assert play.state is State.TERMINATED


def test_terminated_invariant() -> None:
    """Invariant ends the watch without an error: the last observation stays true without a subscription."""
    play = active()
    actions = play.notify("terminated", "invariant", body=b"<presence/>")
    assert [type(action) for action in actions] == [ReportObservation, DropDialog, ReportEnd]
    assert play.ended == ReportEnd(reason="invariant", error=None)


def test_terminated_invariant_of_nothing() -> None:
    """An invariant state that was never observed is subscribed to again."""
    play = Play(observed=True)
    play.handle(WatchRequested())
    play.accept()
    play.notify("terminated", "invariant")
    assert play.ended is None
    assert play.machine.generation == 2


@pytest.mark.parametrize("reason", ["", "whim"])
def test_terminated_unknown_reason(reason: str) -> None:
    """The next try is at once, or after retry-after where it is present."""
    at_once, later = active(), active(jitter=0.0)
    assert reported(at_once.notify("terminated", reason)) == [(Liveness.STALE, reason or "terminated")]
    later.notify("terminated", reason, retry_after_s=20)
    assert (at_once.machine.generation, later.machine.generation, later.wait_s()) == (2, 1, 20)


def test_terminated_body() -> None:
    """The body of a last NOTIFY is an observation; without a body nothing was observed and the status stays."""
    assert of(ReportObservation, active().notify("terminated", "timeout", body=b"<presence/>"))
    assert not of(ReportObservation, active().notify("terminated", "timeout"))


@pytest.mark.parametrize("code", [401, 407])
def test_challenge_is_answered_once(code: int) -> None:
    """The machine answers with digest once; a second challenge is a long stop."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    actions = play.refuse(code, can_authenticate=True)
    assert actions == [SendCredentials(generation=1, expires_s=HOUR)]
    actions = play.refuse(code, can_authenticate=True)
    assert isinstance(of(ReportLiveness, actions)[0].error, WatcherUnauthenticated)
    assert play.wait_s() == life.LONG_STOP_S
    refresh = refreshing()
    assert of(SendCredentials, refresh.refuse(code, can_authenticate=True))
    refresh.accept()
    assert (refresh.state, refresh.liveness) == (State.ACTIVE, Liveness.LIVE)


def test_challenge_is_answered_as_the_pace_allows() -> None:
    """A digest retry counts as a SUBSCRIBE; a NOTIFY during its wait does not cancel it."""
    play = active()
    for _ in range(life.BURST - 1):
        play.accept()
        play.handle(RefreshRequested())
    assert not of(SendCredentials, play.refuse(401, can_authenticate=True))
    play.notify(expires_s=600)
    assert of(SendCredentials, play.run(life.GAP_S))


def test_challenge_without_credentials() -> None:
    """Without credentials the first challenge is a long stop."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    play.refuse(401)
    assert play.wait_s() == life.LONG_STOP_S


def test_interval_too_brief() -> None:
    """Min-Expires is followed at once and remembered; a server that raises it each time meets the back-off."""
    play = Play(expires_s=60)
    play.handle(WatchRequested())
    assert of(SendSubscribe, play.refuse(423, min_expires_s=120))[0].expires_s == 120
    play.refuse(423, min_expires_s=121)
    assert play.wait_s() > 1
    assert of(SendSubscribe, play.run(2))[0].expires_s == 121
    play.accept(121)
    play.notify()
    assert of(SendSubscribe, play.run(play.wait_s()))[0].expires_s == 121


@pytest.mark.parametrize("min_expires_s", [-1, 0, 60, HOUR, life.LONGEST_EXPIRES_S + 1])
def test_interval_too_brief_beyond_bound(min_expires_s: int) -> None:
    """A Min-Expires that is absent, not above the requested duration, or absurd is a long stop."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    play.refuse(423, min_expires_s=min_expires_s)
    assert play.wait_s() == life.LONG_STOP_S


def test_refresh_481() -> None:
    """The server has lost the subscription: a SUBSCRIBE in a new dialog leaves at once, and the next such failure
    waits.
    """
    play = refreshing()
    actions = play.refuse(481)
    assert actions[:2] == [DropDialog(generation=1), SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)]
    assert reported(actions) == [(Liveness.STALE, "481 Phrase")]
    assert not of(SendSubscribe, play.refuse(481))
    away = refreshing()
    for _ in range(6):
        away.refuse(503, local=True)
        away.run(away.wait_s())
    assert of(SendSubscribe, away.refuse(481)), "a server that is back and has forgotten"
    assert not of(SendSubscribe, away.refuse(481))


@pytest.mark.parametrize("code", [404, 405, 410, 416, 480, 482, 483, 484, 485, 489, 501, 604])
def test_refresh_ends_the_subscription(code: int) -> None:
    """These codes end the SIP subscription itself (section 4.1.2.2): the status is STALE at once."""
    play = refreshing()
    assert reported(play.refuse(code)) == [(Liveness.STALE, f"{code} Phrase")]
    assert (play.state, play.held) == (State.WAITING, None)


@pytest.mark.parametrize(("code", "local"), [(500, False), (503, False), (408, False), (408, True), (503, True)])
def test_refresh_failure_keeps_the_subscription(code: int, local: bool) -> None:
    """The subscription is kept and refreshed again in its dialog; the status is LIVE until its expiry, unless the
    refresh was lost on its way.
    """
    play = refreshing(60)
    assert bool(of(ReportLiveness, play.refuse(code, local=local))) is local
    assert play.liveness is (Liveness.STALE if local else Liveness.LIVE)
    assert (play.state, play.machine.snapshot().code) == (State.ACTIVE, code)
    again = of(SendSubscribe, play.run(2))
    assert [action.fresh for action in again] == [False]
    play.refuse(code, local=local)
    while play.now_s < 1059:
        play.run(min(1, 1059.5 - play.now_s))
        if play.state is State.REFRESHING:
            play.refuse(code, local=local)
        assert play.liveness is (Liveness.STALE if local else Liveness.LIVE)
    actions = play.run(1060 - play.now_s)
    assert reported(actions) == ([] if local else [(Liveness.STALE, f"{code} Phrase")])
    assert play.liveness is Liveness.STALE


def test_notify_does_not_put_off_a_retry() -> None:
    """A NOTIFY with expires moves the expiry, and not the next try."""
    play = refreshing(60)
    play.refuse(503)
    play.notify(expires_s=1000)
    assert play.wait_s() == 0.75
    assert play.machine.snapshot().expires_at_s == play.now_s + 1000


@pytest.mark.parametrize("code", [400, 401, 403, 406, 407, 415, 420, 603])
def test_refresh_refusal_keeps_the_subscription(code: int) -> None:
    """The granted duration is used to its end; then the rest of the long stop that began with the refusal is waited
    out.
    """
    play = refreshing(60, jitter=0.0)
    refused_at_s = play.now_s
    assert not of(ReportLiveness, play.refuse(code))
    assert reported(play.run(60)) == [(Liveness.STALE, f"{code} Phrase")]
    assert len(play.sent_s) == 2
    assert play.armed_s == refused_at_s + life.LONG_STOP_S


def test_refresh_failure_with_the_dialog_gone() -> None:
    """No NOTIFY could arrive any more: the status is STALE at once, with or without a request."""
    answered, idle = refreshing(), active()
    assert reported(answered.refuse(503, dialog_gone=True)) == [(Liveness.STALE, "503 Phrase")]
    assert reported(idle.refuse(503, local=True, dialog_gone=True)) == [(Liveness.STALE, "Phrase")]
    assert idle.run(1.5)[0] == SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)


def test_refresh() -> None:
    """A refresh that is answered 2xx sets the next one; the NOTIFY that follows is an observation, no more."""
    play = refreshing(600, jitter=0.0)
    assert play.now_s == 1570
    assert play.accept(300) == [SetTimer(at_s=1570 + life.TIMER_N_S)]
    assert (play.state, play.liveness) == (State.ACTIVE, Liveness.LIVE)
    assert play.notify(body=b"<presence/>") == [
        ReportObservation(notify=notify(body=b"<presence/>")),
        SetTimer(at_s=1570 + 270),
    ]
    assert play.run(269) == []


@pytest.mark.parametrize("expires_s", [6, 60, HOUR])
def test_refresh_without_a_notify(expires_s: int) -> None:
    """Timer N runs from the first such refresh; later ones do not restart it. Then the status is STALE, and a SUBSCRIBE
    leaves in a new dialog.
    """
    play = refreshing(expires_s, jitter=0.0)
    first_s, refreshes = play.now_s, 0
    while play.liveness is Liveness.LIVE and play.now_s < first_s + 2 * life.TIMER_N_S:
        if play.state is State.REFRESHING:
            refreshes += 1
            assert not of(ReportLiveness, play.accept(expires_s))
        play.run(0.5)
    assert (play.now_s - first_s, play.omits) == (life.TIMER_N_S, True)
    assert refreshes == {6: 11, 60: 2, HOUR: 1}[expires_s]
    assert reported(play.last) == [(Liveness.STALE, "no NOTIFY after a refresh")]
    assert isinstance(of(ReportLiveness, play.last)[0].error, FetchTimedOut)
    assert [type(action) for action in play.last[:2]] == [ReportOmittedNotify, DropDialog]
    assert [(action.generation, action.fresh) for action in of(SendSubscribe, play.last)] == [(2, True)]
    play.accept(expires_s)
    assert reported(play.notify()) == [(Liveness.LIVE, "")]


@pytest.mark.parametrize("order", ["before the 2xx", "at the last moment", "of a change"])
def test_refresh_with_a_notify_in_time(order: str) -> None:
    """Any NOTIFY in the dialog stops Timer N; one that was late for one refresh does not serve the next."""
    play = refreshing(600)
    if order == "before the 2xx":
        play.notify()
    play.accept(600)
    if order != "before the 2xx":
        play.run(1 if order == "of a change" else life.TIMER_N_S - 0.1)
        play.notify()
    play.run(2 * life.TIMER_N_S)
    assert (play.liveness, play.omits, play.dialogs) == (Liveness.LIVE, False, [1])
    play.run(play.wait_s())
    play.accept(600)
    play.run(life.TIMER_N_S)
    assert (play.liveness, play.omits, play.dialogs) == (Liveness.STALE, True, [2])


def test_refresh_that_is_refused_needs_no_notify() -> None:
    """Timer N is of refreshes that the server accepted: from the first of these on, whatever comes between."""
    play = refreshing(600)
    play.refuse(503)
    play.run(play.wait_s())
    accepted_s = play.now_s
    play.accept(600)
    play.run(10)
    play.handle(RefreshRequested())
    play.refuse(503)
    while play.liveness is Liveness.LIVE and play.now_s < accepted_s + 2 * life.TIMER_N_S:
        play.run(0.25)
        if play.state is State.REFRESHING:
            play.refuse(503)
    assert play.now_s == accepted_s + life.TIMER_N_S


def test_refresh_204() -> None:
    """204 says that no NOTIFY follows (RFC 5839), so none is awaited; to a first SUBSCRIBE it says nothing."""
    play, first = refreshing(600), Play()
    play.accept(600, code=204)
    play.run(100)
    assert (play.liveness, play.dialogs) == (Liveness.LIVE, [1])
    first.handle(WatchRequested())
    first.accept(600, code=204)
    assert reported(first.run(life.TIMER_N_S))[-1] == (Liveness.UNKNOWN, "no NOTIFY")


def renewing(expires_s: int = 600, **more: float) -> Play:
    """A machine at a server that omits NOTIFYs after refreshes, with the SUBSCRIBE of its second dialog in flight."""
    play = active(expires_s, **more)
    play.omits = True
    assert [each.fresh for each in of(SendSubscribe, play.run(play.wait_s()))] == [True]
    assert (play.state, play.liveness, play.dialogs) == (State.INITIAL, Liveness.LIVE, [1, 2])
    return play


@pytest.mark.parametrize("order", ["2xx first", "NOTIFY first"])
@pytest.mark.parametrize("expires_s", [6, 60, HOUR])
def test_renewal_by_another_dialog(expires_s: int, order: str) -> None:
    """A new dialog is made, and the old one serves until the first NOTIFY of the new one: the status stays LIVE."""
    play = renewing(expires_s)
    for number in range(2, 30):
        assert play.dialogs == [number - 1, number]
        old = NotifyReceived(generation=number - 1, notify=notify(body=b"old"))
        assert play.handle(old) == [ReportObservation(notify=old.notify)]
        if order == "2xx first":
            play.accept(expires_s)
        assert play.notify(body=b"new")[:2] == [
            DropDialog(generation=number - 1),
            ReportObservation(notify=notify(body=b"new")),
        ]
        if order == "NOTIFY first":
            play.accept(expires_s)
        assert play.handle(old) == [], "late"
        assert not of(ReportLiveness, play.run(play.wait_s()))
    assert play.liveness is Liveness.LIVE


def test_renewal_that_fails() -> None:
    """A refusal keeps the older dialog, as after any failed refresh; silence after a 2xx gives both up."""
    for code, local, liveness, dialogs in (
        (503, False, Liveness.LIVE, [1]),
        (403, False, Liveness.LIVE, [1]),
        (408, True, Liveness.STALE, [1]),
        (404, False, Liveness.STALE, list[int]()),
    ):
        play = renewing()
        play.refuse(code, local=local, dialog_gone=True)
        assert (play.liveness, play.dialogs) == (liveness, dialogs)
    play = renewing(HOUR)
    sent_s = play.now_s
    play.run(1)
    play.accept(HOUR)
    assert reported(play.run(sent_s + life.TIMER_N_S - play.now_s)) == [(Liveness.STALE, "no NOTIFY")]
    assert play.dialogs == []
    play.run(2)
    assert play.dialogs == [3]
    play = renewing(600)
    play.refuse(503, dialog_gone=True)
    assert of(SendSubscribe, play.run(play.wait_s())) == [
        SendSubscribe(generation=3, fresh=True, expires_s=HOUR, attempt=1)
    ]
    assert play.dialogs == [1, 3]
    play.run(600)
    assert play.liveness is Liveness.STALE, "the older one has its own end"


@pytest.mark.parametrize("other", ["accepted", "refused", "NOTIFY in the older one"])
def test_renewal_keeps_timer_n(other: str) -> None:
    """A refresh that no NOTIFY followed counts from its own sending, also where a new dialog is under way since."""
    play = refreshing(HOUR)
    sent_s = play.now_s
    play.accept(HOUR)
    play.run(20)
    play.omits = True
    play.handle(RefreshRequested())
    assert play.dialogs == [1, 2]
    if other == "NOTIFY in the older one":
        play.handle(NotifyReceived(generation=1, notify=notify()))
        play.run(15)
        assert (play.liveness, play.dialogs) == (Liveness.LIVE, [1, 2])
        return
    if other == "accepted":
        play.accept(HOUR)
    else:
        play.refuse(503, retry_after_s=60, dialog_gone=True)
    actions = play.run(sent_s + life.TIMER_N_S - play.now_s)
    assert reported(actions) == [(Liveness.STALE, "no NOTIFY after a refresh")]
    play.run(2)
    assert play.dialogs == ([2] if other == "accepted" else [3])
    assert reported(play.notify()) == [(Liveness.LIVE, "")]


@pytest.mark.parametrize("how", ["terminated", "gone", "expired"])
def test_older_dialog_ends_first(how: str) -> None:
    """The status is STALE until the first NOTIFY of the newer dialog, whose SUBSCRIBE has left already."""
    play = renewing(60)
    if how == "terminated":
        actions = play.handle(NotifyReceived(generation=1, notify=notify("terminated", "deactivated", body=b"x")))
        assert of(ReportObservation, actions)
    elif how == "gone":
        actions = play.handle(SubscribeFailed(generation=1, final=Final(503, "gone", local=True), dialog_gone=True))
    else:
        actions = play.run(1060 - play.now_s)
    assert reported(actions) == [(Liveness.STALE, {"terminated": "deactivated", "gone": "503 gone"}.get(how, how))]
    assert (play.dialogs, of(SendSubscribe, actions)) == ([2], [])
    assert reported(play.notify()) == [(Liveness.LIVE, "")]


def test_stop_between_two_dialogs() -> None:
    """The newer dialog is dropped and the older one unsubscribed; the server's last NOTIFY ends it."""
    play = renewing()
    actions = play.handle(WatchCancelled())
    assert actions[:2] == [DropDialog(generation=2), SendUnsubscribe(generation=1)]
    assert of(ReportEnd, play.notify("terminated", "timeout"))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (403, WatcherRefused),
        (603, WatcherRefused),
        (404, TerminalUnknown),
        (604, TerminalUnknown),
        *((code, PresenceMisconfigured) for code in (489, 405, 406, 415, 420)),
    ],
)
def test_long_stop(code: int, error: type[TerminalStatusError]) -> None:
    """After a refusal the next try is an hour later, with or without Retry-After."""
    play = Play(jitter=0.99)
    play.handle(WatchRequested())
    actions = play.refuse(code, retry_after_s=1)
    assert reported(actions) == [(Liveness.UNKNOWN, f"{code} Phrase")]
    assert type(of(ReportLiveness, actions)[0].error) is error
    assert HOUR <= play.wait_s() <= HOUR * 1.1
    assert len(of(SendSubscribe, play.run(play.wait_s()))) == 1


@pytest.mark.parametrize(
    ("code", "local"),
    [(408, False), (480, False), (500, False), (503, False), (504, False), (302, False), (503, True), (408, True)],
)
def test_back_off(code: int, local: bool) -> None:
    """The wait doubles, with jitter, to its bound; each try has the number of failures, for the choice of a route."""
    play = Play()
    play.handle(WatchRequested())
    waits = []
    for failed in range(1, 10):
        play.refuse(code, local=local)
        waits.append(play.wait_s())
        assert of(SendSubscribe, play.run(waits[-1]))[0].attempt == failed
    assert waits == [0.75, 1.5, 3, 6, 12, 24, 45, 45, 45]


def test_retry_after() -> None:
    """Retry-After is waited out, up to a bound, and never shortens the back-off."""
    waits = []
    for retry_after_s in (0, 7, 10**9):
        play = Play(jitter=0)
        play.handle(WatchRequested())
        play.refuse(503, retry_after_s=retry_after_s)
        waits.append(play.wait_s())
    assert waits == [1, 7, life.MAX_RETRY_AFTER_S]


def test_back_off_begins_anew() -> None:
    """A subscription that has lasted for a while clears the count of failures; one that ended at once does not."""
    for held_s, attempt in ((1, 6), (life.STEADY_S, 1)):
        play = Play()
        play.handle(WatchRequested())
        for _ in range(5):
            play.refuse(503)
            play.run(play.wait_s())
        play.accept()
        play.notify()
        play.run(held_s)
        play.notify("terminated", "deactivated")
        assert of(SendSubscribe, [*play.last, *play.run(life.MAX_BACKOFF_S)])[0].attempt == attempt


def test_bad_address_ends() -> None:
    """An address that PJSIP cannot take ends the watch."""
    play = Play()
    play.handle(WatchRequested())
    play.refuse(BAD_ADDRESS, local=True)
    assert play.ended
    assert isinstance(play.ended.error, InvalidAddress)


def test_transport_lost_in_flight() -> None:
    """The request has failed, and is tried again after the back-off."""
    first, refresh = Play(), refreshing(600)
    first.handle(WatchRequested())
    assert reported(first.handle(TransportLost())) == [(Liveness.UNKNOWN, "transport lost")]
    assert first.wait_s() == 0.75
    assert reported(refresh.handle(TransportLost())) == [(Liveness.STALE, "transport lost")]
    assert (refresh.state, refresh.wait_s()) == (State.ACTIVE, 0.75)
    refresh.handle(TransportLost())
    assert refresh.wait_s() == 0.75, "once is enough"


def test_transport_lost_while_active() -> None:
    """The subscription stays, and a refresh within a second shows whether the server still has it."""
    play = active(jitter=0.25)
    assert play.handle(TransportLost()) == [SetTimer(at_s=1000.25)]
    assert of(SendSubscribe, play.run(1))[0].fresh is False
    assert play.liveness is Liveness.LIVE


@pytest.mark.parametrize("answer", ["2xx", "NOTIFY"])
def test_server_known_to_be_away(answer: str) -> None:
    """The subscription is kept, and STALE at once, until a message of the server comes; new SUBSCRIBEs wait for it."""
    play = active(jitter=0.25)
    armed_s = play.armed_s
    assert reported(play.handle(TransportLost(certain=True))) == [(Liveness.STALE, "contact lost")]
    assert play.armed_s == armed_s
    play.handle(TransportLost())
    play.run(1)
    assert (play.state, play.held) == (State.REFRESHING, 1)
    actions = play.accept(600) if answer == "2xx" else play.notify(body=b"<presence/>")
    assert reported(actions) == [(Liveness.LIVE, "")]


@pytest.mark.parametrize("where", ["2xx", "NOTIFY", "both"])
def test_expires_zero(where: str) -> None:
    """Each NOTIFY is an observation, and none makes the status LIVE; the tries become rare."""
    play = Play()
    play.handle(WatchRequested())
    observed = 0
    while play.now_s < 1000 + HOUR:
        if play.state is State.INITIAL:
            play.accept(0 if where != "NOTIFY" else HOUR)
            observed += len(of(ReportObservation, play.notify(expires_s=0 if where != "2xx" else -1)))
            assert play.liveness is Liveness.STALE
        else:
            play.run(1)
    assert 70 <= observed <= len(play.sent_s) <= 100


def test_dead_dialog_is_ignored() -> None:
    """Events of another generation than the dialog in use change nothing."""
    play = active()
    play.run(60)
    play.notify("terminated", "deactivated")
    before = play.machine.snapshot()
    for generation in (0, 1, 3):
        assert play.handle(NotifyReceived(generation=generation, notify=notify(body=b"old"))) == []
        assert play.handle(SubscribeAccepted(generation=generation)) == []
        assert play.handle(SubscribeFailed(generation=generation, final=Final(403, ""), dialog_gone=True)) == []
    assert play.machine.snapshot() == before


@pytest.mark.parametrize("state", [State.ACCEPTED, State.ACTIVE, State.PENDING, State.REFRESHING])
def test_stop(state: State) -> None:
    """SUBSCRIBE with `Expires: 0` leaves in the dialog; the last NOTIFY ends the watch and is not an observation."""
    play = Play()
    play.handle(WatchRequested())
    play.accept(600)
    if state is not State.ACCEPTED:
        play.notify("pending" if state is State.PENDING else "active")
    if state is State.REFRESHING:
        play.run(570)
    assert play.state is state
    assert of(SendUnsubscribe, play.handle(WatchCancelled())) == [SendUnsubscribe(generation=1)]
    assert play.accept(0) == []
    assert play.notify() == []
    actions = play.notify("terminated", "timeout", body=b"<presence/>")
    assert actions == [DropDialog(generation=1), ReportEnd(reason=UNWANTED, error=None)]


def test_stop_without_dialog() -> None:
    """The watch ends at once; a NOTIFY that still comes is answered 481."""
    asking, waiting, idle = Play(), Play(), Play()
    for play in (asking, waiting):
        play.handle(WatchRequested())
    waiting.refuse(503)
    assert asking.handle(WatchCancelled()) == [DropDialog(generation=1), ReportEnd(reason=UNWANTED, error=None)]
    assert waiting.handle(WatchCancelled()) == idle.handle(WatchCancelled()) == [ReportEnd(reason=UNWANTED, error=None)]


def test_stop_without_help_of_the_server() -> None:
    """A refusal ends the watch too, a challenge is answered once, and silence ends it within Timer N."""
    refused, challenged, silent = active(), active(), active()
    for play in (refused, challenged, silent):
        play.handle(WatchCancelled())
    assert of(ReportEnd, refused.refuse(481))
    assert of(SendCredentials, challenged.refuse(401, can_authenticate=True)) == [
        SendCredentials(generation=1, expires_s=0)
    ]
    assert of(ReportEnd, challenged.refuse(401, can_authenticate=True))
    assert of(ReportEnd, silent.run(life.TRANSACTION_S))


def test_stop_when_the_pace_is_used_up() -> None:
    """The unsubscribe waits until the pace allows it; the watch ends no later than without that wait."""
    play = active()
    for _ in range(life.BURST - 1):
        play.handle(RefreshRequested())
        play.accept()
    assert not of(SendUnsubscribe, play.handle(WatchCancelled()))
    assert of(SendUnsubscribe, play.run(life.GAP_S))
    assert play.handle(TransportLost()) == []
    assert of(ReportEnd, play.run(life.TRANSACTION_S - life.GAP_S))


def test_wanted_again_while_ending() -> None:
    """The old dialog is dropped, and a SUBSCRIBE in a new one leaves as the pace allows."""
    play = active()
    play.run(10)
    play.handle(WatchCancelled())
    actions = play.handle(WatchRequested())
    assert actions[:2] == [DropDialog(generation=1), SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=0)]
    assert reported(actions) == [(Liveness.STALE, "subscribing")]


def unusable(play: Play, reason: str = "cseq", generation: int | None = None) -> list[Action]:
    """A NOTIFY of the dialog in use that was refused."""
    return play.handle(
        NotifyUnusable(generation=play.machine.generation if generation is None else generation, reason=reason)
    )


def test_refused_notify() -> None:
    """Its content is unknown: STALE with the reason, and a SUBSCRIBE in a new dialog; while the watch ends, nothing
    changes.
    """
    for reason, why in UNUSABLE.items():
        for play in (active(), refreshing()):
            actions = unusable(play, reason)
            assert (actions[0], reported(actions)) == (
                DropDialog(generation=1),
                [(Liveness.STALE, f"NOTIFY refused: {why}")],
            )
            assert isinstance(of(ReportLiveness, actions)[0].error, PresenceUnavailable)
            assert of(SendSubscribe, actions) == [SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)]
            assert unusable(play, reason, generation=1) == []
            play.accept()
            assert reported(play.notify()) == [(Liveness.LIVE, "")]
    for play in (Play(observed=True), Play()):
        play.handle(WatchRequested())
        actions = unusable(play)
        assert of(SendSubscribe, actions) == [SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1)]
    play = renewing()
    actions = unusable(play, generation=1)
    assert (play.dialogs, reported(actions)[0][0], of(SendSubscribe, actions)) == ([2], Liveness.STALE, [])
    assert reported(play.notify()) == [(Liveness.LIVE, "")]
    play = renewing()
    assert reported(unusable(play))[0][0] is Liveness.STALE
    assert play.dialogs == [3]
    play = active()
    play.handle(WatchCancelled())
    assert unusable(play) == []
    play.notify("terminated")
    assert play.ended is not None


def test_refused_notify_again_and_again() -> None:
    """Only the first in a row is followed at once; later ones meet the back-off."""
    play, waits_s = active(), list[float]()
    for _ in range(4):
        before_s = play.now_s
        unusable(play)
        while not play.dialogs:
            play.run(0.5)
        waits_s.append(play.now_s - before_s)
        play.accept()
        play.notify()
    assert waits_s[0] == 0
    assert waits_s[1:] == sorted(waits_s[1:])
    assert waits_s[1] > 0


def test_refresh_by_hand() -> None:
    """The next try moves to now: a refresh, or the end of a long stop; the pace is kept."""
    play, stopped = active(), Play()
    assert of(SendSubscribe, play.handle(RefreshRequested()))[0].fresh is False
    assert play.handle(RefreshRequested()) == []
    stopped.handle(WatchRequested())
    stopped.refuse(403)
    for _ in range(20):
        stopped.handle(RefreshRequested())
        stopped.refuse(403)
    assert len(stopped.sent_s) == life.BURST


def test_fresh_dialog_by_hand() -> None:
    """The old dialog is dropped for a new one, which may take another transport or the best route."""
    play = refreshing(600)
    play.refuse(503, local=True)
    again = of(SendSubscribe, play.handle(RefreshRequested(fresh=True)))
    assert [(action.fresh, action.attempt) for action in again] == [(True, 0)], "failures elsewhere do not count"
    play = active()
    actions = play.handle(RefreshRequested(fresh=True))
    assert actions[:2] == [DropDialog(generation=1), SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=0)]
    assert reported(actions) == [(Liveness.STALE, "asked afresh")]


def test_who_is_worth_asking_again_when_the_server_is_back() -> None:
    """A server that could not answer, and not one that has refused."""
    away, refused, well = Play(), Play(), active()
    away.handle(WatchRequested())
    refused.handle(WatchRequested())
    assert not away.machine.waits_for_server
    away.refuse(503, local=True)
    refused.refuse(403)
    assert [play.machine.waits_for_server for play in (away, refused, well)] == [True, False, False]


def test_timer_that_fires_early() -> None:
    """The timer is armed again, and nothing else happens."""
    play = active(600, jitter=0.0)
    assert play.handle(TimerFired()) == [SetTimer(at_s=1570)]


def test_snapshot() -> None:
    """The admin view says where a machine stands, why, and what comes next when."""
    play = Play(jitter=0)
    assert play.machine.snapshot().next_action == ""
    seen = []
    steps: list[Callable[[], object]] = [
        lambda: play.handle(WatchRequested()),
        lambda: play.refuse(503),
        lambda: play.run(1),
        lambda: play.accept(600),
        lambda: play.notify(),
        lambda: play.run(570),
        lambda: play.handle(WatchCancelled()),
    ]
    for step in steps:
        step()
        shot = play.machine.snapshot()
        seen.append((shot.state.value, shot.since_s, shot.code, shot.reason, shot.next_action, shot.next_at_s))
    assert seen == [
        ("initial", 1000, 0, "", "await answer", 1035),
        ("waiting", 1000, 503, "503 Phrase", "subscribe", 1001),
        ("initial", 1001, 503, "503 Phrase", "await answer", 1036),
        ("accepted", 1001, 200, "503 Phrase", "await NOTIFY", 1033),
        ("active", 1001, 200, "", "refresh", 1571),
        ("refreshing", 1571, 200, "", "await answer", 1601),
        ("ending", 1571, 200, "", "await NOTIFY", 1606),
    ]


# What holds whatever the server does.


def pace_holds(sent_s: list[float]) -> bool:
    """At most BURST + W / GAP_S in any W seconds: a bucket of BURST that loses one every GAP_S never overflows."""
    level, before_s = 0.0, 0.0
    for at_s in sent_s:
        level = max(0.0, level - (at_s - before_s) / life.GAP_S) + 1
        before_s = at_s
        if level > life.BURST + 1e-6:
            return False
    return True


JITTER = st.floats(0, 1, exclude_max=True)
CODES = st.sampled_from([302, *range(400, 424), *range(480, 490), 500, 501, 503, 504, 600, 603, 604])
SECONDS = st.sampled_from([-1, 0, 1, 2, 3, 10, 31, 60, 600, 3600, 7200, 10**6])
STATES = st.sampled_from(["active", "active", "active", "pending", "terminated", "", "strange"])
REASONS = st.sampled_from(
    ["", "deactivated", "probation", "rejected", "timeout", "giveup", "noresource", "invariant", "strange"]
)
GENERATIONS = st.sampled_from([0, 0, 0, 0, 1, 2, -1])
"""How far behind the present dialog an event is; an older dialog may have been returned to."""

Move = Callable[[Play], object]


def behind(event: SubscribeAccepted | SubscribeFailed | NotifyReceived, lag: int) -> Move:
    return lambda play: play.handle(replace(event, generation=play.machine.generation - lag))


FINALS = st.builds(Final, CODES, st.just("x"), SECONDS, SECONDS, st.booleans())
NOTIFIES = st.builds(notify, STATES, REASONS, SECONDS, st.sampled_from([b"", b"<presence/>"]))
ANSWERS: st.SearchStrategy[Move] = st.one_of(
    st.builds(
        behind,
        st.builds(SubscribeAccepted, generation=st.just(0), code=st.sampled_from([200, 200, 204]), expires_s=SECONDS),
        GENERATIONS,
    ),
    st.builds(
        behind,
        st.builds(
            SubscribeFailed,
            generation=st.just(0),
            final=FINALS,
            can_authenticate=st.booleans(),
            dialog_gone=st.booleans(),
        ),
        GENERATIONS,
    ),
    st.builds(
        behind,
        st.builds(NotifyUnusable, generation=st.just(0), reason=st.sampled_from(sorted(UNUSABLE))),
        GENERATIONS,
    ),
    st.builds(
        behind, st.builds(NotifyReceived, generation=st.just(0), notify=NOTIFIES, expires_s=SECONDS), GENERATIONS
    ),
)


def passing(for_s: float) -> Move:
    return lambda play: play.run(for_s)


def telling(event: Event) -> Move:
    return lambda play: play.handle(event)


def omitting(omits: bool) -> Move:
    return lambda play: setattr(play, "omits", omits or len(play.dialogs) > 1)


FORCED: list[Event] = [RefreshRequested(), RefreshRequested(fresh=True), TransportLost(), TimerFired()]
SMOOTH: Move = lambda play: (play.run(0.1), play.accept(60), play.notify(expires_s=60))  # noqa: E731  # a value as others
WORLD = st.one_of(
    ANSWERS,
    ANSWERS,
    st.builds(passing, st.floats(0, 5) | st.sampled_from([1, 30, 32, 35, 60, 600, 4000, 10**4])),
    st.sampled_from([SMOOTH, *map(telling, FORCED), *map(omitting, (True, True, False))]),
)
STORY = st.lists(st.tuples(WORLD, JITTER), max_size=40)


def play_story(play: Play, story: list[tuple[Move, float]], check: Callable[[], object]) -> None:
    """Plays `story`, checking after each handled event."""
    plain = play.handle

    def checked(event: Event) -> list[Action]:
        actions = plain(event)
        check()
        return actions

    play.handle = checked  # type: ignore[method-assign]  # so that timers that fire within a move are checked too
    play.handle(WatchRequested())
    for move, jitter in story:
        play.jitter = jitter
        move(play)


@settings(deadline=None)
@given(STORY)
def test_pace_holds_whatever_the_server_does(story: list[tuple[Move, float]]) -> None:
    """No more SUBSCRIBEs leave than the stated rate, digest retries, forced ones and the last one among them."""
    play = Play()
    play_story(play, story, lambda: None)
    play.handle(WatchCancelled())
    play.run(life.TRANSACTION_S)
    assert pace_holds(play.sent_s)


@settings(deadline=None)
@given(STORY)
def test_always_a_next_step_or_a_stated_end(story: list[tuple[Move, float]]) -> None:
    """After any event a timer is armed within bounds, or the end has been stated and nothing follows it."""
    play = Play()

    def check() -> None:
        if play.ended:
            assert (play.armed_s, play.state) == (None, State.TERMINATED)
            return
        assert play.armed_s is not None
        longest_s = 1.1 * life.LONG_STOP_S if play.state is State.WAITING else life.LONGEST_EXPIRES_S
        if play.state in {State.INITIAL, State.ACCEPTED, State.REFRESHING, State.ENDING}:
            longest_s = life.TRANSACTION_S
        assert play.now_s <= play.armed_s <= play.now_s + longest_s + 1e-6

    play_story(play, story, check)


@settings(deadline=None)
@given(STORY)
def test_live_only_with_a_subscription(story: list[tuple[Move, float]]) -> None:
    """LIVE is said only while a NOTIFY has made a dialog active and its duration, as last stated, is not over, and no
    longer than Timer N after the first accepted refresh that no NOTIFY has followed."""
    play = Play()
    active_until: dict[int, tuple[bool, float]] = {}
    sent_s = due_s = math.inf
    quiet = False
    plain = play.machine.handle

    class Watched:
        """Sees the same events as the machine, with a simpler mind."""

        def __getattr__(self, name: str) -> object:
            return getattr(machine, name)

        def handle(self, event: Event, now_s: float, jitter: float, *, omits_notify: bool) -> list[Action]:
            nonlocal sent_s, due_s, quiet
            if isinstance(event, SubscribeAccepted | NotifyReceived) and event.generation in active_until:
                is_active, until_s = active_until[event.generation]
                counts = event.expires_s >= 0
                if isinstance(event, NotifyReceived):
                    is_active, quiet, due_s = event.notify.state not in {"pending", "terminated"}, False, math.inf
                elif play.machine._watch.in_flight and event.generation == play.machine.generation:  # noqa: SLF001  # once
                    due_s = min(due_s, sent_s + life.TIMER_N_S) if quiet and event.code != 204 else due_s
                    due_s = math.inf if quiet and event.code == 204 else due_s
                else:
                    counts = False
                active_until[event.generation] = is_active, now_s + event.expires_s if counts else until_s
            actions = plain(event, now_s, jitter, omits_notify=omits_notify)
            for action in actions:
                if isinstance(action, DropDialog):
                    was_active, _ = active_until.pop(action.generation)
                    due_s = math.inf if was_active else due_s
                if isinstance(action, SendSubscribe):
                    sent_s, quiet = now_s, not action.fresh
                if isinstance(action, SendSubscribe) and action.fresh:
                    active_until[action.generation] = False, now_s + 10**6
            return actions

    machine = play.machine
    play.machine = Watched()  # type: ignore[assignment]  # all that is used of it

    def check() -> None:
        if play.liveness is Liveness.LIVE and not play.ended:
            assert any(is_active and play.now_s < until_s for is_active, until_s in active_until.values())
            assert play.now_s < due_s

    play_story(play, story, check)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 31), JITTER, st.booleans()), min_size=1),
    st.sampled_from([6, 60, HOUR]),
)
def test_renewal_never_flaps(renewals: list[tuple[float, float, bool]], expires_s: int) -> None:
    """Whenever within Timer N and before the expiry an omitting server sends the NOTIFY, it is LIVE throughout."""
    play = renewing(expires_s)
    for after_s, jitter, notify_first in renewals:
        play.jitter = jitter
        left_s = (play.machine.snapshot().expires_at_s or 0) - play.now_s
        if not notify_first:
            play.accept(expires_s)
        assert not of(ReportLiveness, play.run(min(after_s, left_s * 0.9)))
        assert not of(ReportLiveness, play.notify(expires_s=expires_s))
        play.accept(expires_s)
        assert len(play.dialogs) == 1
        assert not of(ReportLiveness, play.run(play.wait_s()))
        assert len(play.dialogs) == 2


@settings(deadline=None)
@given(STORY, STORY)
def test_stop_ends_in_bounded_time(story: list[tuple[Move, float]], epilogue: list[tuple[Move, float]]) -> None:
    """Wherever a story has led and whatever follows, a stop forgets the dialog and ends, and nothing is asked again."""
    play = Play()
    play_story(play, story, lambda: None)
    had_subscription = play.state in {State.ACCEPTED, State.ACTIVE, State.PENDING, State.REFRESHING} or (
        len(play.dialogs) > 1
    )
    stopped_s, fresh = play.now_s, play.machine._watch.generations  # noqa: SLF001  # dialogs made so far
    play.handle(WatchCancelled())
    for move, jitter in epilogue:
        assert play.ended or play.now_s < stopped_s + life.TRANSACTION_S
        play.jitter = jitter
        move(play)
    play.run(life.TRANSACTION_S)
    assert play.ended
    assert (play.held, play.armed_s, play.machine._watch.generations) == (None, None, fresh)  # noqa: SLF001
    if not epilogue:
        assert play.unsubscribed is had_subscription
    assert all(
        play.handle(event) == [] for event in (WatchRequested(), TimerFired(), TransportLost(), RefreshRequested())
    )


@settings(deadline=None)
@given(st.lists(st.tuples(WORLD, JITTER, st.floats(-100, 0)), max_size=30))
def test_time_that_goes_back_does_no_harm(story: list[tuple[Move, float, float]]) -> None:
    """A clock that jumps back is held at the latest time seen: no timer is armed before it, and the pace holds."""
    play = Play()
    latest_s = play.now_s

    def check() -> None:
        nonlocal latest_s
        latest_s = max(latest_s, play.now_s)
        assert all(action.at_s >= latest_s for action in of(SetTimer, play.last))

    back = iter([jump for _, _, jump in story])

    def jumping(move: Move) -> Move:
        def jump(play: Play) -> None:
            play.now_s += next(back)
            move(play)

        return jump

    play_story(play, [(jumping(move), jitter) for move, jitter, _ in story], check)


@given(
    expires_s=st.integers(2, 2 * HOUR),
    jitters=st.lists(JITTER, min_size=4, max_size=60),
    finals=st.lists(st.builds(Final, st.sampled_from([400, 403, 408, 423, 500, 503, 600, 603]), st.just("x"), SECONDS)),
)
def test_failed_refresh_keeps_the_subscription(expires_s: int, jitters: list[float], finals: list[Final]) -> None:
    """However the refreshes fail, it is kept until its own expiry, LIVE unless an answer stayed away."""
    play = Play(jitter=jitters[0], expires_s=2 * HOUR)
    play.handle(WatchRequested())
    play.accept(expires_s)
    play.notify()
    expiry_s = play.now_s + expires_s
    for index in range(60):
        play.jitter = jitters[index % len(jitters)]
        if play.armed_s is None or play.armed_s >= expiry_s:
            break
        play.run(play.armed_s - play.now_s)
        assert play.held == 1
        if finals:
            assert play.liveness is Liveness.LIVE
        if finals and play.state is State.REFRESHING:
            play.handle(SubscribeFailed(generation=1, final=finals[index % len(finals)]))
            assert play.liveness is Liveness.LIVE
            assert len(play.sent_s) >= 2
    else:
        pytest.fail("more tries than the pace of the back-off allows")
    play.run(max(0.0, expiry_s - play.now_s))
    assert play.liveness is Liveness.STALE
    assert play.ended is None


@given(st.floats(0.001, life.LONGEST_EXPIRES_S), JITTER)
def test_refresh_comes_before_expiry(expires_s: float, jitter: float) -> None:
    """For any duration and any jitter the refresh is before the expiry, and at most a tenth before its latest time."""
    delay_s = life.refresh_delay_s(expires_s, jitter)
    assert 0 < delay_s < expires_s
    if expires_s >= 2:
        latest_s = max(1, expires_s - 30, expires_s / 2)
        assert latest_s * 0.9 - 1e-9 <= delay_s <= latest_s


@given(st.integers(0, 10**9), JITTER)
def test_back_off_is_bounded(failures: int, jitter: float) -> None:
    """It grows to its bound, whatever the count of failures."""
    assert 0.5 <= life.backoff_s(failures, jitter) <= life.MAX_BACKOFF_S
    assert life.backoff_s(failures, jitter) <= life.backoff_s(failures + 1, jitter)


def _deactivating(play: Play) -> None:
    play.accept(HOUR)
    play.notify()
    play.notify("terminated", "deactivated")


def _unusable(play: Play) -> None:
    play.accept(HOUR)
    play.notify()
    unusable(play)


HOSTILE: dict[str, tuple[Move, int]] = {
    "refuses each digest": (lambda play: play.refuse(401, can_authenticate=True), 2),
    "raises Min-Expires each time": (lambda play: play.refuse(423, min_expires_s=play.machine._watch.asked_s + 1), 100),  # noqa: SLF001
    "knows no dialog": (lambda play: play.refuse(481), 100),
    "asks to come back now": (lambda play: play.refuse(503, retry_after_s=0), 100),
    "terminates at once": (lambda play: play.notify("terminated", "timeout"), 100),
    "grants and deactivates": (_deactivating, 100),
    "sends NOTIFYs that cannot be used": (_unusable, 100),
    "refuses": (lambda play: play.refuse(403), 1),
    "is silent": (lambda play: None, 60),
}


@pytest.mark.parametrize("server", HOSTILE)
def test_hostile_server_for_an_hour(server: str) -> None:
    """Each hostile server gets few SUBSCRIBEs in an hour, and never more than the stated rate."""
    answer, most = HOSTILE[server]
    play = Play()
    play.handle(WatchRequested())
    answered = 0
    while play.now_s < 1000 + HOUR:
        while len(play.sent_s) > answered:
            answered = len(play.sent_s)
            answer(play)
        play.run(0.25)
    assert len(play.sent_s) <= most
    assert pace_holds(play.sent_s)
