"""The life of one watch, with its driver and its clock played by the test."""

from collections.abc import Iterable
from typing import TypeVar

from app.domain.statuses import Liveness
from app.sip.headers import Final, Notify
from app.sip.machine.actions import (
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
    SubscribeAccepted,
    SubscribeFailed,
    TimerFired,
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
        """The newest dialog."""
        return self.dialogs[-1] if self.dialogs else None

    def handle(self, event: Event) -> list[Action]:
        """Passes one event to the machine, and checks the rules that hold for every answer."""
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
                assert len(self.dialogs) <= (self.omits or action.redirected), (
                    "an older dialog is kept only where another one replaces it"
                )
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
        """Advances the clock, and returns the actions that the timers caused."""
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
        """Seconds until the next step."""
        at_s = self.machine.snapshot().next_at_s
        assert at_s is not None
        return at_s - self.now_s


def active(expires_s: int = HOUR, **more: float) -> Play:
    """A machine with a new active subscription of this many seconds."""
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


def renewing(expires_s: int = 600, **more: float) -> Play:
    """A machine whose server omits NOTIFYs after refreshes; the SUBSCRIBE of its second dialog is in flight."""
    play = active(expires_s, **more)
    play.omits = True
    assert [each.fresh for each in of(SendSubscribe, play.run(play.wait_s()))] == [True]
    assert (play.state, play.liveness, play.dialogs) == (State.INITIAL, Liveness.LIVE, [1, 2])
    return play


def unusable(play: Play, reason: str = "cseq", generation: int | None = None) -> list[Action]:
    """A NOTIFY of the dialog in use that was refused."""
    return play.handle(
        NotifyUnusable(generation=play.machine.generation if generation is None else generation, reason=reason)
    )
