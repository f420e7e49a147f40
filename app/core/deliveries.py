"""Owed notifications: clients list them, read their delivery attempts, and request a new attempt of dead notifications.

Invariants: a client reaches only its own notifications; an operator's client reaches all. Each call counts against the
client's rate, and may raise RateLimited and StoreUnavailable.

Deliberately absent: sending (`delivery/deliverer.py`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from app.auth.policies import Policies
from app.domain.errors import InvalidRequest, NotificationUnknown
from app.domain.filters import NotificationFilter, seen_by
from app.domain.records import Client, DeliveryAttempt, OwedNotification
from app.domain.sink_contracts import SinkContracts
from app.ports.pages import empty, number, token
from app.ports.store import ALL_NOTIFICATIONS, OutboxStore, Page

MAX_SEND_AGAIN = 1000


class Deliveries:
    """One per process."""

    def __init__(
        self, store: OutboxStore, clock: Callable[[], datetime], policies: Policies, contracts: SinkContracts
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
