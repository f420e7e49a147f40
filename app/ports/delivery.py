"""How delivery checks a sink and sends to it; implemented for each kind of sink in `app/egress/` and `soap_compat/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.domain import x_correlator
from app.domain.records import (
    OwedNotification,
    Subscription,
)
from app.domain.sinks import EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The result of one delivery attempt."""

    delivered: bool
    code: int = 0
    """The sink's HTTP status; 0 without a response."""
    outcome: str = "delivered"
    """A word that `DeliveryOutcome` reads: one of its values, `http-CODE`, or `refused-REASON` for a sink that the
    operator's rules no longer allow. Usage records, metrics and logs keep this word, with its code or reason."""
    answer: bytes = b""
    """The start of the response's body."""
    retry_after_s: float | None = None
    gone: bool = False
    """The sink answered 410 Gone: it wants no more notifications."""
    ends: EndReason | None = None
    """Set if the subscription ends because of this attempt for a reason other than `gone`, such as TOKEN_EXPIRED."""
    details: Mapping[str, str] = field(default_factory=dict)


def correlation(subscription: Subscription) -> Mapping[str, str]:
    """The header of each request to the subscription's sink that names the call that created the subscription."""
    return {x_correlator.HEADER: subscription.x_correlator} if subscription.x_correlator else {}


class Sender(Protocol):
    """Delivers notifications to one kind of sink. A failure of the sink is a result, never an exception."""

    async def check(self, subscription: Subscription) -> None:
        """Checks, before the subscription is created, that its sink is allowed and can be reached. Raises SinkRefused
        or SinkUnreachable."""

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """Makes one delivery attempt, within the sender's own time limit."""
