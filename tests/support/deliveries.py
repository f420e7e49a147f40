"""A deliverer over a real store, with a sender that follows a script."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.auth.policies import Policies
from app.delivery.deliverer import Deliverer
from app.delivery.retry import RetryPolicy
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.policy import Policy
from app.domain.records import DeliveryState, OwedNotification, Subscription
from app.domain.sinks import EndReason, SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.ports.delivery import Sender, Sent
from app.ports.store import Page
from app.store import SqlStore, open_store
from tests.support.outbox import NOW, OWNER, STRANGER, make_owed, make_subscription
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent


POLICY = RetryPolicy()


QUICK = RetryPolicy(first_s=0.01, most_s=0.02)


FAILED = Sent(delivered=False, code=500, outcome="http-500")


SILENT = Sent(delivered=False, outcome="timed-out")


DELIVERED = Sent(delivered=True, code=204)


GONE = Sent(delivered=False, code=410, outcome="http-410", gone=True)


OLD = NOW - timedelta(days=400)


SUBSCRIPTION = make_subscription()


FREE = Policies(Policy(), lambda: 0.0)


Answer = Callable[[Subscription, OwedNotification], Awaitable[Sent]]


@dataclass
class ScriptedSender:
    """Answers each attempt by a function, and keeps what was sent."""

    answer: Answer
    sent: list[OwedNotification] = field(default_factory=list)
    now: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    most_of_one: int = 0

    async def check(self, subscription: Subscription) -> None:
        """Not used by these tests."""

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        self.sent.append(notification)
        self.now[subscription.id] += 1
        self.most_of_one = max(self.most_of_one, self.now[subscription.id])
        self.most_at_once = max(self.most_at_once, self.now.total())
        try:
            return await self.answer(subscription, notification)
        finally:
            self.now[subscription.id] -= 1

    async def has_sent(self, count: int = 1) -> bool:
        """Whether this number of attempts was made."""
        return len(self.sent) >= count

    def ids(self) -> list[str]:
        """The notifications' ids in the order of the attempts."""
        return [notification.id for notification in self.sent]


def always(sent: Sent) -> Answer:
    """A script that gives every attempt the same outcome."""

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await asyncio.sleep(0)
        return sent

    return reply


def first(*sents: Sent) -> Answer:
    """A script with these outcomes in turn; later attempts are delivered."""
    left = list(sents)

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        return left.pop(0) if left else DELIVERED

    return reply


@dataclass
class Clock:
    """The time, moved on by `offset`."""

    offset: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SqlStore]:
    """A store over each kind of database, with two clients."""
    async with await open_store(database_url) as opened:
        for client in (OWNER, STRANGER):
            await opened.put_client(client)
        yield opened


@asynccontextmanager
async def delivering(store: SqlStore, sender: Sender, **options: Any) -> AsyncIterator[Deliverer]:
    """A deliverer that runs, with quick retries."""
    values: dict[str, Any] = {"owner": "node-1", "clock": Clock(), "policy": QUICK, **options}
    deliverer = Deliverer(store, {SinkKind.WEBHOOK: sender}, **values)
    deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.aclose()
        assert deliverer.held == 0


async def owe(
    store: SqlStore, count: int = 1, *, subscription: Subscription = SUBSCRIPTION, **fields: Any
) -> list[str]:
    """Stores the subscription and notifications owed to it; returns their ids."""
    fields.setdefault("at", datetime.now(UTC))
    owed = [make_owed(subscription, f"{subscription.id}/{number}", **fields) for number in range(count)]
    await store.create_subscription(subscription, owed, ())
    return [notification.id for notification in owed]


async def until_owed(
    store: SqlStore, condition: Callable[[Sequence[OwedNotification]], bool]
) -> list[OwedNotification]:
    """Waits until the condition holds for all notifications in the store, and returns them."""
    found: list[OwedNotification] = []

    async def holds() -> bool:
        found.clear()
        token = ""
        while True:
            page, token = await store.notifications(Page(size=1000, token=token))
            found.extend(page)
            if not token:
                return condition(found)

    await until(holds)
    return found


def settled(found: Sequence[OwedNotification]) -> bool:
    """Whether no notification is pending."""
    return all(notification.state is not DeliveryState.PENDING for notification in found)


async def withdraw(store: SqlStore, subscription: Subscription) -> None:
    """Ends the subscription in the store as endNotification does."""
    now = datetime.now(UTC)
    update = SubscriptionUpdate(
        subscription_id=subscription.id, ended_at=now, end_reason=EndReason.CANCELLED, end_detail="", withdraws=True
    )
    await store.write(Changes(updates=[update]))


def gate(event: asyncio.Event, sent: Sent) -> Answer:
    """A script that gives this outcome once the event is set."""

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await event.wait()
        return sent

    return reply


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[WebhookSender]:
    """The real sender, allowed to send to loopback."""
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True), **options)
    try:
        yield WebhookSender(egress, clock=lambda: datetime.now(UTC), envelopes={"v1": v1_event})
    finally:
        await egress.aclose()
