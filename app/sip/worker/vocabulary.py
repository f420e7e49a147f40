"""The events and actions of a watch, in which its state machine talks with its driver.

Invariants: values only; seconds.
"""

import enum
from dataclasses import dataclass

from app.domain.errors import (
    TerminalStatusError,
)
from app.domain.statuses import Liveness
from app.sip.headers import Final, Notify


class State(enum.Enum):
    """Where a usage stands. The figure of RFC 6665 section 4.1.2, with our waiting and our leaving told apart."""

    INITIAL = "initial"
    """Not begun, or the first SUBSCRIBE of a dialog is on its way."""
    ACCEPTED = "accepted"
    ACTIVE = "active"
    PENDING = "pending"
    REFRESHING = "refreshing"
    WAITING = "waiting"
    """No subscription; the next try has its time."""
    ENDING = "ending"
    """Unsubscribing; the last NOTIFY is awaited."""
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Somebody wants the terminal watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """Nobody does any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshWanted:
    """Ask now and not later; `fresh` in a new dialog (after a cut message over another transport, another route)."""

    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A 2xx to SUBSCRIBE; `expires_s` is its Expires or -1."""

    generation: int
    code: int = 200
    expires_s: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A final response that is no 2xx, or the stack's own failure.

    `can_authenticate`: it is a challenge, not answered yet, for which there are credentials. `dialog_gone`: the stack
    has let go of the dialog, so NOTIFYs in it no longer reach us (PJSIP's evsub does so at any failed refresh, left to
    itself); it counts at any time, without a request too.
    """

    generation: int
    final: Final
    can_authenticate: bool = False
    dialog_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyReceived:
    """A NOTIFY in the dialog; `expires_s` is Subscription-State's or -1."""

    generation: int
    notify: Notify
    expires_s: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyUnusable:
    """A NOTIFY to the dialog's Contact that the stack refused: what it said is unknown. `reason`: a key of UNUSABLE."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLost:
    """The way to the presence server broke, or its end was restarted: what is in flight is lost, the rest in doubt.

    `certain`: it is known to be away, so what it said last is stale, and asking it waits until it is back.
    """

    certain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The time of the last `Arm` has come. Early or late does no harm."""


Event = (
    Wanted
    | Unwanted
    | RefreshWanted
    | Accepted
    | Refused
    | NotifyReceived
    | NotifyUnusable
    | TransportLost
    | TimerFired
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Send SUBSCRIBE: `fresh` in a new dialog of that generation, else as a refresh in it. A dialog that has not been
    forgotten is kept beside the new one.

    `attempt` is the number of failures in a row: 0 is the first route, 1 the next, as the driver sees fit.
    """

    generation: int
    fresh: bool
    expires_s: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticate:
    """Send the challenged SUBSCRIBE again, with digest (RFC 3261 section 22.2)."""

    generation: int
    expires_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe:
    """Send SUBSCRIBE with `Expires: 0` in the dialog."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Drop the dialog here, sending nothing; a late NOTIFY is answered 481, which ends it there (section 4.2.2)."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Set the usage's one timer, in place of any before."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """The NOTIFY tells the terminal's status."""

    notify: Notify


@dataclass(frozen=True, slots=True, kw_only=True)
class Omitted:
    """The server accepted a refresh and sent no NOTIFY within Timer N (RFC 6665 section 4.1.2.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """The liveness has changed, or the reason why it is not LIVE has."""

    liveness: Liveness
    reason: str
    error: TerminalStatusError | None


UNWANTED = "unwanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing follows. `reason` is UNWANTED, `invariant` (the last observation holds for good), or with an error."""

    reason: str
    error: TerminalStatusError | None


Action = Subscribe | Authenticate | Unsubscribe | Forget | Arm | Observe | Omitted | Tell | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A usage as operators see it; times are of the driver's clock, None where there is none."""

    state: State
    since_s: float
    liveness: Liveness
    expires_at_s: float | None
    code: int
    reason: str
    next_action: str
    next_at_s: float | None
