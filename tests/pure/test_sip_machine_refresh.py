"""The life of one watch: its refreshes, and its renewal by another dialog (RFC 6665 section 4.1.2)."""

import pytest

from app.domain.errors import (
    FetchTimedOut,
    PresenceUnavailable,
)
from app.domain.statuses import Liveness
from app.sip.headers import Final
from app.sip.machine import timing as life
from app.sip.machine.actions import (
    DropDialog,
    ReportLiveness,
    ReportObservation,
    ReportOmittedNotify,
    SendSubscribe,
    SetTimer,
)
from app.sip.machine.events import (
    NotifyReceived,
    RefreshRequested,
    SubscribeFailed,
    WatchRequested,
)
from app.sip.machine.states import State
from tests.support.sip_machine import HOUR, Play, active, notify, of, refreshing, renewing, reported


def test_refresh_481() -> None:
    """The server has lost the SIP subscription: a SUBSCRIBE in a new dialog leaves at once; after the next such failure
    it waits."""
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
    """The SIP subscription is kept and refreshed again in its dialog. The status is LIVE until its expiry; it is STALE
    at once where the refresh was lost on its way."""
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
    """A NOTIFY with expires moves the expiry, but not the next SUBSCRIBE."""
    play = refreshing(60)
    play.refuse(503)
    play.notify(expires_s=1000)
    assert play.wait_s() == 0.75
    assert play.machine.snapshot().expires_at_s == play.now_s + 1000


@pytest.mark.parametrize("code", [302, 400, 401, 402, 403, 406, 407, 415, 420, 422, 494, 499, 600, 603, 606])
def test_refresh_refusal_keeps_the_subscription(code: int) -> None:
    """The granted duration is used to its end. The long stop counts from the refusal; its rest is waited out."""
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
    """A refresh that is answered 2xx sets the next one; the NOTIFY that follows is only an observation."""
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
    """Timer N runs from the first such refresh; later ones do not restart it. When it fires, the status is STALE, and a
    SUBSCRIBE leaves in a new dialog."""
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
    """Any NOTIFY in the dialog stops Timer N; a NOTIFY that was late for one refresh does not count for the next."""
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
    """Timer N counts from the first refresh that the server accepted, whatever refused refreshes come in between."""
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
    """204 says that no NOTIFY follows (RFC 5839), so the machine awaits none; to a first SUBSCRIBE 204 says nothing."""
    play, first = refreshing(600), Play()
    play.accept(600, code=204)
    play.run(100)
    assert (play.liveness, play.dialogs) == (Liveness.LIVE, [1])
    first.handle(WatchRequested())
    first.accept(600, code=204)
    assert reported(first.run(life.TIMER_N_S))[-1] == (Liveness.UNKNOWN, "no NOTIFY")


@pytest.mark.parametrize("order", ["2xx first", "NOTIFY first"])
@pytest.mark.parametrize("expires_s", [6, 60, HOUR])
def test_renewal_by_another_dialog(expires_s: int, order: str) -> None:
    """The machine makes a new dialog and uses the old one until the first NOTIFY of the new one: the status stays
    LIVE."""
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
    """A refusal keeps the older dialog, as after any failed refresh; where no NOTIFY follows a 2xx, both dialogs are
    given up."""
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
    """Timer N of a refresh that no NOTIFY followed counts from that refresh, even where a new dialog was begun
    since."""
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
    """The status is STALE until the first NOTIFY of the newer dialog, whose SUBSCRIBE was sent before."""
    play = renewing(60)
    if how == "terminated":
        actions = play.handle(NotifyReceived(generation=1, notify=notify("terminated", "deactivated", body=b"x")))
        assert of(ReportObservation, actions)
    elif how == "gone":
        actions = play.handle(SubscribeFailed(generation=1, final=Final(503, "gone", local=True), dialog_gone=True))
    else:
        actions = play.run(1060 - play.now_s)
    assert reported(actions) == [(Liveness.STALE, "deactivated" if how == "terminated" else how)]
    assert isinstance(of(ReportLiveness, actions)[0].error, PresenceUnavailable)
    assert (play.dialogs, of(SendSubscribe, actions)) == ([2], [])
    assert reported(play.notify()) == [(Liveness.LIVE, "")]
