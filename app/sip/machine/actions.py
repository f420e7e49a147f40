"""The actions of a watch: what the state machine returns, for the driver to carry out in order.

A `generation` is the machine's number of a dialog.
"""

from dataclasses import dataclass

from app.domain.errors import TerminalStatusError
from app.domain.statuses import Liveness
from app.sip.headers import Notify

__all__ = [
    "UNWANTED",
    "Action",
    "DropDialog",
    "ReportEnd",
    "ReportLiveness",
    "ReportObservation",
    "ReportOmittedNotify",
    "SendCredentials",
    "SendSubscribe",
    "SendUnsubscribe",
    "SetTimer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSubscribe:
    """Send SUBSCRIBE. `fresh`: in a new dialog of this generation; otherwise as a refresh in the dialog that exists.

    A new dialog does not end an existing one: the driver keeps each dialog until `DropDialog`. `attempt` is the number
    of failures in a row, for the driver to choose a route by. `redirected`: to the server that the last response named.
    """

    generation: int
    fresh: bool
    expires_s: int
    attempt: int
    redirected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SendCredentials:
    """Repeat the challenged SUBSCRIBE with digest credentials (RFC 3261 section 22.2)."""

    generation: int
    expires_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendUnsubscribe:
    """Send SUBSCRIBE with `Expires: 0` in the dialog."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropDialog:
    """Drop the dialog locally, sending nothing. A late NOTIFY then gets 481, which ends the subscription at the server
    (RFC 6665 section 4.2.2)."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer:
    """Set the watch's one timer to `at_s`, replacing its earlier time."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportObservation:
    """Report the NOTIFY, which states the terminal's status."""

    notify: Notify


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOmittedNotify:
    """Report that the server accepted a refresh and sent no NOTIFY within Timer N (RFC 6665 section 4.1.2.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLiveness:
    """Report that the liveness has changed, or the reason why it is not LIVE."""

    liveness: Liveness
    reason: str
    error: TerminalStatusError | None


UNWANTED = "unwanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEnd:
    """Report that the watch has ended; always the last action.

    `reason` is UNWANTED, or `invariant` (the last observation stays valid forever), or explains `error`.
    """

    reason: str
    error: TerminalStatusError | None


Action = (
    SendSubscribe
    | SendCredentials
    | SendUnsubscribe
    | DropDialog
    | SetTimer
    | ReportObservation
    | ReportOmittedNotify
    | ReportLiveness
    | ReportEnd
)
