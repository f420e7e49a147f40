"""Owed notifications: clients list them, read their delivery attempts, and request that dead or delivered ones
are sent again.

Invariants: a client reaches only its own notifications; an operator's client reaches all. Each call counts against the
client's rate, and may raise RateLimited and StoreUnavailable.

Deliberately absent: sending (`delivery/deliverer.py`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from app.auth.policies import Policies
from app.core.subscription_lookup import own_subscription
from app.domain.errors import ChangeNotAllowed, InvalidRequest, NotificationUnknown
from app.domain.filters import NotificationFilter, seen_by
from app.domain.records import Client, DeliveryAttempt, DeliveryState, OwedNotification
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import EndReason, SinkKind
from app.ports.pages import empty, number, token
from app.ports.store import ALL_NOTIFICATIONS, Page, Store

MAX_SEND_AGAIN = 1000
"""Most notifications that one call sends again or replays."""

_NOTHING_IS_SENT = (EndReason.SINK_GONE, EndReason.TOKEN_EXPIRED)
"""Ends after which the endpoint accepts nothing more."""


class Deliveries:
    """One per process."""

    def __init__(
        self, store: Store, clock: Callable[[], datetime], policies: Policies, contracts: SinkContracts
    ) -> None:
        self.on_notifications_owed: Callable[[], None] = lambda: None
        """Called when notifications became due; may not block or raise."""
        self._contracts = contracts
        self._store = store
        self._clock = clock
        self._policies = policies

    async def list(
        self, client: Client, page: Page, only: NotificationFilter = ALL_NOTIFICATIONS
    ) -> tuple[Sequence[OwedNotification], str]:
        """The client's notifications, oldest first, and the next page's token. Raises InvalidRequest."""
        self._policies.admit(client)
        seen = seen_by(client, only)
        return empty(page) if seen is None else await self._store.notifications(page, seen)

    async def get(self, client: Client, notification_id: str) -> OwedNotification:
        """One notification. Raises NotificationUnknown, also for another client's."""
        self._policies.admit(client)
        return await self._own(client, notification_id)

    async def _own(self, client: Client, notification_id: str) -> OwedNotification:
        notification = await self._store.notification(notification_id)
        if notification is None or (notification.client_id != client.id and not client.admin):
            raise NotificationUnknown(
                f"There is no notification {notification_id[:64]!r}.", notification_id=notification_id[:64]
            )
        return notification

    async def attempts(self, client: Client, notification_id: str, page: Page) -> tuple[Sequence[DeliveryAttempt], str]:
        """A notification's attempts in order, and the next page's token. Raises InvalidRequest, NotificationUnknown."""
        self._policies.admit(client)
        after = number(page, "attempts", notification_id)
        found = await self._store.attempts((await self._own(client, notification_id)).id)
        left = [one for one in found if one.number > after]
        shown = left[: page.size]
        return shown, token(shown[-1].number, "attempts", notification_id) if len(left) > len(shown) else ""

    async def send_again(self, client: Client, notification_ids: Sequence[str]) -> int:
        """Sends dead notifications again, but notifications older than the time for retries only once. Returns how many
        were dead.

        Raises NotificationUnknown, having done nothing, and InvalidRequest for more than MAX_SEND_AGAIN.
        """
        self._policies.admit(client)
        if len(notification_ids) > MAX_SEND_AGAIN:
            raise InvalidRequest(
                f"At most {MAX_SEND_AGAIN} notifications can be sent again in one call.", field="notification_ids"
            )
        owned = [(await self._own(client, notification_id)).id for notification_id in dict.fromkeys(notification_ids)]
        again = await self._store.send_again(owned, self._clock(), self._contracts)
        if again:
            self.on_notifications_owed()
        return again

    async def replay(
        self, client: Client, subscription_id: str, *, start: datetime | None, end: datetime | None, page_token: str
    ) -> tuple[int, str]:
        """Sends the subscription's delivered notifications once more that were created in a span of time, in their
        order and with their ids. Returns how many become due, and the token of the next call, "" if this was the last.

        Raises ChangeNotAllowed if nothing is sent to the subscription's sink, InvalidRequest, SubscriptionUnknown.
        """
        self._policies.admit(client)
        if start is None:
            raise InvalidRequest("`start_time` is missing; name the first time to replay.", field="start_time")
        subscription = await own_subscription(self._store, client, subscription_id)
        only = NotificationFilter(subscription_id=subscription.id, state=DeliveryState.DELIVERED, start=start, end=end)
        withdrawn_at = self._contracts.of(subscription.sink.kind, subscription.sink.profile).withdrawn_at
        if subscription.sink.kind is SinkKind.STREAM or subscription.end_reason in (*_NOTHING_IS_SENT, *withdrawn_at):
            raise ChangeNotAllowed(
                "Nothing is sent to the subscription's sink: it is LISTED, or the subscription has ended in a way that "
                "forbids it. List the notifications instead.",
                field="subscription_id",
            )
        found, following = await self._store.notifications(Page(size=MAX_SEND_AGAIN, token=page_token), only)
        state, ids = DeliveryState.DELIVERED, [each.id for each in found]
        again = await self._store.send_again(ids, self._clock(), self._contracts, state=state)
        if again:
            self.on_notifications_owed()
        return again, following
