"""Deliveries that several gateways share, and deliveries that are withdrawn while claimed."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.delivery.hosts import Places
from app.domain.filters import UsageFilter
from app.domain.records import DeliveryState, OwedNotification, Subscription
from app.domain.sinks import SinkKind
from app.ports.delivery import Sent
from app.ports.store import Page
from app.store import SqlStore
from tests.support.deliveries import (
    DELIVERED,
    FAILED,
    OLD,
    SUBSCRIPTION,
    Clock,
    ScriptedSender,
    always,
    delivering,
    gate,
    owe,
    settled,
    store,
    until_owed,
    withdraw,
)
from tests.support.outbox import make_subscription
from tests.support.waiting import DEADLINE_S, until

__all__ = ["store"]  # fixtures


async def test_what_waits_for_its_host_is_withdrawn(store: SqlStore) -> None:
    """A claimed notification that waits for its host's place is not sent after its subscription's end."""
    kept, ended = (make_subscription(subscription_id=name) for name in ("kept", "ended"))
    await owe(store, subscription=kept)
    await owe(store, subscription=ended)
    answered = asyncio.Event()
    sender = ScriptedSender(gate(answered, DELIVERED))
    async with delivering(store, sender, places=Places(per_host=1, unproven_host=1)) as deliverer:
        await until(sender.has_sent)
        (in_flight,) = sender.sent
        other = ended if in_flight.subscription_id == kept.id else kept

        async def is_claimed() -> bool:
            return await store.lease_owner(other.id) is not None

        await until(is_claimed)
        await withdraw(store, other)
        await deliverer.withdrawn(other)()
        answered.set()
        await until_owed(store, settled)
        await owe(store, subscription=make_subscription(subscription_id="later"))
        deliverer.hint()
        await until_owed(store, settled)
    assert [one.subscription_id for one in sender.sent] == [in_flight.subscription_id, "later"]
    assert await store.lease_owner(other.id) is None


async def test_what_is_being_claimed_is_withdrawn(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that was written before the subscription's end, and is returned after it, sends nothing."""
    await owe(store)
    claim, claimed, go_on = store.claim, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> list[OwedNotification]:
        found = await claim(*arguments)
        if found:
            claimed.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(store, "claim", slow)
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender) as deliverer:
        async with asyncio.timeout(DEADLINE_S):
            await claimed.wait()
        await withdraw(store, SUBSCRIPTION)
        await deliverer.withdrawn(SUBSCRIPTION)()
        go_on.set()
        await owe(store, subscription=make_subscription(subscription_id="later"))
        deliverer.hint()
        await until_owed(store, settled)
    assert [one.subscription_id for one in sender.sent] == ["later"]


async def test_an_attempt_of_another_node_is_waited_for(store: SqlStore) -> None:
    """Ending a subscription waits for the node that has its notification in flight."""
    await owe(store)
    answered, happened = asyncio.Event(), list[str]()
    there = ScriptedSender(gate(answered, FAILED))
    async with delivering(store, there, owner="node-2"):
        await until(there.has_sent)
        async with delivering(store, ScriptedSender(always(DELIVERED))) as here:
            await withdraw(store, SUBSCRIPTION)
            waiting = asyncio.ensure_future(here.withdrawn(SUBSCRIPTION)())
            waiting.add_done_callback(lambda _: happened.append("returned"))
            await owe(store, subscription=make_subscription(subscription_id="later"))  # `here` delivers it meanwhile
            here.hint()
            await until_owed(store, settled)
            happened.append("answered")
            answered.set()
            await waiting
    assert happened == ["answered", "returned"]
    assert [one.state for one in await until_owed(store, settled)][:1] == [DeliveryState.WITHDRAWN]


async def test_what_a_killed_node_had_claimed_is_sent_by_another(store: SqlStore) -> None:
    """While a killed node's lease lasts no other node sends the notification; then one sends it under the same id,
    before later ones."""
    ids = await owe(store, 2, at=datetime.now(UTC) - timedelta(minutes=5))
    now = datetime.now(UTC)
    (claimed,) = await store.claim(now, now + timedelta(seconds=60), 10, "killed")
    assert claimed.id == ids[0]
    clock = Clock()
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender, clock=clock) as deliverer:
        assert await store.claim(clock(), clock() + timedelta(seconds=1), 10, "other") == []
        clock.offset = timedelta(seconds=61)
        deliverer.hint()
        await until_owed(store, settled)
    assert sender.ids() == ids


async def test_an_attempt_that_was_cut_off_is_recorded(store: SqlStore) -> None:
    """`…_DeliveryAttempted` is written in the transaction of the claim: it is there while an attempt is in flight, and
    after a node that was killed then; another node's claim adds none. The result follows once."""
    (notification_id,) = await owe(store, at=datetime.now(UTC) - timedelta(minutes=5))
    later, in_flight, released = Clock(), asyncio.Event(), asyncio.Event()

    async def hanging(subscription: Subscription, notification: OwedNotification) -> Sent:
        in_flight.set()
        await released.wait()
        return FAILED

    async def names() -> list[tuple[str, str]]:
        records, _ = await store.usage(Page(), UsageFilter(start=OLD))
        assert len({one.id for one in records}) == len(records)
        return [(one.operation.value, one.result) for one in records]

    attempted = [("statusNotification_DeliveryAttempted", "OK"), ("statusChanged_DeliveryAttempted", "OK")]
    async with delivering(store, ScriptedSender(hanging)) as cut_off:
        await in_flight.wait()
        assert await names() == attempted
        later.offset = timedelta(seconds=cut_off.lease_s + 1)
        sender = ScriptedSender(always(DELIVERED))
        async with delivering(store, sender, owner="node-2", clock=later):
            await until_owed(store, settled)
        assert sender.ids() == [notification_id]
        assert await names() == [*attempted, *[(name.replace("Attempted", "Result"), ok) for name, ok in attempted]]
        released.set()


async def test_what_is_not_sent_is_not_recorded_as_attempted(store: SqlStore) -> None:
    """A notification that applications list, as its sink has no endpoint, has no usage records."""
    await owe(store, subscription=make_subscription("", kind=SinkKind.STREAM))
    async with delivering(store, ScriptedSender(always(DELIVERED))):
        await until_owed(store, settled)
    assert (await store.usage(Page(), UsageFilter(start=OLD)))[0] == []


async def test_a_late_failure_does_not_undo_a_delivery(store: SqlStore) -> None:
    """A slow node reports a failure after another node has delivered: the notification stays delivered."""
    (notification_id,) = await owe(store)
    stuck = asyncio.Event()

    async def late(subscription: Subscription, notification: OwedNotification) -> Sent:
        await stuck.wait()
        return FAILED

    slow, fast = ScriptedSender(late), ScriptedSender(always(DELIVERED))
    clock = Clock()
    async with delivering(store, slow):
        await until(slow.has_sent)
        clock.offset = timedelta(minutes=5)
        async with delivering(store, fast, owner="node-2", clock=clock):
            await until_owed(store, settled)
        stuck.set()
        await until_owed(store, lambda all_: all_[0].attempts == 2)
    (after,) = await until_owed(store, settled)
    assert after.state is DeliveryState.DELIVERED
    assert [each.outcome.value for each in await store.attempts(notification_id)] == ["delivered", "http-error"]
