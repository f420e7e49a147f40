"""Tests of `deliverer.py`, `retry.py` and `hosts.py`: notifications arrive, in order, and are accounted for."""

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.auth.policies import Policies
from app.core.deliveries import Deliveries
from app.delivery.deliverer import Deliverer
from app.delivery.hosts import Places
from app.delivery.retry import RetryPolicy
from app.domain.changes import Changes
from app.domain.errors import InvalidRequest, NotificationUnknown, RateLimited, StoreUnavailable, SubscriptionUnknown
from app.domain.filters import NotificationFilter, UsageFilter
from app.domain.policy import Policy
from app.domain.records import Client, DeliveryState, OwedNotification, Subscription
from app.domain.sinks import EndReason, SinkKind
from app.ports.delivery import Sent
from app.ports.store import Page
from app.rest.camara.sink_parameters import status
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore
from tests.support.deliveries import (
    DELIVERED,
    FAILED,
    FREE,
    GONE,
    OLD,
    POLICY,
    QUICK,
    SILENT,
    SUBSCRIPTION,
    Clock,
    ScriptedSender,
    always,
    delivering,
    first,
    owe,
    sending,
    settled,
    store,
    until_owed,
)
from tests.support.outbox import NOW, OWNER, STRANGER, make_owed, make_subscription
from tests.support.receivers import answer, receiver
from tests.support.records import edit_of
from tests.support.waiting import DEADLINE_S, until

__all__ = ["store"]  # fixtures


async def test_notifications_arrive_in_order_and_are_accounted_for(store: SqlStore) -> None:
    """Each notification is sent once, in order, one at a time, with its attempt and usage records."""
    ids = await owe(store, 5)
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        found = await until_owed(store, settled)
    assert sender.ids() == ids
    assert sender.most_of_one == 1
    assert {notification.state for notification in found} == {DeliveryState.DELIVERED}
    (attempt,) = await store.attempts(ids[0])
    assert (attempt.number, attempt.code, attempt.outcome.value) == (1, 204, "delivered")
    usage, _ = await store.usage(Page(size=1000), UsageFilter(client_id=OWNER.id, start=OLD))
    assert Counter(record.operation.value for record in usage) == dict.fromkeys(
        [
            "statusNotification_DeliveryAttempted",
            "statusNotification_DeliveryResult",
            "statusChanged_DeliveryAttempted",
            "statusChanged_DeliveryResult",
        ],
        5,
    )


async def test_what_fails_is_tried_again_and_holds_up_what_follows(store: SqlStore) -> None:
    """A failed notification is sent again under its id, with a row for each attempt; the next notification waits for
    it."""
    ids = await owe(store, 2)
    sender = ScriptedSender(first(FAILED, replace(SILENT, answer=b"?"), FAILED))
    async with delivering(store, sender):
        await until_owed(store, settled)
    assert sender.ids() == [ids[0]] * 4 + [ids[1]]
    attempts = await store.attempts(ids[0])
    assert [(each.number, each.code, each.outcome.value) for each in attempts] == [
        (1, 500, "http-error"),
        (2, 0, "timed-out"),
        (3, 500, "http-error"),
        (4, 204, "delivered"),
    ]
    assert attempts[1].answer == b"?"


async def test_a_hint_is_not_waited_for(store: SqlStore) -> None:
    """Notifications that were written without a hint are found by polling."""
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        await owe(store)
        await until_owed(store, settled)


async def test_many_subscriptions_are_served_at_once(store: SqlStore) -> None:
    """Subscriptions do not wait for each other, and one subscription never has two notifications in flight."""
    subscriptions = [make_subscription(subscription_id=f"s{number}") for number in range(40)]
    for subscription in subscriptions:
        await owe(store, 3, subscription=subscription)
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        await until_owed(store, settled)
    assert len(sender.sent) == 120
    assert (sender.most_of_one, sender.most_at_once > 1) == (1, True)
    order: dict[str, list[int]] = defaultdict(list)
    for notification in sender.sent:
        order[notification.subscription_id].append(notification.sequence)
    assert set(map(tuple, order.values())) == {(1, 2, 3)}


async def test_410_ends_the_subscription(store: SqlStore) -> None:
    """The subscription ends with SINK_GONE, which is reported to the use cases; its other notifications are dead
    without an attempt."""
    ids = await owe(store, 3)
    sender = ScriptedSender(always(GONE))
    ended: list[tuple[str, EndReason]] = []
    async with delivering(store, sender, on_ended=lambda subscription, reason: ended.append((subscription.id, reason))):
        found = await until_owed(store, settled)
    assert {notification.state for notification in found} == {DeliveryState.DEAD}
    assert sender.ids() == ids[:1]
    assert [each.outcome.value for each in await store.attempts(ids[2])] == ["gone"]
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert (after.end_reason, after.active, ended) == (EndReason.SINK_GONE, False, [("sub-1", EndReason.SINK_GONE)])


async def test_an_expired_token_ends_the_subscription(store: SqlStore) -> None:
    """The subscription ends with TOKEN_EXPIRED; nothing is sent. What was claimed before has a failed result; what is
    owed after that has no usage records."""
    parameters = {"token": "t", "token_expires_at": "2020-01-01T00:00:00Z"}
    async with receiver() as there, sending() as webhooks:
        await owe(store, 2, subscription=make_subscription(there.url, parameters=parameters))
        async with delivering(store, webhooks):
            await until_owed(store, settled)
        assert there.connections == 0
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert after.end_reason is EndReason.TOKEN_EXPIRED
    records, _ = await store.usage(Page(), UsageFilter(start=OLD))
    assert [(one.operation.value, one.result, one.root_cause) for one in records] == [
        ("statusNotification_DeliveryAttempted", "OK", ""),
        ("statusChanged_DeliveryAttempted", "OK", ""),
        ("statusNotification_DeliveryResult", "SINK_UNREACHABLE", "token-expired"),
        ("statusChanged_DeliveryResult", "SINK_UNREACHABLE", "token-expired"),
    ]


async def test_a_401_to_an_expired_token_ends_the_subscription(store: SqlStore) -> None:
    """A sink that answers 401 once its token has expired ends the subscription as expired (CAMARA r1.2,
    Subscription.status), and gets nothing more."""
    soon = datetime.now(UTC) + timedelta(seconds=20)  # the sink's clock is ahead
    parameters = {"token": "t", "token_expires_at": soon.isoformat()}
    async with receiver(answer(401)) as there, sending() as webhooks:
        ids = await owe(store, 2, subscription=make_subscription(there.url, parameters=parameters))
        async with delivering(store, webhooks):
            await until_owed(store, settled)
        assert len(there.requests) == 1
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert (after.end_reason, after.end_detail, status(after)) == (EndReason.TOKEN_EXPIRED, "http-401", "EXPIRED")
    assert [each.code for each in await store.attempts(ids[0])] == [401]


async def move(store: SqlStore, deliverer: Deliverer, url: str) -> None:
    """Gives SUBSCRIPTION another endpoint, as a client's change does."""
    sink = replace(SUBSCRIPTION.sink, url=url)
    edit = edit_of(SUBSCRIPTION, sink=sink, resumes_at=datetime.now(UTC))
    await store.write(Changes(edits=[edit]))
    deliverer.sink_changed(replace(SUBSCRIPTION, sink=sink))
    deliverer.hint()


async def test_another_endpoint_gets_what_waits(store: SqlStore) -> None:
    """A suspended subscription that gets another endpoint is no longer suspended; what waited is sent there at once, in
    order."""
    names = await owe(store, 3)
    urls: list[str] = []

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        urls.append(subscription.sink.url)
        return DELIVERED if subscription.sink.url == "https://other.example/" else FAILED

    policy = RetryPolicy(first_s=3600, most_s=3600, suspend_after=1)
    sender = ScriptedSender(reply)
    async with delivering(store, sender, policy=policy) as deliverer:

        async def suspended() -> bool:
            now = await store.subscription(SUBSCRIPTION.id)
            return now is not None and now.suspended_at is not None

        await until(suspended)
        await move(store, deliverer, "https://other.example/")
        assert not await suspended()
        await until_owed(store, settled)
    assert sender.ids() == [names[0], *names]
    assert urls == [SUBSCRIPTION.sink.url, *["https://other.example/"] * 3]
    assert not await suspended()


@pytest.mark.parametrize("old", [FAILED, GONE, SILENT])
async def test_another_endpoint_during_an_attempt(store: SqlStore, old: Sent) -> None:
    """What the old endpoint answers after the change, even 410 Gone, neither delays the next attempt nor ends or
    suspends the subscription."""
    (name,) = await owe(store)
    opened = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if subscription.sink.url == "https://other.example/":
            return DELIVERED
        await opened.wait()
        return old

    policy = RetryPolicy(first_s=3600, most_s=3600, suspend_after=1)
    sender = ScriptedSender(reply)
    async with delivering(store, sender, policy=policy) as deliverer:
        await until(sender.has_sent)
        await move(store, deliverer, "https://other.example/")
        opened.set()
        await until_owed(store, settled)
    assert sender.ids() == [name, name]
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert (after.active, after.suspended_at) == (True, None)


async def test_queued_notifications_go_to_the_host_of_the_new_endpoint(store: SqlStore) -> None:
    """A notification that is queued at a host that hangs is sent to the new endpoint, without waiting for the old
    host."""
    await owe(store, subscription=make_subscription(subscription_id="hangs"))
    never = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if subscription.sink.url == SUBSCRIPTION.sink.url:
            await never.wait()
        return DELIVERED

    sender = ScriptedSender(reply)
    async with delivering(store, sender, places=Places(unproven_host=1, per_host=1)) as deliverer:
        await until(sender.has_sent)
        (name,) = await owe(store)
        deliverer.hint()
        await until(lambda: deliverer.held == 2)
        await move(store, deliverer, "https://other.example/")
        await until(lambda: name in sender.ids())
        never.set()
        await until_owed(store, settled)


async def test_an_endpoint_that_fails_for_long_is_suspended(store: SqlStore) -> None:
    """The subscription shows since when it is suspended; the first success ends the suspension."""
    await owe(store)
    working = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        return DELIVERED if working.is_set() else FAILED

    async def seen(*, suspended: bool) -> bool:
        now = await store.subscription(SUBSCRIPTION.id)
        return now is not None and now.active and (now.suspended_at is not None) is suspended

    sender = ScriptedSender(reply)
    async with delivering(store, sender, policy=replace(QUICK, suspend_after=3)):
        await until(lambda: seen(suspended=True))
        working.set()
        await until_owed(store, settled)
    assert await seen(suspended=False)


async def test_dead_ones_are_listed_and_sent_again(store: SqlStore) -> None:
    """A notification that is too old is dead after its attempt. It is listed as dead, and is sent again on request."""
    ids = await owe(store, 2, at=datetime.now(UTC) - timedelta(days=4))
    sender = ScriptedSender(first(FAILED, FAILED))
    async with delivering(store, sender) as deliverer:
        await until_owed(store, settled)
        deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
        deliveries.on_notifications_owed = deliverer.hint
        dead, _ = await deliveries.list(OWNER, Page(), NotificationFilter(state=DeliveryState.DEAD))
        assert [each.id for each in dead] == ids
        assert await deliveries.send_again(OWNER, [*ids, *ids]) == 2
        await until_owed(store, lambda all_: all(each.state is DeliveryState.DELIVERED for each in all_))
        assert await deliveries.send_again(OWNER, ids) == 0
    assert sender.ids() == ids + ids
    assert [each.number for each in await store.attempts(ids[0])] == [1, 2]


async def test_delivered_ones_are_replayed(store: SqlStore) -> None:
    """A replay sends what was delivered in a span of time once more: in the order, with the ids and contents of before,
    in portions; what the gateway no longer keeps does not count."""
    at = datetime.now(UTC) - timedelta(hours=1)
    early, late = await owe(store, 2, at=at), ["late-1", "late-2", "late-3"]
    await store.write(Changes(owed=[make_owed(SUBSCRIPTION, each, at=at + timedelta(minutes=10)) for each in late]))
    sender = ScriptedSender(first())
    async with delivering(store, sender) as deliverer:
        await until_owed(store, settled)
        before = {each.id: each.changes for each in sender.sent}
        assert sender.ids() == early + late
        deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
        deliveries.on_notifications_owed = deliverer.hint

        async def replay(start: datetime, end: datetime | None = None, token: str = "") -> tuple[int, str]:
            return await deliveries.replay(OWNER, SUBSCRIPTION.id, start=start, end=end, page_token=token)

        assert await replay(at, at + timedelta(minutes=10)) == (2, "")
        await until_owed(store, settled)
        assert sender.ids()[5:] == early
        assert await replay(at + timedelta(minutes=1)) == (3, "")
        await until_owed(store, settled)
        assert sender.ids()[7:] == late
        assert {each.id: each.changes for each in sender.sent[5:]} == before
        assert await replay(at + timedelta(minutes=11)) == (0, "")
        await store.purge(datetime.now(UTC) + timedelta(days=1), 1000)
        assert await replay(at) == (0, "")


async def test_what_cannot_be_replayed(store: SqlStore) -> None:
    """A replay needs a start, and a subscription of the client whose sink is sent something."""
    await owe(store, 1)
    deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
    began, nothing = datetime.now(UTC), SUBSCRIPTION.id
    for client, subscription_id, start, error in (
        (OWNER, nothing, None, InvalidRequest),
        (STRANGER, nothing, began, SubscriptionUnknown),
        (OWNER, "none", began, SubscriptionUnknown),
    ):
        with pytest.raises(error):
            await deliveries.replay(client, subscription_id, start=start, end=None, page_token="")


async def test_each_call_counts_against_the_rate(store: SqlStore) -> None:
    """A client above its rate is refused in each call about its notifications."""
    ids = await owe(store, 2)
    deliveries = Deliveries(store, Clock(), Policies(Policy(rate_per_s=1), lambda: 0.0), SINK_CONTRACTS)
    assert await deliveries.send_again(OWNER, ids) == 0
    for call in (
        deliveries.list(OWNER, Page()),
        deliveries.get(OWNER, ids[0]),
        deliveries.attempts(OWNER, ids[0], Page()),
        deliveries.send_again(OWNER, ids),
    ):
        with pytest.raises(RateLimited):
            await call


async def test_what_is_anothers_is_unknown(store: SqlStore) -> None:
    """Another client sees nothing and may do nothing; an admin sees everything; too many ids in one call are
    refused."""
    ids = await owe(store)
    deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
    assert await deliveries.list(STRANGER, Page()) == ([], "")
    for call in (
        deliveries.get(STRANGER, ids[0]),
        deliveries.attempts(STRANGER, ids[0], Page()),
        deliveries.send_again(STRANGER, ids),
        deliveries.get(OWNER, "none"),
    ):
        with pytest.raises(NotificationUnknown):
            await call
    admin = Client(id="admin", name="Admin", created_at=NOW, admin=True)
    assert (await deliveries.get(admin, ids[0])).id == ids[0]
    assert [each.id for each in (await deliveries.list(admin, Page()))[0]] == ids
    assert await deliveries.attempts(OWNER, ids[0], Page()) == ([], "")
    with pytest.raises(InvalidRequest):
        await deliveries.send_again(OWNER, [str(number) for number in range(1001)])


async def test_a_lookup_that_hangs_does_not_hold_up_the_end(store: SqlStore) -> None:
    """A name server that never answers costs an attempt its time limit, and a stop at most its own limit."""
    asked, release = threading.Event(), threading.Event()

    async def lookup(host: str, port: int) -> Sequence[str]:
        def wait() -> list[str]:
            asked.set()
            release.wait(DEADLINE_S)
            return ["127.0.0.1"]

        return await asyncio.get_running_loop().run_in_executor(None, wait)

    await owe(store)
    try:
        async with sending(total_s=0.5, lookup=lookup) as webhooks, delivering(store, webhooks) as deliverer:
            await asyncio.to_thread(asked.wait, DEADLINE_S)
            await deliverer.aclose(0.5)
    finally:
        release.set()
    assert (await until_owed(store, lambda _: True))[0].state is DeliveryState.PENDING


async def test_two_nodes_share_the_work(store: SqlStore) -> None:
    """Several deliverers on one store together send each notification once."""
    for number in range(60):
        await owe(store, 2, subscription=make_subscription(subscription_id=f"s{number}"))
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender), delivering(store, sender, owner="node-2"):
        await until_owed(store, settled)
    assert sorted(Counter(sender.ids()).values()) == [1] * 120
    assert sender.most_of_one == 1


async def test_stopping_lets_what_is_in_flight_end(store: SqlStore) -> None:
    """A stop waits for attempts in flight, records them, and releases the other leases at once."""
    for number in range(30):
        await owe(store, subscription=make_subscription(subscription_id=f"s{number}"))
    go = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await go.wait()
        return DELIVERED

    slow = ScriptedSender(reply)
    places = Places(unproven_host=4)
    async with delivering(store, slow, places=places) as deliverer:
        await until(lambda: slow.has_sent(4))
        stopping = asyncio.create_task(deliverer.aclose(DEADLINE_S))
        await asyncio.sleep(0)
        go.set()
        await stopping
    assert len(slow.sent) == 4
    found = await until_owed(store, lambda _: True)
    assert Counter(each.state for each in found) == {DeliveryState.DELIVERED: 4, DeliveryState.PENDING: 26}
    other = ScriptedSender(always(DELIVERED))
    async with delivering(store, other, owner="node-2", clock=Clock(timedelta(seconds=31))):
        await until_owed(store, settled)
    assert not set(other.ids()) & set(slow.ids())


async def test_many_hosts_of_one_client_leave_places_to_others(store: SqlStore) -> None:
    """A client whose hosts all hang, one of them shared with another client, gets half of the places. Its waiting
    notifications continue when the hosts answer."""
    hanging = [
        make_subscription(f"https://h{number % 20}.example/", subscription_id=f"h{number}", client_id="many")
        for number in range(40)
    ]
    for subscription in hanging:
        await owe(store, subscription=subscription)
    go = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if subscription.client_id == "many":
            await go.wait()
        return DELIVERED

    sender = ScriptedSender(reply)
    async with delivering(store, sender, places=Places(overall=8)) as deliverer:
        await until(lambda: sender.has_sent(4))
        for number in range(3):
            other = make_subscription(f"https://h{number}.example/", subscription_id=f"o{number}", client_id="other")
            await owe(store, subscription=other)
        deliverer.hint()
        await until(lambda: sender.has_sent(7))
        assert Counter(one.client_id for one in sender.sent) == {"many": 4, "other": 3}
        go.set()
        await until_owed(store, settled)
    assert len(sender.sent) == len(hanging) + 3


async def test_stopping_does_not_wait_for_ever(store: SqlStore) -> None:
    """Attempts that do not end within the limit are released; another node sends their notifications again under the
    same ids."""
    ids = await owe(store)

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await asyncio.Event().wait()
        return DELIVERED

    stuck, other = ScriptedSender(reply), ScriptedSender(always(DELIVERED))
    async with delivering(store, stuck) as deliverer:
        await until(stuck.has_sent)
        await deliverer.aclose(0.05)
    async with delivering(store, other, owner="node-2"):
        await until_owed(store, settled)
    assert stuck.ids() == other.ids() == ids


async def test_a_database_that_is_away_for_a_while(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are recorded when the database is back; nothing is sent twice meanwhile, and nothing is lost."""
    ids = await owe(store, 3)
    away = {"claim": 2, "subscriptions_by_id": 1, "record_attempts": 3, "release_leases": 1}

    def unreliable(name: str, method: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if away[name]:
                away[name] -= 1
                raise StoreUnavailable("away")
            return await method(*args, **kwargs)

        return call

    for name in away:
        monkeypatch.setattr(store, name, unreliable(name, getattr(store, name)))
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        await until_owed(store, settled)
    assert sender.ids() == ids
    assert not any(away.values())


async def test_one_attempt_that_cannot_be_written_does_not_hold_up_the_others(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt whose records cannot be written keeps its lease until that expires; the other attempts of its group
    are written."""
    for number in range(6):
        await owe(store, subscription=make_subscription(subscription_id=f"s{number}"))
    write = store.record_attempts

    async def failing(attempted: Any) -> None:
        if any(each.attempt.notification_id == "s3/0" for each in attempted):
            raise ValueError("cannot be written")
        await write(attempted)

    monkeypatch.setattr(store, "record_attempts", failing)
    async with delivering(store, ScriptedSender(always(DELIVERED))):
        found = await until_owed(store, lambda all_: sum(each.state is DeliveryState.DELIVERED for each in all_) == 5)
    assert [each.id for each in found if each.state is DeliveryState.PENDING] == ["s3/0"]


async def test_a_sender_that_breaks_is_a_failed_attempt(store: SqlStore) -> None:
    """An unexpected exception in a sender is a failed attempt, which is tried again; the deliverer goes on."""
    (notification_id,) = await owe(store)
    left = [RuntimeError("a defect")]

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if left:
            raise left.pop()
        return DELIVERED

    async with delivering(store, ScriptedSender(reply)):
        await until_owed(store, settled)
    assert [each.outcome.value for each in await store.attempts(notification_id)] == ["defect", "delivered"]


async def test_a_sender_that_hangs_is_cut_off(store: SqlStore) -> None:
    """An attempt ends at its time limit, even where the sender hangs."""
    (notification_id,) = await owe(store)
    left = [True]

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if left:
            left.pop()
            await asyncio.Event().wait()
        return DELIVERED

    async with delivering(store, ScriptedSender(reply), send_limit_s=0.1):
        await until_owed(store, settled)
    assert [each.outcome.value for each in await store.attempts(notification_id)] == ["timed-out", "delivered"]


async def test_streams_are_listed_and_not_sent(store: SqlStore) -> None:
    """A notification of a subscription without an endpoint is settled without sending, and is not billed."""
    await owe(store, subscription=make_subscription("", kind=SinkKind.STREAM))
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        (found,) = await until_owed(store, settled)
    assert (found.state, sender.sent) == (DeliveryState.DELIVERED, [])
    assert await store.usage(Page(), UsageFilter(start=OLD)) == ([], "")


async def test_a_hanging_host_keeps_its_share(store: SqlStore) -> None:
    """An endpoint that hangs, however much it is owed, is reduced to one place; other endpoints get theirs."""
    for number in range(80):
        await owe(store, subscription=make_subscription("https://hangs.example/", subscription_id=f"h{number}"))
    for number in range(40):
        await owe(store, subscription=make_subscription("https://works.example/", subscription_id=f"w{number}"))
    hanging = Counter[str]()
    most = 0
    released = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        nonlocal most
        if subscription.id.startswith("w"):
            return DELIVERED
        hanging["now"] += 1
        most = max(most, hanging["now"])
        try:
            await released.wait()
            return SILENT
        finally:
            hanging["now"] -= 1

    places = Places(overall=16, per_host=8, unproven_host=4, queued_per_host=16, held=64)
    slow = replace(POLICY, first_s=3600.0, most_s=3600.0)
    async with delivering(store, ScriptedSender(reply), places=places, policy=slow) as deliverer:
        await until_owed(
            store, lambda all_: all(each.state is DeliveryState.DELIVERED for each in all_ if each.id[0] == "w")
        )
        assert most == places.unproven_host
        assert hanging["now"] == places.unproven_host
        assert deliverer.held < places.held
        released.set()
