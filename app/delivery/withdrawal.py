"""After a withdrawal: waits until no process sends notifications of the subscription, and completes usage records."""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime

import structlog

from app.delivery.retry import usage_of_result
from app.domain.errors import StoreUnavailable
from app.domain.filters import NotificationFilter
from app.domain.records import DeliveryState, Subscription
from app.ports.store import Page, Store

POLL_S = 0.1
"""How often the store is asked whether another process has released its lease."""

_log = structlog.get_logger(__name__)


class Withdrawals:
    """Completes withdrawals for one deliverer. `owner` and `lease_s` are those of the deliverer."""

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        lease_s: float,
    ) -> None:
        self._store = store
        self._owner = owner
        self._clock = clock
        self._new_id = new_id
        self._lease_s = lease_s

    async def finish(self, subscription: Subscription, in_flight: Collection[asyncio.Task[None]]) -> None:
        """Returns when the attempts `in_flight` here have ended, and no other process holds a lease."""
        if in_flight:
            await asyncio.wait(in_flight)
        try:
            if not (await self._wait_for_others(subscription) or in_flight):
                await self._write_usage(subscription)
        except StoreUnavailable as error:
            _log.warning("withdrawal_not_followed", subscription_id=subscription.id, message=str(error))

    async def _wait_for_others(self, subscription: Subscription) -> bool:
        """Waits until no other process holds a lease of the subscription. Returns whether one did."""
        loop, waited = asyncio.get_running_loop(), False
        until_s = loop.time() + self._lease_s
        while await self._store.lease_owner(subscription.id) not in (None, self._owner) and loop.time() < until_s:
            waited = True
            await asyncio.sleep(POLL_S)
        return waited

    async def _write_usage(self, subscription: Subscription) -> None:
        """Writes the usage record of the first withdrawn notification, if an attempt was made before the withdrawal.
        (An attempt that was in flight writes its own record.)"""
        withdrawn, _ = await self._store.notifications(
            Page(size=1), NotificationFilter(subscription_id=subscription.id, state=DeliveryState.WITHDRAWN)
        )
        for one in withdrawn:
            if one.attempts:
                usage = usage_of_result(one, subscription, one.state, "withdrawn", self._clock(), self._new_id())
                await self._store.write_usage(usage)
