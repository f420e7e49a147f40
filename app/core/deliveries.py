"""What clients see and do about their own notifications: list them, inspect attempts, send dead ones again.

Invariants: nobody sees or sends what is another client's, but an admin; each call counts against the client's rate.

Deliberately absent: sending (`deliverer.py`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from app.auth.policies import Policies
from app.domain.errors import InvalidRequest, NotificationUnknown
from app.domain.records import Client, DeliveryAttempt, DeliveryState, OwedNotification
from app.ports import Page, Store

MAX_SEND_AGAIN = 1000


class Deliveries:
    """What a client may see and do about its own notifications; an admin about everybody's. Each call counts against
    the client's rate, and may raise RateLimited and StoreUnavailable."""

    def __init__(
        self, store: Store, clock: Callable[[], datetime], policies: Policies, *, hint: Callable[[], None]
    ) -> None:
        """`hint` is `Deliverer.hint`, or what tells every node's."""
        self._store = store
        self._clock = clock
        self._policies = policies
        self._hint = hint

    async def list(
        self, client: Client, page: Page, *, state: DeliveryState | None = None, subscription_id: str = ""
    ) -> tuple[Sequence[OwedNotification], str]:
        """The client's notifications, oldest first, and the next page's token. Raises InvalidRequest."""
        self._policies.admit(client)
        client_id = None if client.admin else client.id
        return await self._store.notifications(client_id, page, state=state, subscription_id=subscription_id)

    async def get(self, client: Client, notification_id: str) -> OwedNotification:
        """One notification. Raises NotificationUnknown, for another client's too."""
        self._policies.admit(client)
        return await self._own(client, notification_id)

    async def _own(self, client: Client, notification_id: str) -> OwedNotification:
        notification = await self._store.notification(notification_id)
        if notification is None or (notification.client_id != client.id and not client.admin):
            raise NotificationUnknown(f"There is no notification {notification_id[:64]!r}.")
        return notification

    async def attempts(self, client: Client, notification_id: str) -> Sequence[DeliveryAttempt]:
        """A notification's attempts in order. Raises NotificationUnknown."""
        self._policies.admit(client)
        return await self._store.attempts((await self._own(client, notification_id)).id)

    async def send_again(self, client: Client, notification_ids: Sequence[str]) -> int:
        """Has dead notifications tried again, once if they are older than the policy keeps trying; how many were dead.

        Raises NotificationUnknown, having done nothing, and InvalidRequest for more than MAX_SEND_AGAIN.
        """
        self._policies.admit(client)
        if len(notification_ids) > MAX_SEND_AGAIN:
            raise InvalidRequest(f"At most {MAX_SEND_AGAIN} notifications at a time.", field="notification_ids")
        owned = [(await self._own(client, notification_id)).id for notification_id in dict.fromkeys(notification_ids)]
        again = await self._store.send_again(owned, self._clock())
        if again:
            self._hint()
        return again
