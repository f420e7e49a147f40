"""The events of a watch: what the driver passes to the state machine.

A `generation` is the machine's number of a dialog (`SendSubscribe.generation`). Durations are in seconds.
"""

from dataclasses import dataclass

from app.sip.headers import Final, Notify

__all__ = [
    "Event",
    "NotifyReceived",
    "NotifyUnusable",
    "RefreshRequested",
    "SubscribeAccepted",
    "SubscribeFailed",
    "TimerFired",
    "TransportLost",
    "WatchCancelled",
    "WatchRequested",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequested:
    """The gateway wants the terminal watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchCancelled:
    """The gateway no longer wants the terminal watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRequested:
    """The presence server shall be asked now, before the planned time.

    `fresh`: in a new dialog, because the request goes to another server or over another transport.
    """

    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeAccepted:
    """A 2xx response to SUBSCRIBE. `expires_s` is its Expires, -1 where absent."""

    generation: int
    code: int = 200
    expires_s: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeFailed:
    """SUBSCRIBE got a final response other than 2xx, or the SIP stack itself failed.

    `can_authenticate`: the response is a challenge, still unanswered, and we have credentials. `dialog_gone`: the SIP
    stack has dropped the dialog, so its NOTIFYs no longer reach us. Such an event counts even without a request in
    flight. (PJSIP's evsub drops the dialog at any failed refresh, unless `stack.py` prevents it.) `redirected`: the
    response is a 3xx that names one of the operator's servers.
    """

    generation: int
    final: Final
    can_authenticate: bool = False
    dialog_gone: bool = False
    redirected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyReceived:
    """A NOTIFY in the dialog. `expires_s` is the parameter of Subscription-State, -1 where absent."""

    generation: int
    notify: Notify
    expires_s: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyUnusable:
    """The SIP stack refused a NOTIFY sent to the dialog's Contact, so its content is unknown.

    `reason` is a key of `app.sip.answers.UNUSABLE`.
    """

    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLost:
    """A connection to the presence server broke, or the server restarted: its subscriptions may be lost.

    `certain`: the server is known to be down, so the last observation is STALE, and no request is sent to the server
    until it is up.
    """

    certain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The time of the last `SetTimer` has come. The machine tolerates an early or late event."""


Event = (
    WatchRequested
    | WatchCancelled
    | RefreshRequested
    | SubscribeAccepted
    | SubscribeFailed
    | NotifyReceived
    | NotifyUnusable
    | TransportLost
    | TimerFired
)
