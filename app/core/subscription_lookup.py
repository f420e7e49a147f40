"""Finds a subscription for its client, and checks its sink: for creating, ending and changing it."""

from collections.abc import Mapping

from app.domain.errors import SinkRefused, SubscriptionUnknown
from app.domain.records import MAX_ID, Client, Subscription
from app.domain.sinks import SinkKind
from app.ports.delivery import Sender
from app.ports.store import Store


async def own_subscription(store: Store, client: Client, subscription_id: str) -> Subscription:
    """The client's subscription (for an operator's client anybody's), active or ended. Raises StoreUnavailable,
    SubscriptionUnknown."""
    found = await store.subscription(subscription_id) if 0 < len(subscription_id) <= MAX_ID else None
    if found is None or (found.client_id != client.id and not client.admin):
        raise unknown_subscription(subscription_id)
    return found


def unknown_subscription(subscription_id: str) -> SubscriptionUnknown:
    return SubscriptionUnknown(
        "There is no such subscription, or it belongs to another client.",
        field="subscription_id",
        subscription_id=subscription_id[:MAX_ID],
    )


async def check_sink(senders: Mapping[SinkKind, Sender], subscription: Subscription) -> None:
    """Checks the sink by the sender of its kind; a sink that is only listed needs none. Raises SinkRefused,
    SinkUnreachable."""
    kind = subscription.sink.kind
    if kind is SinkKind.STREAM:
        return
    sender = senders.get(kind)
    if sender is None:
        raise SinkRefused(f"This gateway does not offer notifications by {kind.name}.", field="sink")
    await sender.check(subscription)
