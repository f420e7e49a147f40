"""What a presence server's answers to SUBSCRIBE mean (RFC 6665, RFC 3856), as pure functions; and the events and
actions of a standing subscription, in which its state machine talks with its driver.

Invariants: no PJSIP, no I/O, no clock. Every answer has a meaning: a status may be read from it, the request is
made again in another way, or it is one domain error.

Deliberately absent: the life of a standing subscription and its refresh (`subscription.py`).
"""

import enum
from dataclasses import dataclass

from app.domain import (
    DocumentUnreadable,
    FetchTimedOut,
    InvalidAddress,
    Liveness,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.sip.message import Final, Notify

MAX_MIN_EXPIRES_S = 3600
"""A fetch that is answered 423 asks again with the Min-Expires it is told, up to this."""

BAD_ADDRESS = 416
"""The code of a local failure by which PJSIP's parser refuses an address that `parse_address` took."""

CUT = 513
"""The code of a local failure by which a document did not fit a datagram (513 is SIP's Message Too Large)."""

UNUSABLE = {
    "cseq": "its CSeq went back or stood still",
    "no-event": "it has no Event",
    "no-state": "it has no Subscription-State",
    "no-to-tag": "its To has no tag",
    "unreadable": "it cannot be parsed, as with a CSeq of 2^31 or more",
    "maddr": "its Via names an maddr, which is never looked up",
    "refused": "the SIP stack refused it",
}
"""Why a NOTIFY that was sent to a Contact of ours brought nothing."""

_MISCONFIGURED = frozenset({400, 405, 406, 414, 415, 416, 420, 421, 482, 483, 485, 488, 489, 493})
_UNKNOWN = frozenset({404, 410, 484, 604})
_REFUSED = frozenset({403, 603})


def retry_expires_s(final: Final, asked_s: int) -> int | None:
    """The Expires to ask with again after `final`, in seconds, or None.

    423 names the shortest subscription the server grants (RFC 6665 section 4.1.2.1); a fetch then becomes a
    subscription that is ended at its first NOTIFY. Only once, so that a server cannot keep us asking.
    """
    if final.code == 423 and asked_s == 0 and 0 < final.min_expires_s <= MAX_MIN_EXPIRES_S:
        return final.min_expires_s
    return None


def error_of_response(code: int, phrase: str, retry_after_s: int) -> TerminalStatusError:
    """The error that a final response to SUBSCRIBE stands for; `retry_after_s` is -1 where absent."""
    told = f"The presence server answered {code} {phrase}".rstrip() + "."
    sip_code = str(code)
    if code in _UNKNOWN:
        return TerminalUnknown(told, sip_code=sip_code)
    if code in _REFUSED:
        return WatcherRefused(told, sip_code=sip_code)
    if code in {401, 407}:
        return WatcherUnauthenticated(f"{told} The gateway has no credentials it accepts.", sip_code=sip_code)
    if code in _MISCONFIGURED:
        return PresenceMisconfigured(told, sip_code=sip_code)
    wait = float(retry_after_s) if retry_after_s >= 0 else None
    return PresenceUnavailable(told, retry_after_s=wait, sip_code=sip_code)


def error_of_local_failure(code: int, phrase: str) -> TerminalStatusError:
    """The error that PJSIP's own end of a fetch stands for, where the presence server has not answered."""
    if code == BAD_ADDRESS:
        return InvalidAddress(f"The address cannot be asked about: {phrase}.")
    if code == CUT:
        return DocumentUnreadable("The presence document was cut by UDP; it is asked for over TCP.", reason="cut")
    if code == 0:
        return FetchTimedOut("The presence server accepted the question and then sent no NOTIFY.")
    return PresenceUnavailable(f"The presence server could not be asked: {phrase}.")


def error_of_notify(
    state: str, reason: str, retry_after_s: int, declared_bytes: int, received_bytes: int
) -> TerminalStatusError | None:
    """The error that a NOTIFY stands for, or None where its body (which may be empty) tells the status.

    `state` and `reason` are Subscription-State's (RFC 6665 section 4.1.3). A pending subscription tells nothing
    about the terminal, only that nobody has let us watch it yet. A body whose length differs from Content-Length
    was cut on the way (PJSIP does that to what exceeds its buffer); `declared_bytes` is -1 where not declared.
    """
    if state == "pending" or reason == "rejected":
        return WatcherRefused(
            "The presentity has not let this gateway watch it"
            + (" yet: the subscription is pending." if state == "pending" else "."),
            reason=reason or state,
        )
    if reason == "noresource":
        return TerminalUnknown("The presence server has no such resource.", reason=reason)
    if reason in {"deactivated", "probation", "giveup"} and not received_bytes:
        wait = float(retry_after_s) if retry_after_s >= 0 else None
        return PresenceUnavailable(
            f"The presence server ended the subscription ({reason}) without saying the status.",
            retry_after_s=wait,
            reason=reason,
        )
    if declared_bytes not in (-1, received_bytes):
        return DocumentUnreadable(
            f"The presence document was cut short: {received_bytes} of {declared_bytes} bytes arrived.", reason="cut"
        )
    return None


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
