"""The states of a watch, its dialog, and the snapshot that operators see."""

import enum
import math
from dataclasses import dataclass

from app.domain.statuses import Liveness
from app.domain.watches import WatchState

State = WatchState


class Step(enum.Enum):
    """The request that the watch sends next. The values are shown to operators."""

    SUBSCRIBE = "subscribe"
    """In the dialog where a subscription exists, otherwise in a new one."""
    AUTHENTICATE = "authenticate"
    UNSUBSCRIBE = "unsubscribe"


@dataclass(slots=True, kw_only=True)
class Dialog:
    """One dialog of the watch."""

    generation: int
    held: bool = True
    """Whether the driver has this dialog."""
    substate: State | None = None
    """ACTIVE or PENDING, by the last NOTIFY; None before the first NOTIFY."""
    expires_at_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A watch as operators see it. Times are of the driver's clock, None where not applicable."""

    state: State
    since_s: float
    liveness: Liveness
    expires_at_s: float | None
    code: int
    reason: str
    next_action: str
    next_at_s: float | None
