"""The life of a watch: each row of docs/sip.md's table, by RFC 6665.

`LIFE_CYCLE` in `tests/support/life_cycle.py` has the rows. A `Play` is one machine with its driver and clock.
"""

import dataclasses
from collections.abc import Callable

import pytest

from app.domain.errors import (
    AddressIsList,
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
from app.sip.answers import BAD_ADDRESS, UNUSABLE, error_of_notify
from app.sip.headers import Final, Notify
from app.sip.machine import timing as life
from app.sip.machine.actions import (
    UNWANTED,
    DropDialog,
    ReportEnd,
    ReportLiveness,
    ReportObservation,
    SendCredentials,
    SendSubscribe,
    SendUnsubscribe,
    SetTimer,
)
from app.sip.machine.events import (
    NotifyReceived,
    RefreshRequested,
    SubscribeAccepted,
    SubscribeFailed,
    TimerFired,
    TransportLost,
    WatchCancelled,
    WatchRequested,
)
from app.sip.machine.states import State
from tests.support.sip_machine import HOUR, Play, active, notify, of, refreshing, renewing, reported, unusable


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
    """202 is treated like any other 2xx (RFC 6665 section 8.3.1): only the NOTIFY says whether the watch is allowed."""
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
    """Only the first termination in a row is followed by a SUBSCRIBE at once; later ones meet the back-off."""
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
    """Rejected is a long stop; retry-after is ignored."""
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
    """An invariant status that was never observed is subscribed to again."""
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


@pytest.mark.parametrize("state", ["active", "terminated"])
def test_list(state: str) -> None:
    """The address is a list's (RFC 4662): the watch ends with an error, and nothing was observed; one terminal's
    document is read in spite of Require."""
    of_list = Notify(state, "", -1, "multipart/related", "", 4, b"rlmi", requires_eventlist=True)
    empty = dataclasses.replace(of_list, content_type="application/pidf+xml", body=b"")
    document = dataclasses.replace(of_list, content_type="application/pidf+xml;charset=utf-8")
    for kind in (of_list, empty):
        for play in (Play(), active(), renewing()):
            play.handle(WatchRequested())
            actions = play.handle(NotifyReceived(generation=play.dialogs[0], notify=kind))
            assert isinstance(of(ReportEnd, actions)[0].error, AddressIsList)
            assert not of(ReportObservation, actions)
    play = active()
    assert of(ReportObservation, play.handle(NotifyReceived(generation=1, notify=document)))
    for reason, error in (("rejected", WatcherRefused), ("noresource", TerminalUnknown)):
        found = error_of_notify("terminated", reason, -1, 0, 0, of_list=True)
        assert type(found) is error
    play = Play()
    play.handle(WatchRequested())
    final = Final(421, "Extension Required", of_list=True)
    assert of(ReportEnd, play.handle(SubscribeFailed(generation=1, final=final)))
    ending = active()
    ending.handle(WatchCancelled())
    ending.handle(NotifyReceived(generation=1, notify=dataclasses.replace(of_list, state="terminated")))
    assert ending.ended == ReportEnd(reason=UNWANTED, error=None)


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
    """A digest retry counts as a SUBSCRIBE of the pace; a NOTIFY during its wait does not cancel it."""
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


def test_first_subscribe_481() -> None:
    """A SUBSCRIBE in a new dialog leaves at once; the next such failure in a row meets the back-off. (A fetch
    asks again with 60 seconds)"""
    play = Play()
    play.handle(WatchRequested())
    assert [(each.fresh, each.expires_s) for each in of(SendSubscribe, play.refuse(481))] == [(True, HOUR)]
    assert not of(SendSubscribe, play.refuse(481))
    assert 0 < play.wait_s() <= 2


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


def test_stop_between_two_dialogs() -> None:
    """The newer dialog is dropped and the older one unsubscribed; the server's last NOTIFY ends it."""
    play = renewing()
    actions = play.handle(WatchCancelled())
    assert actions[:2] == [DropDialog(generation=2), SendUnsubscribe(generation=1)]
    assert of(ReportEnd, play.notify("terminated", "timeout"))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *((code, WatcherRefused) for code in (403, 600, 603, 606, 607, 608, 699)),
        *((code, TerminalUnknown) for code in (404, 410, 484, 604)),
        *((code, PresenceMisconfigured) for code in (405, 406, 415, 420, 489)),
        *((code, PresenceMisconfigured) for code in (402, 422, 433, 494, 499)),
        *((code, PresenceMisconfigured) for code in (300, 301, 302, 305, 380, 399)),
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


def test_redirection_is_followed_once() -> None:
    """A redirection (RFC 3261 section 8.1.3.4) is followed at once, in a new dialog with that server; an older dialog
    serves until the first NOTIFY of the new one. A second redirection in a row is a long stop."""
    play = Play(jitter=0)
    play.handle(WatchRequested())
    followed = SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=1, redirected=True)
    actions = play.refuse(302, redirected=True, dialog_gone=True)
    assert of(SendSubscribe, actions) == [followed]
    assert reported(actions) == [(Liveness.UNKNOWN, "redirected")]
    assert of(ReportLiveness, actions)[0].error is None, "nothing to report to applications yet"
    again = play.refuse(302, redirected=True, dialog_gone=True)
    assert type(of(ReportLiveness, again)[0].error) is PresenceMisconfigured
    assert play.wait_s() == life.LONG_STOP_S
    assert not of(SendSubscribe, play.run(life.LONG_STOP_S))[0].redirected, "the next try is at the preferred server"
    assert of(SendSubscribe, play.refuse(301, redirected=True, dialog_gone=True))[0].redirected
    play.accept()
    play.notify()
    assert play.liveness is Liveness.LIVE
    serving = play.held
    play.run(play.wait_s())
    moved = of(SendSubscribe, play.refuse(302, redirected=True))
    assert [(each.fresh, each.redirected) for each in moved] == [(True, True)]
    assert (play.liveness, play.dialogs) == (Liveness.LIVE, [serving, play.machine.generation])
    play.accept()
    play.notify()
    assert (play.liveness, play.dialogs) == (Liveness.LIVE, [play.machine.generation])


def test_redirected_refresh_that_fails() -> None:
    """Where the named server refuses, the older dialog is used to its end (RFC 6665 section 4.1.2.2)."""
    play = refreshing(60)
    play.refuse(302, redirected=True)
    assert len(play.dialogs) == 2
    play.refuse(503, dialog_gone=True)
    assert (play.liveness, play.dialogs, play.state) == (Liveness.LIVE, [1], State.ACTIVE)
    assert not of(SendSubscribe, play.run(2))[0].redirected
    play.handle(WatchCancelled())
    assert play.unsubscribed


@pytest.mark.parametrize(
    ("code", "local"),
    [
        (408, False),
        (480, False),
        (486, False),
        (491, False),
        (500, False),
        (503, False),
        (599, False),
        (503, True),
        (408, True),
    ],
)
def test_back_off(code: int, local: bool) -> None:
    """The wait doubles, with jitter, up to its bound; each SUBSCRIBE has the number of failures, by which the route is
    chosen."""
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


def test_back_off_starts_again() -> None:
    """A SIP subscription that has lasted for a while clears the count of failures; a subscription that ended at once
    does not."""
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
    """An address that PJSIP refuses ends the watch."""
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
    """The SIP subscription is kept, and the status is STALE at once until the server sends a message; new SUBSCRIBEs
    wait for that message."""
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
    """Each NOTIFY is an observation, and none makes the status LIVE; further SUBSCRIBEs become rare."""
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
    """The unsubscribe waits until the pace allows it; the wait does not delay the end of the watch."""
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
    """Only the first refused NOTIFY in a row is followed by a SUBSCRIBE at once; later ones meet the back-off."""
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
    """The next SUBSCRIBE is due now, also during a long stop; the pace is kept."""
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
    """A new dialog replaces the old one, and may use another transport or the best route."""
    play = refreshing(600)
    play.refuse(503, local=True)
    again = of(SendSubscribe, play.handle(RefreshRequested(fresh=True)))
    assert [(action.fresh, action.attempt) for action in again] == [(True, 0)], "failures elsewhere do not count"
    play = active()
    actions = play.handle(RefreshRequested(fresh=True))
    assert actions[:2] == [DropDialog(generation=1), SendSubscribe(generation=2, fresh=True, expires_s=HOUR, attempt=0)]
    assert reported(actions) == [(Liveness.STALE, "asked afresh")]


def test_who_is_worth_asking_again_when_the_server_is_back() -> None:
    """When the server is back, a watch whose server could not answer is tried again; a watch that was refused is
    not."""
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
    """The list of watches says which state a machine is in, why, and what comes next and when."""
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
