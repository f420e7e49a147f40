"""What `ports.store.Store` promises about deliveries, usage records and retention, on SQLite and PostgreSQL."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import pytest

from app.domain.changes import Attempted, Changes, SubscriptionUpdate
from app.domain.filters import NotificationFilter, SubscriptionFilter, UsageFilter
from app.domain.operations import AuditAction
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import DeliveryAttempt, DeliveryState, OwedNotification, Subscription
from app.domain.sinks import EndReason, Sink, SinkKind
from app.ports.store import Page, Store
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore, open_store
from tests.support.records import AT, after, edit_of, end, make, owed, paged, sequences, subscription, usage

LEASE_S = 30
PENDING, DELIVERED, DEAD = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD
WITHDRAWN = DeliveryState.WITHDRAWN


async def claimed(store: Store, at_s: float = 0, most: int = 100, owner: str = "me") -> list[str]:
    """Ids of the notifications that a claim at this time leases."""
    return [one.id for one in await store.claim(after(at_s), after(at_s + LEASE_S), most, owner)]


def attempt(name: str, number: int = 1, at_s: float = 1, **changes: Any) -> DeliveryAttempt:
    """An attempt that got 200 after 7 ms."""
    values: dict[str, Any] = {
        "code": 200,
        "duration_ms": 7,
        "outcome": DeliveryOutcome.DELIVERED,
        "answer": b"ok\x00",
        **changes,
    }
    return DeliveryAttempt(notification_id=name, number=number, at=after(at_s), **values)


def attempted(name: str, state: DeliveryState = DELIVERED, *, owner: str = "me", **changes: Any) -> Attempted:
    """The outcome of an attempt by this owner."""
    return Attempted(**{"attempt": attempt(name), "owner": owner, "state": state, **changes})


async def store_with(store: Store, **owing: Sequence[str]) -> None:
    """Creates subscriptions by name, with notifications of these ids."""
    await make(store, *owing)
    await store.write(Changes(owed=[owed(name, of) for of, names in owing.items() for name in names]))


# Resuming


async def test_an_edit_resumes_delivery(store: SqlStore) -> None:
    """With `resumes_at` a subscription is no longer suspended, and its first notification is due at that time, not at
    its next attempt. A running lease stays with its owner. Without it nothing of this changes."""
    await store_with(store, s1=["a1", "a2"], s2=["b1"])
    assert sorted(await claimed(store)) == ["a1", "b1"]
    await store.record_attempts([attempted("a1", PENDING, next_attempt_at=after(1000), suspended_at=after(1))])
    before = subscription(suspended_at=after(1))
    await store.write(Changes(edits=[edit_of(before)]))
    assert await store.subscription("s1") == replace(before, version=2)
    assert await claimed(store, 2) == []
    for each in (replace(before, version=2), subscription("s2")):
        await store.write(Changes(edits=[edit_of(each, resumes_at=after(2))]))
    assert await store.subscription("s1") == replace(before, version=3, suspended_at=None)
    assert await claimed(store, 1) == []
    (again,) = await store.claim(after(2), after(40), 100, "other")
    assert (again.id, again.next_attempt_at, again.attempts) == ("a1", after(2), 1)
    assert await store.lease_owner("s2") == "me"
    await store.record_attempts([attempted("b1")])
    assert await sequences(store, "s1") == [("a1", 1), ("a2", 2)]


# Claiming


async def test_only_the_first_of_each_subscription_is_claimed(store: SqlStore) -> None:
    """Each subscription has one notification in flight; the next one follows when it is settled, in order."""
    await store_with(store, s1=["a1", "a2", "a3"], s2=["b1"], s3=[])
    first = await store.claim(after(0), after(LEASE_S), 100, "me")
    assert first == [
        replace(owed("a1"), sequence=1),
        replace(owed("b1", "s2"), sequence=1),
    ]
    assert await claimed(store) == []
    await store.record_attempts([attempted("a1")])
    assert await claimed(store) == ["a2"]
    await store.record_attempts([attempted("a2", DEAD), attempted("b1")])
    assert await claimed(store) == ["a3"]
    await store.record_attempts([attempted("a3")])
    assert await claimed(store) == []


async def test_claim_takes_the_oldest_that_are_due(store: SqlStore) -> None:
    """A claim takes at most the requested number, those due for the longest time first, and none that are due later."""
    await make(store, "s1", "s2", "s3")
    times = {"s1": 20, "s2": 5, "s3": 10}
    for name, at_s in times.items():
        await store.write(Changes(owed=[owed(f"n-{name}", name, next_attempt_at=after(at_s))]))
    assert await claimed(store, 4.9) == []
    assert await claimed(store, 10, most=1) == ["n-s2"]
    assert await claimed(store, 10) == ["n-s3"]
    assert await claimed(store, 20, most=1) == ["n-s1"]


async def test_failed_one_holds_back_those_behind_it(store: SqlStore) -> None:
    """A notification that is retried later stays first, however long it takes, and its attempts are counted."""
    await store_with(store, s1=["a1", "a2"])
    assert await claimed(store) == ["a1"]
    failed = attempt("a1", code=503, outcome=DeliveryOutcome.HTTP_ERROR)
    await store.record_attempts([attempted("a1", PENDING, attempt=failed, next_attempt_at=after(60))])
    assert await claimed(store, 59) == []
    (again,) = await store.claim(after(60), after(90), 9, "me")
    assert (again.id, again.attempts, again.next_attempt_at) == ("a1", 1, after(60))
    assert await store.attempts("a1") == [failed]


async def test_lease_that_ran_out_is_claimed_by_another(store: SqlStore) -> None:
    """A notification is claimed again only after its lease has expired, and then by one owner."""
    await store_with(store, s1=["a1", "a2"])
    assert await claimed(store, 0, owner="dead") == ["a1"]
    assert await claimed(store, LEASE_S - 0.001) == []
    assert await claimed(store, LEASE_S) == ["a1"]
    assert await claimed(store, LEASE_S) == []


async def test_two_stores_never_claim_the_same(store: SqlStore, database_url: str) -> None:
    """Claims in two stores at once share the due notifications: each is claimed once, and none is left."""
    await store_with(store, **{f"s{number}": [f"n{number}", f"later{number}"] for number in range(60)})
    async with await open_store(database_url) as other:

        async def claimer(by: SqlStore, name: str) -> list[str]:
            mine: list[str] = []
            while some := await claimed(by, most=3, owner=name):
                mine += some
            return mine

        found = await asyncio.gather(*(claimer(by, f"{i}") for i, by in enumerate((store, other) * 4)))
    taken = sorted(name for some in found for name in some)
    left = await claimed(store)  # a claim skips rows that another claim is just taking
    assert sorted(taken + left) == sorted(f"n{number}" for number in range(60))


async def test_notification_that_is_made_settled_is_not_claimed(store: SqlStore) -> None:
    """A notification that is created as settled, for a subscription without an endpoint, is never claimed."""
    await make(store, "s1")
    reported = owed("a1", state=DELIVERED, settled_at=AT)
    await store.write(Changes(owed=[reported, owed("a2")]))
    assert await claimed(store) == ["a2"]
    assert await store.notification("a1") == replace(reported, sequence=1)


# Attempts


async def test_attempt_writes_everything_it_leads_to(store: SqlStore) -> None:
    """The attempt, the notification's state, the subscription's progress and the usage records are one transaction."""
    await store_with(store, s1=["a1"])
    await claimed(store)
    update = SubscriptionUpdate(subscription_id="s1", ended_at=after(2), end_reason=EndReason.SINK_GONE)
    gone = attempt("a1", code=410, outcome=DeliveryOutcome.HTTP_ERROR)
    await store.record_attempts(
        [attempted("a1", DEAD, attempt=gone, suspended_at=after(1), update=update, usage=[usage("u1"), usage("u2")])]
    )
    dead = replace(owed("a1"), sequence=1, attempts=1, state=DEAD, settled_at=after(1.007))
    assert await store.notification("a1") == dead
    assert await store.attempts("a1") == [gone]
    assert [one.id for one in (await store.usage(Page(), UsageFilter(start=AT)))[0]] == ["u1", "u2"]
    assert await store.subscription("s1") == subscription(
        suspended_at=after(1), ended_at=after(2), end_reason=EndReason.SINK_GONE
    )


async def test_suspension_ends_with_the_attempt_that_works(store: SqlStore) -> None:
    """Each recorded attempt sets the subscription's `suspended_at`; a successful one clears it."""
    await store_with(store, s1=["a1"])
    await claimed(store)
    await store.record_attempts([attempted("a1", PENDING, next_attempt_at=after(2), suspended_at=after(1))])
    assert await store.subscription("s1") == subscription(suspended_at=after(1))
    await claimed(store, 2)
    await store.record_attempts([attempted("a1")])
    assert await store.subscription("s1") == subscription()


async def test_attempt_for_what_is_gone_is_left_out(store: SqlStore) -> None:
    """An attempt for a deleted notification is skipped, and the others are recorded. An attempt that stays pending
    without a time is an error."""
    await store_with(store, s1=["a1", "a2"])
    await claimed(store)
    with pytest.raises(ValueError, match="needs `next_attempt_at`"):
        await store.record_attempts([attempted("a1", PENDING)])
    await store.record_attempts([attempted("x"), attempted("a1", usage=[usage("u1")])])
    assert await claimed(store) == ["a2"]
    await store.record_attempts([attempted("x")])
    await store.record_attempts([attempted("x"), attempted("a2")])
    assert await states(store) == {"a1": DELIVERED, "a2": DELIVERED}


async def states(store: Store) -> dict[str, DeliveryState]:
    """The state of each notification."""
    return {one.id: one.state for one in (await store.notifications(Page()))[0]}


async def test_what_is_withdrawn_is_not_claimed(store: SqlStore) -> None:
    """Unsettled notifications are withdrawn with their subscription's end, listed as withdrawn, and never claimed or
    sent again; other subscriptions' notifications do not change."""
    await store_with(store, s1=["a1", "a2", "a3"], s2=["b1"])
    await claimed(store)
    await store.record_attempts([attempted("a1"), attempted("b1", PENDING, next_attempt_at=after(5))])
    await store.write(Changes(updates=[withdrawal("s1")]))
    assert await states(store) == {"a1": DELIVERED, "a2": WITHDRAWN, "a3": WITHDRAWN, "b1": PENDING}
    assert await store.send_again(["a2", "a3"], after(3), SINK_CONTRACTS) == 0
    assert await claimed(store, 9999) == ["b1"]
    listed, _ = await store.notifications(Page(), NotificationFilter(client_id="c1", state=WITHDRAWN))
    assert [(one.id, one.settled_at) for one in listed] == [("a2", after(2)), ("a3", after(2))]
    assert await store.lease_owner("s1") is None


@pytest.mark.parametrize(("kind", "again"), [(SinkKind.SOAP, 0), (SinkKind.WEBHOOK, 1)])
async def test_dead_ones_of_an_ended_soap_subscription_stay_dead(store: SqlStore, kind: SinkKind, again: int) -> None:
    """After endNotification, dead callbacks cannot be sent again; dead notifications of a webhook can."""
    await make(store, "s1", sink=Sink(kind=kind, url="https://example.com"))
    await store.write(Changes(owed=[owed("a1", "s1")]))
    await claimed(store)
    await store.record_attempts([attempted("a1", DEAD)])
    await store.write(Changes(updates=[replace(withdrawal("s1"), withdraws=kind is SinkKind.SOAP)]))
    assert await store.send_again(["a1"], after(3), SINK_CONTRACTS) == again
    assert len(await claimed(store, 9999)) == again


def withdrawal(name: str) -> SubscriptionUpdate:
    """The client ends a SOAP subscription two seconds after its start."""
    return SubscriptionUpdate(
        subscription_id=name, ended_at=after(2), end_reason=EndReason.CANCELLED, end_detail="", withdraws=True
    )


@pytest.mark.parametrize(("came", "becomes"), [(DELIVERED, "DELIVERED"), (PENDING, "WITHDRAWN"), (DEAD, "WITHDRAWN")])
async def test_attempt_in_flight_while_it_is_withdrawn(store: SqlStore, came: DeliveryState, becomes: str) -> None:
    """The lease of an attempt in flight is visible until the attempt is recorded. Its delivery counts; its failure
    changes nothing. Nothing is claimed meanwhile, nor after the lease has expired."""
    await store_with(store, s1=["a1", "a2"], s2=["b1"])
    await claimed(store)
    await store.write(Changes(updates=[withdrawal("s1"), withdrawal("s2")]))
    assert [await store.lease_owner(name) for name in ("s1", "s2", "s3")] == ["me", "me", None]
    next_at = after(5) if came is PENDING else None
    await store.record_attempts([attempted("a1", came, next_attempt_at=next_at)])
    assert await store.lease_owner("s1") is None
    assert await states(store) == {"a1": DeliveryState[becomes], "a2": WITHDRAWN, "b1": WITHDRAWN}
    assert await claimed(store, 9999) == []


async def test_late_failure_of_a_lost_lease_changes_nothing(store: SqlStore) -> None:
    """A late failure is listed as an attempt, with its own number; the lease of the other owner stays."""
    await store_with(store, s1=["a1", "a2"])
    assert await claimed(store, 0, owner="slow") == ["a1"]
    assert await claimed(store, 30, owner="quick") == ["a1"]
    late = attempted("a1", PENDING, owner="slow", next_attempt_at=after(31), suspended_at=after(1))
    await store.record_attempts([late])
    assert await claimed(store, 59) == []
    assert await store.subscription("s1") == subscription()
    await store.record_attempts([attempted("a1", owner="quick")])
    await store.record_attempts([late])
    assert await states(store) == {"a1": DELIVERED, "a2": PENDING}
    assert [one.number for one in await store.attempts("a1")] == [1, 2, 3]
    assert await claimed(store, 59) == ["a2"]


async def test_late_delivery_of_a_lost_lease_counts(store: SqlStore) -> None:
    """A late delivery counts, since the receiver has the notification; the next one waits until the other owner's lease
    is released."""
    await store_with(store, s1=["a1", "a2"])
    await claimed(store, 0, owner="slow")
    await claimed(store, 30, owner="quick")
    await store.record_attempts([attempted("a1", owner="slow")])
    assert await states(store) == {"a1": DELIVERED, "a2": PENDING}
    assert await claimed(store, 59) == []
    await store.record_attempts([attempted("a1", PENDING, owner="quick", next_attempt_at=after(99))])
    assert await states(store) == {"a1": DELIVERED, "a2": PENDING}
    assert await claimed(store, 59) == ["a2"]


async def test_given_back_lease_is_due_when_reported(store: SqlStore) -> None:
    """A released lease makes its notification due at the given time, without an attempt; the lease of another owner
    stays."""
    await store_with(store, s1=["a1"], s2=["b1"])
    await claimed(store, 0, owner="me")
    await store.release_leases("other", {"a1": after(1)})
    await store.release_leases("me", {"b1": after(5), "x": after(5)})
    await store.release_leases("me", {})
    assert await claimed(store, 4) == []
    assert await claimed(store, 5, owner="other") == ["b1"]
    assert (await store.attempts("b1"), await claimed(store, 29)) == ([], [])


async def test_delivered_ones_are_replayed_in_their_order(store: SqlStore) -> None:
    """Delivered notifications that are sent once more come in their order, with their ids, before later ones that wait,
    but not beside one in flight; others are not changed."""
    await store_with(store, s1=["a1", "a2", "a3", "a4"])
    for name, state in (("a1", DELIVERED), ("a2", DELIVERED), ("a3", DEAD)):
        assert await claimed(store) == [name]
        await store.record_attempts([attempted(name, state)])
    assert await claimed(store) == ["a4"]
    asked = ["a3", "a2", "a1", "a4", "x"]
    assert await store.send_again(asked, after(10), SINK_CONTRACTS, state=DELIVERED) == 2
    assert await store.send_again(asked, after(10), SINK_CONTRACTS, state=DELIVERED) == 0
    assert await claimed(store, 20) == []  # a4 is in flight
    await store.record_attempts([attempted("a4", PENDING, next_attempt_at=after(15))])
    for name in ("a1", "a2", "a4"):
        assert await claimed(store, 20) == [name]
        await store.record_attempts([attempted(name)])
    assert [one.number for one in await store.attempts("a1")] == [1, 2]


async def test_dead_ones_are_sent_again_in_their_order(store: SqlStore) -> None:
    """Only dead notifications are sent again: before later ones that wait, but not beside one in flight."""
    await store_with(store, s1=["a1", "a2", "a3"])
    for name in ("a1", "a2"):
        assert await claimed(store) == [name]
        await store.record_attempts([attempted(name, DEAD)])
    assert await claimed(store) == ["a3"]
    assert await store.send_again(["a2", "a1", "a3", "x"], after(10), SINK_CONTRACTS) == 2
    assert await claimed(store, 20) == []  # a3 is in flight
    await store.record_attempts([attempted("a3", PENDING, next_attempt_at=after(15))])
    assert await claimed(store, 20) == ["a1"]
    await store.record_attempts([attempted("a1")])
    assert await claimed(store, 20) == ["a2"]
    await store.record_attempts([attempted("a2")])
    assert await claimed(store, 20) == ["a3"]
    assert [one.number for one in await store.attempts("a1")] == [1, 2]
    assert (
        await store.send_again(["a1"], after(10), SINK_CONTRACTS)
        == await store.send_again([], after(10), SINK_CONTRACTS)
        == 0
    )


async def test_notifications_are_listed_by_what_is_asked(store: SqlStore) -> None:
    """Notifications are listed by client, state and subscription, page by page."""
    await store_with(store, s1=["a1", "a2"], s2=["b1", "b2"])
    await claimed(store)
    await store.record_attempts([attempted("a1", DEAD), attempted("b1")])
    for filters, expected in (
        ({}, ["a1", "a2", "b1", "b2"]),
        ({"state": DEAD}, ["a1"]),
        ({"state": PENDING}, ["a2", "b2"]),
        ({"subscription_id": "s2"}, ["b1", "b2"]),
        ({"subscription_id": "s2", "state": DELIVERED}, ["b1"]),
        ({"subscription_id": "nobody"}, []),
    ):
        pages = await paged(
            lambda page, filters=filters: store.notifications(page, NotificationFilter(client_id="c1", **filters)), 1
        )
        assert [one.id for page in pages for one in page] == expected


async def test_work_goes_on_under_load(store: SqlStore) -> None:
    """While changes are written and several owners deliver, each notification is delivered once and in order."""
    names = [f"s{number}" for number in range(8)]
    await make(store, *names)
    delivered: dict[str, list[int]] = {name: [] for name in names}
    written = asyncio.Event()

    async def writer(number: int) -> None:
        for turn in range(6):
            await store.write(Changes(owed=[owed(f"{number}-{turn}-{name}", name) for name in names]))

    async def worker(owner: str) -> None:
        while True:
            finished = written.is_set()
            mine: list[OwedNotification] = await store.claim(after(0), after(LEASE_S), 5, owner)
            for one in mine:
                delivered[one.subscription_id].append(one.sequence)
            await store.record_attempts([attempted(one.id, owner=owner, usage=[usage(f"u-{one.id}")]) for one in mine])
            if finished and sum(map(len, delivered.values())) == 8 * 18:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for owner in "xyz":
            tasks.create_task(worker(owner))
        async with asyncio.TaskGroup() as writers:
            for number in range(3):
                writers.create_task(writer(number))
        written.set()
    assert delivered == {name: list(range(1, 19)) for name in names}
    assert set((await states(store)).values()) == {DELIVERED}
    assert (
        len([one for page in await paged(lambda page: store.usage(page, UsageFilter(start=AT)), 50) for one in page])
        == 144
    )


# Usage and retention


async def test_usage_is_read_in_the_order_written(store: SqlStore) -> None:
    """Usage records of one client or of all are read from a given time; a page token continues where its page ended,
    however late."""
    assert await store.usage(Page(), UsageFilter(start=AT)) == ([], "")
    records = [
        usage(f"u{n}", at=after(at_s), client_id=c)
        for n, (at_s, c) in enumerate([(5, "c1"), (1, "c2"), (9, "c1"), (7, "c1")])
    ]
    await store.write_usage(records[:2])
    await store.write_usage(records[2:])
    await store.write_usage(records)
    await store.write_usage([])
    assert await store.usage(Page(), UsageFilter(start=AT)) == (records, "")
    assert await store.usage(Page(), UsageFilter(start=after(6))) == (records[2:], "")
    assert await paged(lambda page: store.usage(page, UsageFilter(client_id="c1", start=after(2))), 1) == [
        [records[0]],
        [records[2]],
        [records[3]],
    ]
    _, token = await store.usage(Page(size=2), UsageFilter(start=after(2)))
    await store.write_usage([usage("late", at=after(3)), usage("older", at=after(0))])
    assert [one.id for one in (await store.usage(Page(token=token), UsageFilter(start=after(2))))[0]] == ["u3", "late"]


async def test_usage_page_misses_nothing_that_is_being_written(store: SqlStore) -> None:
    """Reading page by page while many writers write finds every record once."""
    found: list[str] = []
    written = asyncio.Event()

    async def write(writer: int) -> None:
        for turn in range(25):
            await store.write_usage([usage(f"{writer}-{turn}-{number}") for number in range(3)])

    async def read() -> None:
        token = ""
        while True:
            finished = written.is_set()
            records, following = await store.usage(Page(size=7, token=token), UsageFilter(start=AT))
            if following:  # a full page does not change any more; a partial page is read again
                found.extend(one.id for one in records)
                token = following
            elif finished:
                found.extend(one.id for one in records)
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        async with asyncio.TaskGroup() as writers:
            for writer in range(4):
                writers.create_task(write(writer))
        written.set()
    assert sorted(found) == sorted(f"{w}-{t}-{n}" for w in range(4) for t in range(25) for n in range(3))


async def test_what_callers_send_can_be_written(store: SqlStore) -> None:
    """NUL, lone surrogates and any other text in a record can be written, and do not fail the group of records."""
    ugly = "a\0b\ud800c😀é"
    record = msgspec.structs.replace(
        usage("u1"), requester=ugly, targets=(ugly,), correlator=ugly, subscription_id=ugly, root_cause=ugly
    )
    await store.write_usage([record])
    (found,), _ = await store.usage(Page(), UsageFilter(start=AT))
    written = {found.requester, *found.targets, found.correlator, found.subscription_id, found.root_cause}
    assert written == {"a\ufffdb\ufffdc😀é"}
    await make(store, "s1", correlator=ugly, request_id=ugly)
    found_subscription = await store.subscription_by_correlator("c1", ugly)
    assert found_subscription is not None
    assert (await store.create_subscription(subscription("s2", request_id=ugly), (), ())).id == "s1"
    assert await store.subscription("\0") is None
    assert await store.subscriptions_by_id([ugly]) == {}


@pytest.mark.parametrize("count", [1, 3, 64, 2100])
async def test_usage_records_are_added_once_and_in_order(store: SqlStore, count: int) -> None:
    """Any number of records is added once and in order, even where some are stored already."""
    records = [usage(f"u{number:04}") for number in range(count)]
    await store.write_usage(records[: count // 2])
    await store.write_usage(records)
    found, token = await store.usage(Page(size=1000), UsageFilter(start=AT))
    while token:
        more, token = await store.usage(Page(size=1000, token=token), UsageFilter(start=AT))
        found += more
    assert [record.id for record in found] == [record.id for record in records]


async def test_purge_deletes_what_is_old_and_settled(store: SqlStore) -> None:
    """A purge keeps pending notifications, active subscriptions, and subscriptions with other records."""
    await store_with(store, s1=["a1", "a2"], s2=["b1"], s3=["d1"], s4=[])
    for name in ("s1", "s2", "s4"):
        await end(store, name, at=after(10))
    await claimed(store)
    await store.record_attempts(
        [attempted("a1"), attempted("b1", DEAD, attempt=attempt("b1", at_s=50)), attempted("d1")]
    )
    await store.write_usage([usage("u1", after(1)), usage("u2", after(50))])
    await store.audit(after(1), "operator", AuditAction.CLIENT_ADDED, {})
    # a1, d1, u1, the audit line and s4; s1 and s2 have records that are kept
    assert await purged(store, after(20), most=2) == [2, 2, 1]
    assert await states(store) == {"a2": PENDING, "b1": DEAD}
    assert await store.attempts("a1") == []
    assert [one.id for one in (await store.usage(Page(), UsageFilter(start=AT)))[0]] == ["u2"]
    assert await left(store) == {"s1", "s2", "s3"}
    assert await purged(store, after(60), most=100) == [3]  # b1, u2, then s2
    assert await left(store) == {"s1", "s3"}
    assert await sequences(store, "s1") == [("a2", 2)]


async def test_usage_is_kept_for_its_own_time(store: SqlStore) -> None:
    """Usage records have a retention of their own, longer or shorter than that of deliveries."""
    await store_with(store, s1=["a1"])
    await claimed(store)
    await store.record_attempts([attempted("a1", usage=[usage("u1")])])
    assert await store.purge(after(99), 10, usage_before=AT) == 1
    assert await store.purge(AT, 10, usage_before=after(99)) == 1


async def purged(store: Store, before: datetime, most: int) -> list[int]:
    """The numbers that each call of a complete purge deletes."""
    counts: list[int] = []
    while not counts or counts[-1] == most:
        counts.append(await store.purge(before, most))
    return counts


async def left(store: Store) -> set[str]:
    """The ids of the subscriptions that are left."""
    found: list[Subscription]
    found, _ = await store.subscriptions(Page(), SubscriptionFilter(state=None))
    return {one.id for one in found}
