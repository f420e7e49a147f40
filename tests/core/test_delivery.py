"""Tests of `deliverer.py`, `retry.py` and `hosts.py`: what is owed arrives, in order, and is accounted for."""

import asyncio
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.auth.policies import Policies
from app.core.deliveries import Deliveries
from app.delivery.deliverer import Deliverer
from app.delivery.hosts import Host, Places
from app.delivery.retry import RetryPolicy, judge, usage_of
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import InvalidRequest, NotificationUnknown, RateLimited, StoreUnavailable
from app.domain.policy import Policy
from app.domain.records import Client, DeliveryState, NotificationKind, OwedNotification, Subscription
from app.domain.sinks import EndReason, SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.ports import Page, Sender, Sent
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore, open_store
from tests.support.outbox import ALICE, BOB, NOW, OWNER, STRANGER, change, make_owed, make_subscription
from tests.support.receivers import answer, hang, in_turn, receiver

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 20.0
POLICY = RetryPolicy()
QUICK = RetryPolicy(first_s=0.01, most_s=0.02)
FAILED = Sent(delivered=False, code=500, outcome="http-500")
SILENT = Sent(delivered=False, outcome="timed-out")
DELIVERED = Sent(delivered=True, code=204)
GONE = Sent(delivered=False, code=410, outcome="http-410", gone=True)
OLD = NOW - timedelta(days=400)
SUBSCRIPTION = make_subscription()
FREE = Policies(Policy(), lambda: 0.0)


def judged(sent: Sent, *, attempts: int = 0, age: timedelta = timedelta(), jitter: float = 0.5, **fields: Any) -> Any:
    """The verdict on an attempt of a notification of that age."""
    notification = make_owed(SUBSCRIPTION, at=NOW - age, attempts=attempts)
    return judge(notification, replace(SUBSCRIPTION, **fields), sent, NOW, jitter=jitter, policy=POLICY)


def test_waits_grow_and_end_after_three_days() -> None:
    """Seconds at first, half an hour at most, a last try after exactly three days, then dead."""
    notification, now, waits = make_owed(SUBSCRIPTION), NOW, []
    subscription = SUBSCRIPTION
    while True:
        verdict = judge(notification, subscription, FAILED, now, jitter=0.5, policy=POLICY)
        if verdict.next_attempt_at is None:
            break
        waits.append((verdict.next_attempt_at - now).total_seconds())
        now = verdict.next_attempt_at
        notification = replace(notification, attempts=notification.attempts + 1)
        subscription = replace(subscription, suspended_at=verdict.suspended_at)
    assert verdict.state is DeliveryState.DEAD
    assert waits[:5] == [2, 4, 8, 16, 32]
    assert max(waits) == POLICY.most_s
    assert now == NOW + timedelta(days=3)
    assert 100 < len(waits) < 200


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10_000))
def test_jitter_spreads_waits_by_a_quarter(jitter: float, attempts: int) -> None:
    """Waits are between 3/4 and 5/4 of what they would be, whatever the number of attempts."""
    plain = (judged(FAILED, attempts=attempts).next_attempt_at - NOW).total_seconds()
    wait = (judged(FAILED, attempts=attempts, jitter=jitter).next_attempt_at - NOW).total_seconds()
    assert 0.74 * plain <= wait <= 1.26 * plain
    assert wait <= 1.26 * POLICY.most_s


@pytest.mark.parametrize(("said_s", "wait_s"), [(None, 2), (0, 2), (1, 2), (60, 60), (10**9, 6 * 3600)])
def test_retry_after_is_honoured_and_bounded(said_s: float | None, wait_s: float) -> None:
    """An endpoint may ask for a longer wait, up to six hours; not for a shorter one."""
    verdict = judged(replace(FAILED, code=429, retry_after_s=said_s))
    assert verdict.next_attempt_at == NOW + timedelta(seconds=wait_s)


def test_a_last_attempt_stands_at_the_end() -> None:
    """No wait reaches beyond the age at which it is given up; at that age a failure is the last."""
    verdict = judged(FAILED, attempts=5, age=timedelta(days=3, seconds=-1))
    assert verdict.next_attempt_at == NOW + timedelta(seconds=1)
    assert judged(FAILED, attempts=0, age=timedelta(days=3)).state is DeliveryState.DEAD


def test_410_and_an_expired_token_end_the_subscription() -> None:
    """The notification is dead at once, and so is the subscription, with its reason."""
    assert (judged(GONE).state, judged(GONE).ends) == (DeliveryState.DEAD, EndReason.SINK_GONE)
    expired = judged(Sent(delivered=False, outcome="token-expired", ends=EndReason.TOKEN_EXPIRED))
    assert (expired.state, expired.ends) == (DeliveryState.DEAD, EndReason.TOKEN_EXPIRED)


def test_suspension() -> None:
    """After ten failures in a row the subscription is suspended, stays so with its first time, is probed at the
    longest wait, and the first success clears it."""
    assert judged(FAILED, attempts=8).suspended_at is None
    assert judged(FAILED, attempts=9).suspended_at == NOW
    later = judged(FAILED, attempts=0, suspended_at=OLD)
    assert later.suspended_at == OLD
    assert later.next_attempt_at == NOW + timedelta(seconds=POLICY.most_s)
    assert judged(DELIVERED, attempts=50, suspended_at=OLD).suspended_at is None
    assert judged(GONE, suspended_at=OLD).suspended_at == OLD


def billed(notification: OwedNotification, state: DeliveryState, outcome: str) -> list[tuple[str, str, str]]:
    """Operation, result and targets of an attempt's usage records."""
    records = usage_of(notification, SUBSCRIPTION, state, outcome, NOW, "id")
    assert len({record.id for record in records}) == len(records)
    assert {(r.client_id, r.face, r.correlator, r.subscription_id) for r in records} <= {
        (OWNER.id, "gateway", SUBSCRIPTION.correlator, SUBSCRIPTION.id)
    }
    return [(record.operation, record.result, " ".join(record.targets)) for record in records]


def test_usage_of_a_status_notification() -> None:
    """Attempted with the first attempt, result when settled; once for the message and once for each change in it."""
    two = make_owed(SUBSCRIPTION, changes=[change(), change(BOB)])
    attempted = [
        ("statusNotification_DeliveryAttempted", "OK", f"{ALICE} {BOB}"),
        ("statusChanged_DeliveryAttempted", "OK", ALICE),
        ("statusChanged_DeliveryAttempted", "OK", BOB),
    ]
    result = [(name.replace("Attempted", "Result"), ok, targets) for name, ok, targets in attempted]
    assert billed(two, DeliveryState.DELIVERED, "delivered") == attempted + result
    assert billed(two, DeliveryState.PENDING, "http-500") == attempted
    assert billed(replace(two, attempts=1), DeliveryState.PENDING, "http-500") == []
    assert billed(replace(two, attempts=1), DeliveryState.DELIVERED, "delivered") == result
    assert billed(replace(two, attempts=1), DeliveryState.DEAD, "http-500") == [
        (name, "SINK_UNREACHABLE", targets) for name, _, targets in result
    ]


def test_usage_of_other_notifications() -> None:
    """Errors and ends have their names; what the contract does not name, and what was not sent, is not billed."""
    error = make_owed(SUBSCRIPTION, kind=NotificationKind.ERROR, address=BOB)
    assert billed(error, DeliveryState.DELIVERED, "delivered") == [
        ("statusError_DeliveryAttempted", "OK", BOB),
        ("statusError_DeliveryResult", "OK", BOB),
    ]
    end = make_owed(SUBSCRIPTION, kind=NotificationKind.ENDED)
    assert [name for name, _, _ in billed(end, DeliveryState.DELIVERED, "delivered")] == [
        "statusEnd_DeliveryAttempted",
        "statusEnd_DeliveryResult",
    ]
    for kind in (NotificationKind.STARTED, NotificationKind.TEST):
        assert billed(make_owed(SUBSCRIPTION, kind=kind), DeliveryState.DELIVERED, "delivered") == []
    for outcome in ("token-expired", "gone", "listed", "not-told"):
        assert billed(end, DeliveryState.DEAD, outcome) == []


def test_a_hosts_places() -> None:
    """Few until it answers, all then, one while it is silent; what does not fit waits accordingly."""
    places, host = Places(), Host(known_since_s=0)
    assert host.share(places) == places.unproven_host
    for _ in range(50):
        host.ended(0.001, answered=True)
    assert host.share(places) == places.per_host
    assert host.put_off_s(places, 0) < 1
    for _ in range(5):
        host.ended(10, answered=False)
    assert host.share(places) == 1
    assert host.put_off_s(places, 0) > 1
    host.ended(0.001, answered=True)
    assert host.share(places) == places.per_host
    host.in_flight = 5
    for _ in range(5):
        host.interrupted()
    assert (host.share(places), host.in_flight) == (places.per_host, 0), "a pause of ours is no silence of a host"


Answer = Callable[[Subscription, OwedNotification], Awaitable[Sent]]


@dataclass
class ScriptedSender:
    """Answers each attempt by a function, and remembers what was sent."""

    answer: Answer
    sent: list[OwedNotification] = field(default_factory=list)
    now: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    most_of_one: int = 0

    async def check(self, subscription: Subscription) -> None:
        """Not asked here."""

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
        """Whether so many attempts were made."""
        return len(self.sent) >= count

    def ids(self) -> list[str]:
        """Ids in the order of attempts."""
        return [notification.id for notification in self.sent]


def always(sent: Sent) -> Answer:
    """The same answer to all."""

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await asyncio.sleep(0)
        return sent

    return reply


def first(*sents: Sent) -> Answer:
    """These in turn, then delivered."""
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
    """Stores the subscription and notifications owed to it; their ids."""
    fields.setdefault("at", datetime.now(UTC))
    owed = [make_owed(subscription, f"{subscription.id}/{number}", **fields) for number in range(count)]
    await store.create_subscription(subscription, owed, ())
    return [notification.id for notification in owed]


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.02)


async def until(store: SqlStore, condition: Callable[[Sequence[OwedNotification]], bool]) -> list[OwedNotification]:
    """Waits until all notifications are as the condition wants them."""
    found: list[OwedNotification] = []

    async def holds() -> bool:
        found.clear()
        token = ""
        while True:
            page, token = await store.notifications(None, Page(size=1000, token=token))
            found.extend(page)
            if not token:
                return condition(found)

    await eventually(holds)
    return found


def settled(found: Sequence[OwedNotification]) -> bool:
    """Whether none is pending."""
    return all(notification.state is not DeliveryState.PENDING for notification in found)


async def test_notifications_arrive_in_order_and_are_accounted_for(store: SqlStore) -> None:
    """Each once, in order, one at a time; with its attempt and usage records."""
    ids = await owe(store, 5)
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        found = await until(store, settled)
    assert sender.ids() == ids
    assert sender.most_of_one == 1
    assert {notification.state for notification in found} == {DeliveryState.DELIVERED}
    (attempt,) = await store.attempts(ids[0])
    assert (attempt.number, attempt.code, attempt.outcome) == (1, 204, "delivered")
    usage, _ = await store.usage(OWNER.id, OLD, Page(size=1000))
    assert Counter(record.operation for record in usage) == dict.fromkeys(
        [
            "statusNotification_DeliveryAttempted",
            "statusNotification_DeliveryResult",
            "statusChanged_DeliveryAttempted",
            "statusChanged_DeliveryResult",
        ],
        5,
    )


async def test_what_fails_is_tried_again_and_holds_up_what_follows(store: SqlStore) -> None:
    """A failed one is sent again under its id, with a row for each attempt; the next waits for it."""
    ids = await owe(store, 2)
    sender = ScriptedSender(first(FAILED, replace(SILENT, answer=b"?"), FAILED))
    async with delivering(store, sender):
        await until(store, settled)
    assert sender.ids() == [ids[0]] * 4 + [ids[1]]
    attempts = await store.attempts(ids[0])
    assert [(each.number, each.code, each.outcome) for each in attempts] == [
        (1, 500, "http-500"),
        (2, 0, "timed-out"),
        (3, 500, "http-500"),
        (4, 204, "delivered"),
    ]
    assert attempts[1].answer == b"?"


async def test_a_hint_is_not_waited_for(store: SqlStore) -> None:
    """What was written without any hint is found by looking."""
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        await owe(store)
        await until(store, settled)


async def test_many_subscriptions_are_served_at_once(store: SqlStore) -> None:
    """Different subscriptions do not wait for each other, and one never has two in flight."""
    subscriptions = [make_subscription(subscription_id=f"s{number}") for number in range(40)]
    for subscription in subscriptions:
        await owe(store, 3, subscription=subscription)
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        await until(store, settled)
    assert len(sender.sent) == 120
    assert (sender.most_of_one, sender.most_at_once > 1) == (1, True)
    order: dict[str, list[int]] = defaultdict(list)
    for notification in sender.sent:
        order[notification.subscription_id].append(notification.sequence)
    assert set(map(tuple, order.values())) == {(1, 2, 3)}


async def test_410_ends_the_subscription(store: SqlStore) -> None:
    """It ends with SINK_GONE, its owner's use case is told, and what else it was owed is dead without an attempt."""
    ids = await owe(store, 3)
    sender = ScriptedSender(always(GONE))
    ended: list[tuple[str, EndReason]] = []
    async with delivering(store, sender, ended=lambda subscription, reason: ended.append((subscription.id, reason))):
        found = await until(store, settled)
    assert {notification.state for notification in found} == {DeliveryState.DEAD}
    assert sender.ids() == ids[:1]
    assert [each.outcome for each in await store.attempts(ids[2])] == ["gone"]
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert (after.end_reason, after.active, ended) == (EndReason.SINK_GONE, False, [("sub-1", EndReason.SINK_GONE)])


async def test_an_expired_token_ends_the_subscription(store: SqlStore) -> None:
    """It ends with TOKEN_EXPIRED, nothing is sent and nothing billed."""
    parameters = {"token": "t", "token_expires_at": "2020-01-01T00:00:00Z"}
    async with receiver() as there, sending() as webhooks:
        await owe(store, 2, subscription=make_subscription(there.url, parameters=parameters))
        async with delivering(store, webhooks):
            await until(store, settled)
        assert there.connections == 0
    after = await store.subscription(SUBSCRIPTION.id)
    assert after is not None
    assert after.end_reason is EndReason.TOKEN_EXPIRED
    assert await store.usage(None, OLD, Page()) == ([], "")


async def test_an_endpoint_that_fails_for_long_is_suspended(store: SqlStore) -> None:
    """Its owner sees since when; the first success clears it."""
    await owe(store)
    working = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        return DELIVERED if working.is_set() else FAILED

    async def seen(*, suspended: bool) -> bool:
        now = await store.subscription(SUBSCRIPTION.id)
        return now is not None and now.active and (now.suspended_at is not None) is suspended

    sender = ScriptedSender(reply)
    async with delivering(store, sender, policy=replace(QUICK, suspend_after=3)):
        await eventually(lambda: seen(suspended=True))
        working.set()
        await until(store, settled)
    assert await seen(suspended=False)


async def test_dead_ones_are_listed_and_sent_again(store: SqlStore) -> None:
    """What is too old is dead after its attempt, is listed as such, and goes out again when told to."""
    ids = await owe(store, 2, at=datetime.now(UTC) - timedelta(days=4))
    sender = ScriptedSender(first(FAILED, FAILED))
    async with delivering(store, sender) as deliverer:
        await until(store, settled)
        deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
        deliveries.on_notifications_owed = deliverer.hint
        dead, _ = await deliveries.list(OWNER, Page(), state=DeliveryState.DEAD)
        assert [each.id for each in dead] == ids
        assert await deliveries.send_again(OWNER, [*ids, *ids]) == 2
        await until(store, lambda all_: all(each.state is DeliveryState.DELIVERED for each in all_))
        assert await deliveries.send_again(OWNER, ids) == 0
    assert sender.ids() == ids + ids
    assert [each.number for each in await store.attempts(ids[0])] == [1, 2]


async def test_each_call_counts_against_the_rate(store: SqlStore) -> None:
    """A client above its rate is refused, whatever it asks of its notifications."""
    ids = await owe(store, 2)
    deliveries = Deliveries(store, Clock(), Policies(Policy(rate_per_s=1), lambda: 0.0), SINK_CONTRACTS)
    assert await deliveries.send_again(OWNER, ids) == 0
    for call in (
        deliveries.list(OWNER, Page()),
        deliveries.get(OWNER, ids[0]),
        deliveries.attempts(OWNER, ids[0]),
        deliveries.send_again(OWNER, ids),
    ):
        with pytest.raises(RateLimited):
            await call


async def test_what_is_anothers_is_unknown(store: SqlStore) -> None:
    """Another client sees, and may do, nothing; an admin sees all; too many at a time are refused."""
    ids = await owe(store)
    deliveries = Deliveries(store, Clock(), FREE, SINK_CONTRACTS)
    assert await deliveries.list(STRANGER, Page()) == ([], "")
    for call in (
        deliveries.get(STRANGER, ids[0]),
        deliveries.attempts(STRANGER, ids[0]),
        deliveries.send_again(STRANGER, ids),
        deliveries.get(OWNER, "none"),
    ):
        with pytest.raises(NotificationUnknown):
            await call
    admin = Client(id="admin", name="Admin", created_at=NOW, admin=True)
    assert (await deliveries.get(admin, ids[0])).id == ids[0]
    assert [each.id for each in (await deliveries.list(admin, Page()))[0]] == ids
    assert await deliveries.attempts(OWNER, ids[0]) == []
    with pytest.raises(InvalidRequest):
        await deliveries.send_again(OWNER, [str(number) for number in range(1001)])


async def test_a_lookup_that_hangs_does_not_hold_up_the_end(store: SqlStore) -> None:
    """A name server that never answers costs an attempt its time, and a stop no more than its limit."""
    asked, release = threading.Event(), threading.Event()

    async def lookup(host: str, port: int) -> Sequence[str]:
        def wait() -> list[str]:
            asked.set()
            release.wait(WAIT_S)
            return ["127.0.0.1"]

        return await asyncio.get_running_loop().run_in_executor(None, wait)

    await owe(store)
    try:
        async with sending(total_s=0.5, lookup=lookup) as webhooks, delivering(store, webhooks) as deliverer:
            await asyncio.to_thread(asked.wait, WAIT_S)
            await deliverer.aclose(0.5)
    finally:
        release.set()
    assert (await until(store, lambda _: True))[0].state is DeliveryState.PENDING


async def test_two_nodes_share_the_work(store: SqlStore) -> None:
    """Several deliverers on one store send each notification once between them."""
    for number in range(60):
        await owe(store, 2, subscription=make_subscription(subscription_id=f"s{number}"))
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender), delivering(store, sender, owner="node-2"):
        await until(store, settled)
    assert sorted(Counter(sender.ids()).values()) == [1] * 120
    assert sender.most_of_one == 1


async def withdraw(store: SqlStore, subscription: Subscription) -> None:
    """Ends it in the store as endNotification does."""
    now = datetime.now(UTC)
    update = SubscriptionUpdate(
        subscription_id=subscription.id, ended_at=now, end_reason=EndReason.CANCELLED, end_detail="", withdraws=True
    )
    await store.write(Changes(updates=[update]))


def gate(event: asyncio.Event, sent: Sent) -> Answer:
    """That answer, once the event is set."""

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await event.wait()
        return sent

    return reply


async def test_what_waits_for_its_host_is_withdrawn(store: SqlStore) -> None:
    """A notification that is claimed and waits for a place is not sent after its subscription's end."""
    kept, ended = (make_subscription(subscription_id=name) for name in ("kept", "ended"))
    await owe(store, subscription=kept)
    await owe(store, subscription=ended)
    answered = asyncio.Event()
    sender = ScriptedSender(gate(answered, DELIVERED))
    async with delivering(store, sender, places=Places(per_host=1, unproven_host=1)) as deliverer:
        await eventually(sender.has_sent)
        (in_flight,) = sender.sent
        other = ended if in_flight.subscription_id == kept.id else kept

        async def is_claimed() -> bool:
            return await store.lease_owner(other.id) is not None

        await eventually(is_claimed)
        await withdraw(store, other)
        await deliverer.withdrawn(other)()
        answered.set()
        await until(store, settled)
        await owe(store, subscription=make_subscription(subscription_id="later"))
        deliverer.hint()
        await until(store, settled)
    assert [one.subscription_id for one in sender.sent] == [in_flight.subscription_id, "later"]
    assert await store.lease_owner(other.id) is None


async def test_what_is_being_claimed_is_withdrawn(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that was written before the subscription's end, and is heard of after it, sends nothing."""
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
        async with asyncio.timeout(WAIT_S):
            await claimed.wait()
        await withdraw(store, SUBSCRIPTION)
        await deliverer.withdrawn(SUBSCRIPTION)()
        go_on.set()
        await owe(store, subscription=make_subscription(subscription_id="later"))
        deliverer.hint()
        await until(store, settled)
    assert [one.subscription_id for one in sender.sent] == ["later"]


async def test_an_attempt_of_another_node_is_waited_for(store: SqlStore) -> None:
    """Who ends a subscription waits for the node that has its notification in flight."""
    await owe(store)
    answered, happened = asyncio.Event(), list[str]()
    there = ScriptedSender(gate(answered, FAILED))
    async with delivering(store, there, owner="node-2"):
        await eventually(there.has_sent)
        async with delivering(store, ScriptedSender(always(DELIVERED))) as here:
            await withdraw(store, SUBSCRIPTION)
            waiting = asyncio.ensure_future(here.withdrawn(SUBSCRIPTION)())
            waiting.add_done_callback(lambda _: happened.append("returned"))
            await owe(store, subscription=make_subscription(subscription_id="later"))  # which `here` delivers meanwhile
            here.hint()
            await until(store, settled)
            happened.append("answered")
            answered.set()
            await waiting
    assert happened == ["answered", "returned"]
    assert [one.state for one in await until(store, settled)][:1] == [DeliveryState.WITHDRAWN]


async def test_what_a_killed_node_had_claimed_is_sent_by_another(store: SqlStore) -> None:
    """While its lease lasts nobody else sends it; then it is sent under the same id, before what follows."""
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
        await until(store, settled)
    assert sender.ids() == ids


async def test_a_late_failure_does_not_undo_a_delivery(store: SqlStore) -> None:
    """A node that was thought dead reports a failure after another has delivered: it stays delivered."""
    (notification_id,) = await owe(store)
    stuck = asyncio.Event()

    async def late(subscription: Subscription, notification: OwedNotification) -> Sent:
        await stuck.wait()
        return FAILED

    slow, fast = ScriptedSender(late), ScriptedSender(always(DELIVERED))
    clock = Clock()
    async with delivering(store, slow):
        await eventually(slow.has_sent)
        clock.offset = timedelta(minutes=5)
        async with delivering(store, fast, owner="node-2", clock=clock):
            await until(store, settled)
        stuck.set()
        await until(store, lambda all_: all_[0].attempts == 2)
    (after,) = await until(store, settled)
    assert after.state is DeliveryState.DELIVERED
    assert [each.outcome for each in await store.attempts(notification_id)] == ["delivered", "http-500"]


async def test_stopping_lets_what_is_in_flight_end(store: SqlStore) -> None:
    """Told to stop, it waits for what is being sent, records it, and gives back the rest at once."""
    for number in range(30):
        await owe(store, subscription=make_subscription(subscription_id=f"s{number}"))
    go = asyncio.Event()

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await go.wait()
        return DELIVERED

    slow = ScriptedSender(reply)
    places = Places(unproven_host=4)
    async with delivering(store, slow, places=places) as deliverer:
        await eventually(lambda: slow.has_sent(4))
        stopping = asyncio.create_task(deliverer.aclose(WAIT_S))
        await asyncio.sleep(0)
        go.set()
        await stopping
    assert len(slow.sent) == 4
    found = await until(store, lambda _: True)
    assert Counter(each.state for each in found) == {DeliveryState.DELIVERED: 4, DeliveryState.PENDING: 26}
    other = ScriptedSender(always(DELIVERED))
    async with delivering(store, other, owner="node-2", clock=Clock(timedelta(seconds=31))):
        await until(store, settled)
    assert not set(other.ids()) & set(slow.ids())


async def test_many_hosts_of_one_client_leave_places_to_others(store: SqlStore) -> None:
    """A client whose hosts all hang, and share one with another client, takes half of the places; what waits for them
    goes on when they answer."""
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
        await eventually(lambda: sender.has_sent(4))
        for number in range(3):
            other = make_subscription(f"https://h{number}.example/", subscription_id=f"o{number}", client_id="other")
            await owe(store, subscription=other)
        deliverer.hint()
        await eventually(lambda: sender.has_sent(7))
        assert Counter(one.client_id for one in sender.sent) == {"many": 4, "other": 3}
        go.set()
        await until(store, settled)
    assert len(sender.sent) == len(hanging) + 3


async def test_stopping_does_not_wait_for_ever(store: SqlStore) -> None:
    """What does not end within the limit is given back, and another node sends it again under its id."""
    ids = await owe(store)

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        await asyncio.Event().wait()
        return DELIVERED

    stuck, other = ScriptedSender(reply), ScriptedSender(always(DELIVERED))
    async with delivering(store, stuck) as deliverer:
        await eventually(stuck.has_sent)
        await deliverer.aclose(0.05)
    async with delivering(store, other, owner="node-2"):
        await until(store, settled)
    assert stuck.ids() == other.ids() == ids


async def test_a_database_that_is_away_for_a_while(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are recorded when it is back; nothing is sent twice meanwhile, nothing lost."""
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
        await until(store, settled)
    assert sender.ids() == ids
    assert not any(away.values())


async def test_one_attempt_that_cannot_be_written_does_not_hold_up_the_others(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one attempt's records leaves it to its lease; those of its group are written."""
    for number in range(6):
        await owe(store, subscription=make_subscription(subscription_id=f"s{number}"))
    write = store.record_attempts

    async def failing(attempted: Any) -> None:
        if any(each.attempt.notification_id == "s3/0" for each in attempted):
            raise ValueError("cannot be written")
        await write(attempted)

    monkeypatch.setattr(store, "record_attempts", failing)
    async with delivering(store, ScriptedSender(always(DELIVERED))):
        found = await until(store, lambda all_: sum(each.state is DeliveryState.DELIVERED for each in all_) == 5)
    assert [each.id for each in found if each.state is DeliveryState.PENDING] == ["s3/0"]


async def test_a_sender_that_breaks_is_a_failed_attempt(store: SqlStore) -> None:
    """A defect in a sender ends nothing: it is an attempt that failed, and is tried again."""
    (notification_id,) = await owe(store)
    left = [RuntimeError("a defect")]

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if left:
            raise left.pop()
        return DELIVERED

    async with delivering(store, ScriptedSender(reply)):
        await until(store, settled)
    assert [each.outcome for each in await store.attempts(notification_id)] == ["defect", "delivered"]


async def test_a_sender_that_hangs_is_cut_off(store: SqlStore) -> None:
    """Whatever a sender does, an attempt ends at the limit."""
    (notification_id,) = await owe(store)
    left = [True]

    async def reply(subscription: Subscription, notification: OwedNotification) -> Sent:
        if left:
            left.pop()
            await asyncio.Event().wait()
        return DELIVERED

    async with delivering(store, ScriptedSender(reply), send_limit_s=0.1):
        await until(store, settled)
    assert [each.outcome for each in await store.attempts(notification_id)] == ["timed-out", "delivered"]


async def test_streams_are_listed_and_not_sent(store: SqlStore) -> None:
    """What is owed to a stream has nowhere to go: it is settled, and not billed."""
    await owe(store, subscription=make_subscription("", kind=SinkKind.STREAM))
    sender = ScriptedSender(always(DELIVERED))
    async with delivering(store, sender):
        (found,) = await until(store, settled)
    assert (found.state, sender.sent) == (DeliveryState.DELIVERED, [])
    assert await store.usage(None, OLD, Page()) == ([], "")


async def test_a_hanging_host_keeps_its_share(store: SqlStore) -> None:
    """However much is owed to an endpoint that hangs, others get theirs, and it has one place in the end."""
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
        await until(
            store, lambda all_: all(each.state is DeliveryState.DELIVERED for each in all_ if each.id[0] == "w")
        )
        assert most == places.unproven_host
        assert hanging["now"] == places.unproven_host
        assert deliverer.held < places.held
        released.set()


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[WebhookSender]:
    """The real sender, to loopback."""
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True), **options)
    try:
        yield WebhookSender(egress, clock=lambda: datetime.now(UTC), envelopes={"v1": v1_event})
    finally:
        await egress.aclose()


async def test_a_receiver_that_was_away_gets_everything_once_in_order(store: SqlStore) -> None:
    """Killed and back at the same port: each event arrives, once by id, in order within its subscription."""
    async with receiver() as there:
        port = there.port
    for number in range(5):
        await owe(store, 4, subscription=make_subscription(there.url, subscription_id=f"s{number}"))
    async with sending() as webhooks, delivering(store, webhooks):
        await until(store, lambda all_: all(each.attempts >= 2 for each in all_ if each.sequence == 1))
        async with receiver(port=port) as back:
            await until(store, settled)
    got = [request.headers["webhook-id"] for request in back.requests]
    for number in range(5):
        assert [each for each in got if each.startswith(f"s{number}/")] == [f"s{number}/{n}" for n in range(4)]
    assert len(got) == 20


async def test_a_receiver_that_answers_429_is_left_alone(store: SqlStore) -> None:
    """429 with Retry-After puts the next attempt off by what it says."""
    async with receiver(in_turn(answer(429, {"Retry-After": "3600"}), answer())) as there, sending() as webhooks:
        await owe(store, subscription=make_subscription(there.url))
        async with delivering(store, webhooks):
            (waiting,) = await until(store, lambda all_: all_[0].attempts == 1)
        assert waiting.next_attempt_at > datetime.now(UTC) + timedelta(minutes=59)
        assert len(there.requests) == 1


async def test_a_receiver_that_answers_too_late_has_failed(store: SqlStore) -> None:
    """200 after the time limit is a failed attempt; the same event comes again."""
    async with receiver(in_turn(hang, answer())) as there, sending(total_s=0.3) as webhooks:
        (notification_id,) = await owe(store, subscription=make_subscription(there.url))
        async with delivering(store, webhooks):
            await until(store, settled)
        first_, second = there.requests
        assert first_.headers["webhook-id"] == second.headers["webhook-id"] == notification_id
    assert [each.outcome for each in await store.attempts(notification_id)] == ["timed-out", "delivered"]


async def test_killed_again_and_again_nothing_is_lost(store: SqlStore, database_url: str) -> None:
    """Deliverers killed (SIGKILL) at any moment: every event arrives, under its id; an event may come twice, but none
    comes before the one that it follows has arrived."""
    chance = random.Random(4)
    async with receiver() as there:
        subscriptions = [make_subscription(there.url, subscription_id=f"s{number}") for number in range(15)]
        ids = [notification_id for each in subscriptions for notification_id in await owe(store, 8, subscription=each)]
        kills = 0
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.deliverer_process", database_url, cwd=ROOT
            )
            try:
                if kills == 4:
                    await until(store, settled)
                    break
                await there.wait_for_requests(len(there.requests) + chance.randint(1, 20))
            except TimeoutError:
                break  # nothing is left to send
            finally:
                process.kill()
                await process.wait()
            kills += 1
    assert kills >= 2
    got = defaultdict(list)
    for request in there.requests:
        subscription_id, _, number = request.headers["webhook-id"].partition("/")
        got[subscription_id].append(int(number))
    assert {f"{subscription_id}/{number}" for subscription_id in got for number in got[subscription_id]} == set(ids)
    assert all(numbers == sorted(numbers) for numbers in got.values())
