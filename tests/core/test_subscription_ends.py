"""How subscriptions end: by failures, cancellation, their duration, and the deletion of their client."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.auth.clients import ClientRegistry
from app.core.subscription_requests import SubscriptionChange
from app.domain.changes import Changes
from app.domain.errors import (
    ClientUnknown,
    DuplicateCorrelator,
    SubscriptionUnknown,
    WatcherRefused,
)
from app.domain.filters import AuditFilter, SubscriptionFilter
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.records import DeliveryState, Subscription
from app.domain.sinks import EndReason, Sink, SinkKind
from app.domain.statuses import Liveness
from app.ports.store import Page
from app.sinks import SINK_CONTRACTS
from tests.support.core import (
    ADMIN,
    ALICE,
    ALL,
    APP,
    BEGAN,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    REFUSED,
    SOAP,
    TEAM,
    UNKNOWN,
    UNREACHABLE,
    WEBHOOK,
    Core,
    new_database,
    nobody_waits,
    reading,
    run_core,
)
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        (SOAP, ["ERROR alice TERMINAL_UNKNOWN", "ERROR WATCHER_REFUSED"]),
        (WEBHOOK, ["STARTED", "ERROR alice TERMINAL_UNKNOWN", "ERROR bob WATCHER_REFUSED", "ENDED FAILED"]),
    ],
)
async def test_terminal_that_cannot_be_watched_is_an_error(core: Core, sink: Sink, expected: list[str]) -> None:
    """A terminal that is unknown or refuses is reported once as an error; after the last terminal the subscription ends
    (FAILED)."""
    subscription = await core.subscribe(ALICE, BOB, sink=sink)
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    assert (await core.stored(subscription)).active
    await core.play(BOB, REACHABLE)
    core.watcher.fail(BOB, REFUSED)
    await core.settled()
    assert await core.owed_in_short(subscription) == expected
    stored = await core.stored(subscription)
    assert stored.end_reason is EndReason.FAILED


async def test_terminal_that_the_presence_server_does_not_know_is_an_error(core: Core) -> None:
    """A 404 or 403 to the first SUBSCRIBE is reported as an error at once, and so is a pending SIP subscription."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP)
    pending = WatcherRefused("Not yet.", reason="pending")
    core.watcher.say(BOB, Liveness.UNKNOWN, pending)
    core.watcher.say(ALICE, Liveness.UNKNOWN, UNKNOWN)
    await core.settled()
    assert await core.owed_in_short(subscription) == ["ERROR alice TERMINAL_UNKNOWN"]
    assert (ALICE in core.watcher.wanted, BOB in core.watcher.wanted) == (False, True)


@pytest.mark.parametrize("sink", [SOAP, WEBHOOK])
async def test_member_that_cannot_be_watched_is_an_error_once(core: Core, sink: Sink) -> None:
    """An unknown member of a group is asked about and reported once, however the group changes, until it leaves and
    joins again. A group without other members keeps its subscription, since members may join."""
    await core.groups.create(APP, TEAM, [ALICE])
    subscription = await core.subscribe(TEAM, sink=sink)
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    for member in (BOB, CAROL, "sip:dave@example.com"):
        await core.groups.add_members(APP, TEAM, [member])
        await core.advance(1)
    assert core.watcher.asked.count(f"watch {ALICE}") == 1
    await core.play(BOB, REACHABLE)
    await core.play(BOB, BUSY)
    expected = [*(["STARTED"] if sink is WEBHOOK else []), "ERROR alice TERMINAL_UNKNOWN", "bob BUSY"]
    assert await core.owed_in_short(subscription) == expected
    await core.groups.remove_members(APP, TEAM, [ALICE])
    await core.advance(1)
    await core.groups.add_members(APP, TEAM, [ALICE])
    await until(lambda: core.live.registry.wanted_by(ALICE))
    assert core.watcher.asked.count(f"watch {ALICE}") == 2
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    assert await core.owed_in_short(subscription) == [*expected, "ERROR alice TERMINAL_UNKNOWN"]
    assert (await core.stored(subscription)).active


async def test_group_that_grows_too_large_is_reported_once(database_url: str) -> None:
    """Members beyond the policy's limit are not watched; this is reported once, until the group fits again."""
    policy = Policy(max_notification_addresses=2)
    async with run_core(database_url, policy=policy, crash=True) as core:
        await core.groups.create(APP, TEAM, [ALICE])
        subscription = await core.subscribe(TEAM, sink=SOAP)
        for members in ([ALICE, BOB, CAROL], [ALICE, BOB, CAROL, ALL], [ALICE, BOB], [ALICE, BOB, CAROL]):
            await core.groups.set_members(APP, TEAM, members)
            await core.advance(1)
        assert await core.owed_in_short(subscription) == ["ERROR team TOO_MANY_ADDRESSES"] * 2
        assert set(core.watcher.wanted) == {ALICE, BOB}
    async with run_core(database_url, policy=policy) as core:
        await core.groups.add_members(APP, TEAM, [ALL])
        await core.advance(1)
        assert await core.owed_in_short(subscription) == ["ERROR team TOO_MANY_ADDRESSES"] * 2


async def test_unreadable_document_is_reported_once_to_who_waits(core: Core) -> None:
    """A subscription that waits for an immediate status is sent one error about an unreadable document, whenever it
    arrives; the status follows once a document can be read. Other subscriptions are sent changes only."""
    early = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True)
    quiet = await core.subscribe(ALICE, sink=SOAP)
    for _ in range(3):
        core.watcher.send(ALICE, b"<presence")
        await core.settled()
    late = await core.subscribe(ALICE, sink=SOAP, check_immediate=True)
    core.watcher.send(ALICE, b"<presence")
    await core.settled()
    await core.play(ALICE, REACHABLE)
    core.watcher.send(ALICE, b"<presence")
    await core.play(ALICE, BUSY)
    for subscription in (early, late):
        assert await core.owed_in_short(subscription) == [
            "ERROR alice DOCUMENT_UNREADABLE",
            "alice REACHABLE",
            "alice BUSY",
        ]
    assert await core.owed_in_short(quiet) == ["alice BUSY"]


async def test_terminal_that_fails_while_the_subscription_is_stored_is_an_error(core: Core) -> None:
    """A failure that arrives before the subscription is stored is not lost."""
    create = core.store.create_subscription

    async def slow(*args: Any) -> Any:
        stored = await create(*args)
        core.watcher.fail(ALICE, UNKNOWN)
        return stored

    core.store.create_subscription = slow  # type: ignore[attr-defined]  # it passes everything else on
    subscription = await core.subscribe(ALICE, sink=SOAP)
    await core.settled()
    assert await core.owed_in_short(subscription) == ["ERROR TERMINAL_UNKNOWN"]


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        (SOAP, []),
        (WEBHOOK, ["STARTED"]),
        (Sink(kind=SinkKind.WEBHOOK, url="https://example.com", profile="camara"), ["STARTED", "ENDED CANCELLED"]),
        (Sink(kind=SinkKind.STREAM), ["ENDED CANCELLED"]),
    ],
)
async def test_cancelled_subscription_is_reported_nothing_more(core: Core, sink: Sink, expected: list[str]) -> None:
    """After the client's own end no change is sent; the end itself is not sent where the sink's contract has no message
    for it."""
    subscription = await core.subscribe(ALICE, sink=sink)
    await core.play(ALICE, REACHABLE)
    await core.subscriptions.cancel(APP, subscription.id, face=Face.GRPC)
    await core.play(ALICE, BUSY)
    assert await core.owed_in_short(subscription) == expected
    assert (await core.stored(subscription)).end_reason is EndReason.CANCELLED
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, subscription.id, face=Face.GRPC)


@pytest.mark.parametrize(
    ("sink", "state"),
    [
        (SOAP, DeliveryState.WITHDRAWN),
        (WEBHOOK, DeliveryState.PENDING),
        (Sink(kind=SinkKind.WEBHOOK, url="https://example.com", profile="camara"), DeliveryState.PENDING),
        (Sink(kind=SinkKind.STREAM), DeliveryState.DELIVERED),
    ],
)
async def test_what_is_owed_when_a_subscription_is_cancelled(core: Core, sink: Sink, state: DeliveryState) -> None:
    """At a cancellation, notifications stay owed to webhooks and are withdrawn from SOAP endpoints; at the end of the
    duration they stay owed to both."""
    cancelled = await core.subscribe(ALICE, sink=sink, check_immediate=True)
    expired = await core.subscribe(ALICE, sink=sink, check_immediate=True, duration_ms=60_000)
    await core.play(ALICE, UNREACHABLE)
    await core.subscriptions.cancel(APP, cancelled.id, face=Face.SOAP)
    assert {one.state for one in await core.owed(cancelled)} == {state}
    await core.advance(61)
    kept = DeliveryState.PENDING if sink.kind is not SinkKind.STREAM else DeliveryState.DELIVERED
    assert {one.state for one in await core.owed(expired)} == {kept}
    assert (await core.owed_in_short(expired))[-1] == "ENDED EXPIRED"


async def test_caller_that_leaves_ends_callbacks_too(tmp_path: Path) -> None:
    """Where the caller leaves while its end is written, claimed notifications are still withdrawn."""
    withdrawn, written, go_on = list[str](), asyncio.Event(), asyncio.Event()

    def withdraw(subscription: Subscription) -> Callable[[], Awaitable[None]]:
        withdrawn.append(subscription.id)
        return nobody_waits(subscription)

    async def slow(changes: Changes) -> None:
        written.set()
        await go_on.wait()

    async with run_core(await new_database(tmp_path), withdrawn=withdraw) as core:
        made = await core.subscribe(ALICE, sink=SOAP)
        core.store.before_write = slow
        ending = asyncio.ensure_future(core.subscriptions.cancel(APP, made.id, face=Face.SOAP))
        await written.wait()
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        go_on.set()
        await until(lambda: core.live.engine.figures()["subscriptions"] == 0)
        assert withdrawn == [made.id]


async def test_cancelled_by_correlator(core: Core) -> None:
    """A client ends a subscription by its correlator, which is free again afterwards; subscriptions with other
    correlators stay."""
    first = await core.subscribe(ALICE, correlator="c", sink=SOAP)
    with pytest.raises(DuplicateCorrelator):
        await core.subscribe(BOB, correlator="c", sink=SOAP)
    other = await core.subscribe(ALICE, correlator="c", sink=SOAP, client=OTHER)
    await core.subscriptions.cancel_by_correlator(APP, "c", face=Face.SOAP)
    assert not (await core.stored(first)).active
    assert (await core.stored(other)).active
    for correlator in ("c", "", "x" * 10_000):
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.cancel_by_correlator(APP, correlator, face=Face.SOAP)
    await core.subscribe(BOB, correlator="c", sink=SOAP)
    assert core.live.engine.figures()["subscriptions"] == 2


async def test_deleted_client_takes_its_subscriptions_groups_and_streams(core: Core) -> None:
    """The deletion of a client ends its subscriptions (reported as their sinks' contract says), its groups and its
    streams."""
    soap = await core.subscribe(ALICE, sink=SOAP)
    hook = await core.subscribe(ALICE, sink=WEBHOOK)
    kept = await core.subscribe(ALICE, sink=SOAP, client=OTHER)
    await core.groups.create(APP, TEAM, [ALICE])
    async with reading(core, ALICE) as stream:
        await until(lambda: stream.events)
        assert await core.subscriptions.delete_client(APP.id) == 2
        await until(lambda: len(stream.events) > 2)
    assert await core.owed_in_short(soap) == ["ERROR CLIENT_UNKNOWN"]
    assert await core.owed_in_short(hook) == ["STARTED", "ENDED CLIENT_DELETED"]
    assert (await core.stored(hook)).end_reason is EndReason.CLIENT_DELETED
    assert not core.directory.is_group(APP.id, TEAM)
    await core.play(ALICE, REACHABLE)
    await core.play(ALICE, BUSY)
    assert await core.owed_in_short(kept) == ["alice BUSY"]
    with pytest.raises(ClientUnknown):
        await core.subscriptions.delete_client(APP.id)


async def test_changes_of_subscriptions_are_audited(core: Core) -> None:
    """The audit log says who made, changed and ended which subscription; calls that changed nothing are not in it."""
    made = await core.subscribe(ALICE, request_id="once")
    await core.subscribe(ALICE, request_id="once")
    await core.subscription_changes.update(ADMIN, made.id, SubscriptionChange(duration_ms=60_000), face=Face.GRPC)
    await core.subscriptions.cancel(APP, made.id, face=Face.REST, requester="bob")
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, made.id, face=Face.REST)
    entries, _ = await core.store.audit_entries(Page(), AuditFilter(start=BEGAN - timedelta(days=1)))
    assert [(one.actor, one.action.value, one.details["subscription"]) for one in entries] == [
        (APP.id, "subscription created", made.id),
        (ADMIN.id, "subscription changed", made.id),
        (APP.id, "subscription cancelled", made.id),
    ]
    assert entries[1].details["changed"] == "duration_ms"
    assert (entries[2].details["face"], entries[2].details["requester"]) == ("rest", "bob")


async def test_ends_are_written_with_the_deletion_of_their_client(core: Core) -> None:
    """The ends for the sinks are written in the transaction that deletes the client, whichever process deletes it; no
    gateway needs to notice."""
    soap, hook = [await core.subscribe(ALICE, sink=sink) for sink in (SOAP, WEBHOOK)]
    assert (
        await ClientRegistry(core.store, contracts=SINK_CONTRACTS, clock=lambda: BEGAN).delete(APP.id, who="cli") == 2
    )
    await core.play(ALICE, BUSY)  # a gateway that has not noticed the deletion
    for _ in range(2):
        assert await core.owed_in_short(soap) == ["ERROR CLIENT_UNKNOWN"]
        assert await core.owed_in_short(hook) == ["STARTED", "ENDED CLIENT_DELETED"]
        await core.live.lifecycle.on_client_deleted(APP.id)
    stored = await core.stored(hook)
    assert (stored.ended_at, stored.end_reason) == (BEGAN, EndReason.CLIENT_DELETED)
    assert stored.end_detail == "The client was deleted."
    assert core.live.engine.figures()["subscriptions"] == 0


async def test_subscription_ended_by_its_endpoint_is_forgotten(core: Core) -> None:
    """After delivery has ended a subscription, no further notification is owed to it."""
    subscription = await core.subscribe(ALICE, sink=SOAP)
    await core.play(ALICE, REACHABLE)
    core.live.lifecycle.on_ended_in_store(subscription.id)
    core.live.lifecycle.on_ended_in_store("nobody's")
    await core.play(ALICE, BUSY)
    assert await core.owed_in_short(subscription) == []


async def test_limit_holds_for_subscriptions_made_at_once(url: str) -> None:
    """Calls that all pass the first check while endpoints are checked still keep to the limit."""
    async with run_core(url, policy=Policy(max_subscriptions=2)) as core:
        gate = asyncio.Event()

        async def slow(subscription: Subscription) -> None:
            core.sender.checked.append(subscription)
            await gate.wait()

        core.sender.check = slow  # type: ignore[method-assign]
        making = [asyncio.create_task(core.subscribe(ALICE, sink=SOAP)) for _ in range(8)]
        await until(lambda: len(core.sender.checked) == 8)
        same = [core.subscribe(ALICE, sink=SOAP, client=OTHER, request_id=str(i // 4)) for i in range(8)]
        repeated = [asyncio.create_task(one) for one in same]
        await until(lambda: len(core.sender.checked) == 16)
        gate.set()
        made = await asyncio.gather(*making, return_exceptions=True)
        assert sorted(type(one).__name__ for one in made) == ["Subscription"] * 2 + ["TooManySubscriptions"] * 6
        assert len((await core.store.subscriptions(Page(), SubscriptionFilter(client_id=APP.id)))[0]) == 2
        ids = [(await one).id for one in repeated]
        assert ids == [ids[0]] * 4 + [ids[4]] * 4
