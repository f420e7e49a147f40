"""The life of one watch: rules that hold whatever the presence server does, over histories that Hypothesis draws."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.statuses import Liveness
from app.sip.answers import UNUSABLE
from app.sip.headers import Final
from app.sip.machine import timing as life
from app.sip.machine.actions import (
    Action,
    DropDialog,
    ReportLiveness,
    SendSubscribe,
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
from tests.support.sip_machine import HOUR, Play, notify, of, renewing, unusable


def pace_holds(sent_s: list[float]) -> bool:
    """Whether at most BURST + W / GAP_S SUBSCRIBEs leave in any W seconds, by a leaky bucket: it holds BURST, loses one
    every GAP_S, and never overflows."""
    level, before_s = 0.0, 0.0
    for at_s in sent_s:
        level = max(0.0, level - (at_s - before_s) / life.GAP_S) + 1
        before_s = at_s
        if level > life.BURST + 1e-6:
            return False
    return True


JITTER = st.floats(0, 1, exclude_max=True)


CODES = st.sampled_from(
    [301, 302, *range(400, 424), *range(480, 490), 494, 499, 500, 501, 503, 504, 600, 603, 604, 606]
)


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
            redirected=st.booleans(),
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
    """No more SUBSCRIBEs leave than the pace allows, including digest retries, forced ones and the last one."""
    play = Play()
    play_story(play, story, lambda: None)
    play.handle(WatchCancelled())
    play.run(life.TRANSACTION_S)
    assert pace_holds(play.sent_s)


@settings(deadline=None)
@given(STORY)
def test_always_a_next_step_or_a_stated_end(story: list[tuple[Move, float]]) -> None:
    """After any event either a timer is armed within bounds, or the end was reported and no action follows."""
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
    """LIVE is reported only while a NOTIFY has made a dialog active and the last stated duration is not over, and for
    at most Timer N after the first accepted refresh that no NOTIFY has followed."""
    play = Play()
    active_until: dict[int, tuple[bool, float]] = {}
    sent_s = due_s = math.inf
    quiet = False
    plain = play.machine.handle

    class Watched:
        """A simpler model that sees the same events as the machine."""

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
    """The status stays LIVE where a server that omits NOTIFYs sends the new dialog's NOTIFY within Timer N and before
    the expiry."""
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
    """After any history, a stop forgets the dialog and ends the watch, and no SUBSCRIBE follows."""
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
    """Where the clock jumps back, the machine uses the latest time that it has seen: no timer is armed before that
    time, and the pace holds."""
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
    """However refreshes fail, the SIP subscription is kept until its own expiry; it is LIVE unless an answer is
    missing."""
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
    """For any duration and jitter the refresh is before the expiry, and at most a tenth of the duration before its
    latest time."""
    delay_s = life.refresh_delay_s(expires_s, jitter)
    assert 0 < delay_s < expires_s
    if expires_s >= 2:
        latest_s = max(1, expires_s - 30, expires_s / 2)
        assert latest_s * 0.9 - 1e-9 <= delay_s <= latest_s


@given(st.integers(0, 10**9), JITTER)
def test_back_off_is_bounded(failures: int, jitter: float) -> None:
    """The back-off grows to its bound, whatever the count of failures."""
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
    """Each hostile server gets few SUBSCRIBEs in an hour, and never more than the pace allows."""
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
