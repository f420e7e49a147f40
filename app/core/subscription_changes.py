"""How a client's change alters a subscription: its addresses, criteria, expiry and sink.

Invariants: pure; the time is an argument.

Deliberately absent: whether the client may make the change (`subscriptions.py`), and storing it (`live/changing.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from app.core.sink_secrets import before_token_ends, moved
from app.core.subscription_requests import SubscriptionChange
from app.domain.addresses import TerminalAddress
from app.domain.errors import SubscriptionChanged
from app.domain.records import Subscription
from app.domain.sinks import require_readable


def require_etag(subscription: Subscription, etag: str) -> None:
    """Raises SubscriptionChanged if the subscription has another etag; "" stands for any."""
    if etag and etag != subscription.etag:
        raise SubscriptionChanged(
            f"The subscription has changed: its etag is {subscription.etag!r} now. Read it again before you change it.",
            field="etag",
        )


def revised(
    stored: Subscription,
    change: SubscriptionChange,
    *,
    addresses: Sequence[TerminalAddress] | None,
    duration_ms: int | None,
    now: datetime,
) -> Subscription:
    """The subscription after `change`. `addresses` are those of the change in canonical form; `duration_ms` is what the
    policy makes of the change's duration (None: unlimited). The subscription ends before its sink's token does.

    Raises SinkRefused, StoreUnavailable (the sink's present secrets cannot be decrypted).
    """
    sink, expires_at = stored.sink, stored.expires_at
    if change.sink is not None:
        require_readable(sink)
        sink = moved(sink, change.sink)
    if change.duration_ms is not None:
        expires_at = None if duration_ms is None else now + timedelta(milliseconds=duration_ms)
    if change.sink is not None or change.duration_ms is not None:
        expires_at = before_token_ends(expires_at, sink, now)
    return replace(
        stored,
        addresses=stored.addresses if addresses is None else tuple(addresses),
        criteria=stored.criteria if change.criteria is None else change.criteria,
        expires_at=expires_at,
        sink=sink,
    )
