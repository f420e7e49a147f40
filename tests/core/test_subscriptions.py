"""Tests of `app/core/subscriptions.py` and `lifecycle.py`: what subscriptions are told, when, and how they end."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from app.auth.clients import ClientRegistry
from app.core.sink_secrets import made_secret
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import (
    BusyNotSupported,
    ClientUnknown,
    CountTooLarge,
    DuplicateCorrelator,
    DurationTooLong,
    IntervalTooShort,
    InvalidAddress,
    InvalidRequest,
    NotPermitted,
    NoValidAddresses,
    RateLimited,
    RequestIdReused,
    SinkRefused,
    SinkUnreachable,
    StoreUnavailable,
    SubscriptionUnknown,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    TooManySubscriptions,
    TooManyWatchedTerminals,
    UnlimitedCountNotAllowed,
    WatcherRefused,
)
from app.domain.policy import Policy
from app.domain.records import DeliveryState, Subscription
from app.domain.sinks import SECRET_BYTES, TOKEN_LEAD, EndReason, Sink, SinkKind, read_secret
from app.domain.statuses import Liveness, Status
from app.live.group_directory import Expansion
from app.ports import Page
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
    SOAP,
    TEAM,
    UNREACHABLE,
    WEBHOOK,
    Clocks,
    Core,
    new_database,
    nobody_waits,
    reading,
    run_core,
)
from tests.support.waiting import until

UNKNOWN = TerminalUnknown("The presence server answered 404.")
REFUSED = WatcherRefused("The presence server answered 403.")


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> str:
    return await new_database(tmp_path)


@pytest_asyncio.fixture
async def core(url: str) -> AsyncIterator[Core]:
    async with run_core(url) as running:
        yield running


# What is told


async def test_first_observation_is_what_later_ones_are_compared_with(core: Core) -> None:
    """Without checkImmediate the status at the start is not told, and each later change is."""
    subscription = await core.subscribe(ALICE, sink=SOAP)
    assert subscription.awaiting
    await core.play(ALICE, REACHABLE)
    assert await core.told(subscription) == []
    await core.play(ALICE, BUSY)
    await core.play(ALICE, BUSY)
    await core.play(ALICE, UNREACHABLE)
    assert await core.told(subscription) == ["alice BUSY", "alice UNREACHABLE"]
    stored = await core.stored(subscription)
    assert (stored.notified, stored.awaiting) == (2, False)
    assert stored.last_notified_at == (await core.owed(subscription))[-1].changes[0].observed_at
    assert core.hints == ["owed", "owed"]


async def test_check_immediate_tells_a_live_status_at_once(core: Core) -> None:
    """With checkImmediate what is known now is owed in the transaction that makes the subscription, and counts."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        writes = len(core.store.writes)
        subscription = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True)
        assert len(core.store.writes) == writes
        assert (subscription.notified, subscription.joined) == (1, (BOB,))
        assert await core.told(subscription) == ["alice BUSY"]
        await core.play(BOB, REACHABLE)
        await core.play(BOB, REACHABLE)
        assert await core.told(subscription) == ["alice BUSY", "bob REACHABLE"]


async def test_check_immediate_waits_for_the_first_observation(core: Core) -> None:
    """A terminal whose status is not live is told as soon as it is observed, even if that says nothing new."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, REACHABLE)
        core.watcher.lose(ALICE)
        subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True)
        assert await core.told(subscription) == []
        await core.play(ALICE, REACHABLE)
        assert await core.told(subscription) == ["alice REACHABLE"]


async def test_criteria_trigger(core: Core) -> None:
    """Only statuses among the criteria are told, at the start as later."""
    subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True, criteria=frozenset({BUSY, UNREACHABLE}))
    for status in (REACHABLE, BUSY, REACHABLE, UNREACHABLE):
        await core.play(ALICE, status)
    assert await core.told(subscription) == ["alice BUSY", "alice UNREACHABLE"]


async def test_what_changes_together_is_told_together(core: Core) -> None:
    """Several terminals that change in one transaction are one notification, which counts once."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP, count=1, check_immediate=True)
    core.watcher.play(ALICE, BUSY)
    core.watcher.play(BOB, REACHABLE)
    await core.settled()
    assert await core.told(subscription) == ["alice BUSY, bob REACHABLE", "ENDED COUNT_REACHED"]


async def test_interval_holds_back_and_the_newest_wins(core: Core) -> None:
    """Notifications are never closer together than the interval; the newest of what was held comes when it is over."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True, min_interval_ms=10_000)
    await core.play(ALICE, REACHABLE)
    await core.play(ALICE, BUSY)
    await core.play(BOB, BUSY)
    await core.play(ALICE, UNREACHABLE)
    await core.advance(9.9)
    assert await core.told(subscription) == ["alice REACHABLE"]
    await core.advance(0.2)
    assert await core.told(subscription) == ["alice REACHABLE", "alice UNREACHABLE, bob BUSY"]
    await core.advance(60)
    await core.play(BOB, REACHABLE)
    assert (await core.told(subscription))[2:] == ["bob REACHABLE"]


async def test_held_change_that_is_over_is_not_told(core: Core) -> None:
    """Where the newest state is none of the criteria, what was held before it is not told: it is no longer true."""
    subscription = await core.subscribe(
        ALICE, sink=SOAP, criteria=frozenset({BUSY}), check_immediate=True, min_interval_ms=10_000
    )
    for status in (BUSY, REACHABLE, BUSY, REACHABLE):
        await core.play(ALICE, status)
    await core.advance(11)
    assert await core.told(subscription) == ["alice BUSY"]


async def test_count_ends_the_subscription(core: Core) -> None:
    """After as many notifications as asked for comes the end, in the same transaction, and nothing more."""
    subscription = await core.subscribe(ALICE, sink=SOAP, count=2)
    for status in (REACHABLE, BUSY, REACHABLE, BUSY):
        await core.play(ALICE, status)
    assert await core.told(subscription) == ["alice BUSY", "alice REACHABLE", "ENDED COUNT_REACHED"]
    stored = await core.stored(subscription)
    assert (stored.notified, stored.end_reason, stored.ended_at) == (2, EndReason.COUNT_REACHED, core.clocks.now)
    assert [write.updates[0].ended_at is not None for write in core.store.writes if write.owed] == [False, True]


async def test_count_of_one_may_be_over_at_once(core: Core) -> None:
    """A subscription whose only notification is the immediate one is made and ended in one transaction."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        subscription = await core.subscribe(ALICE, sink=SOAP, count=1, check_immediate=True)
        assert not subscription.active
        assert await core.told(subscription) == ["alice BUSY", "ENDED COUNT_REACHED"]
        assert core.live.engine.figures()["subscriptions"] == 0


async def test_duration_ends_the_subscription(core: Core) -> None:
    """When its duration is over it ends, is told so, and its watch is let go."""
    subscription = await core.subscribe(ALICE, sink=SOAP, duration_ms=60_000)
    await core.play(ALICE, REACHABLE)
    await core.advance(59.9)
    assert (await core.stored(subscription)).active
    await core.advance(0.2)
    assert await core.told(subscription) == ["ENDED EXPIRED"]
    assert (await core.stored(subscription)).end_reason is EndReason.EXPIRED
    await core.advance(31)
    assert core.watcher.asked[-1] == f"unwatch {ALICE}"


async def test_end_is_found_after_the_wall_clock_jumps(core: Core) -> None:
    """Forward, as where the machine was suspended: what should have ended meanwhile ends, and only that. Backward: the
    duration is not longer for it, nor that of a subscription that was prolonged or made before anybody noticed."""
    brief, long = [
        await core.subscribe(who, sink=SOAP, duration_ms=each) for who, each in ((ALICE, 60_000), (BOB, 10**7))
    ]
    core.clocks.now += timedelta(hours=1)
    between = await core.subscribe(CAROL, sink=SOAP, duration_ms=60_000)
    await core.advance(3)
    assert await core.told(brief) == ["ENDED EXPIRED"]
    assert [(await core.stored(each)).active for each in (long, between)] == [True, True]
    core.clocks.now -= timedelta(hours=2)
    await core.advance(56)
    assert (await core.stored(between)).active
    await core.advance(2)
    assert await core.told(between) == ["ENDED EXPIRED"]
    await core.advance(10_000 - 62)
    assert await core.told(long) == ["ENDED EXPIRED"]


async def test_clock_that_jumps_neither_ends_nor_floods(core: Core) -> None:
    """Intervals are measured by a clock that does not jump, and durations where it is set back."""
    subscription = await core.subscribe(
        ALICE, sink=SOAP, check_immediate=True, min_interval_ms=10_000, duration_ms=60_000
    )
    await core.play(ALICE, REACHABLE)
    core.clocks.now += timedelta(seconds=30)
    await core.play(ALICE, BUSY)
    await core.advance(5)
    assert await core.told(subscription) == ["alice REACHABLE"]
    core.clocks.now -= timedelta(days=2)
    await core.advance(5.1)
    assert await core.told(subscription) == ["alice REACHABLE", "alice BUSY"]
    await core.advance(50)
    assert (await core.told(subscription))[2:] == ["ENDED EXPIRED"]


async def test_busy_is_told_as_reachable_where_the_policy_says_so(url: str) -> None:
    """To whom BUSY is not told a busy terminal is reachable, and becoming busy is no change."""
    async with run_core(url, policy=Policy(busy_available=False)) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP)
        for status in (REACHABLE, BUSY, UNREACHABLE, BUSY, REACHABLE):
            await core.play(ALICE, status)
        assert await core.told(subscription) == ["alice UNREACHABLE", "alice REACHABLE"]


# How it ends


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        (SOAP, ["ERROR alice TERMINAL_UNKNOWN", "ERROR WATCHER_REFUSED"]),
        (WEBHOOK, ["STARTED", "ERROR alice TERMINAL_UNKNOWN", "ERROR bob WATCHER_REFUSED", "ENDED FAILED"]),
    ],
)
async def test_terminal_that_cannot_be_watched_is_an_error(core: Core, sink: Sink, expected: list[str]) -> None:
    """A terminal that is unknown or refuses is told once; with the last one the subscription ends (FAILED)."""
    subscription = await core.subscribe(ALICE, BOB, sink=sink)
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    assert (await core.stored(subscription)).active
    await core.play(BOB, REACHABLE)
    core.watcher.fail(BOB, REFUSED)
    await core.settled()
    assert await core.told(subscription) == expected
    stored = await core.stored(subscription)
    assert stored.end_reason is EndReason.FAILED


async def test_terminal_that_the_presence_server_does_not_know_is_an_error(core: Core) -> None:
    """A 404 or 403 to the first SUBSCRIBE is told as an error, and not waited out in silence; a pending one is."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP)
    pending = WatcherRefused("Not yet.", reason="pending")
    core.watcher.say(BOB, Liveness.UNKNOWN, pending)
    core.watcher.say(ALICE, Liveness.UNKNOWN, UNKNOWN)
    await core.settled()
    assert await core.told(subscription) == ["ERROR alice TERMINAL_UNKNOWN"]
    assert (ALICE in core.watcher.wanted, BOB in core.watcher.wanted) == (False, True)


@pytest.mark.parametrize("sink", [SOAP, WEBHOOK])
async def test_member_that_cannot_be_watched_is_an_error_once(core: Core, sink: Sink) -> None:
    """A group's member that is unknown is told and asked once, however the group changes, until it leaves and comes
    again; a group without another member does not end the subscription, for some may join."""
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
    assert await core.told(subscription) == expected
    await core.groups.remove_members(APP, TEAM, [ALICE])
    await core.advance(1)
    await core.groups.add_members(APP, TEAM, [ALICE])
    await until(lambda: core.live.registry.wanted_by(ALICE))
    assert core.watcher.asked.count(f"watch {ALICE}") == 2
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    assert await core.told(subscription) == [*expected, "ERROR alice TERMINAL_UNKNOWN"]
    assert (await core.stored(subscription)).active


async def test_group_that_grows_too_large_is_told_once(database_url: str) -> None:
    """Members beyond the policy's limit are not watched; that is told once, until the group fits again."""
    policy = Policy(max_notification_addresses=2)
    async with run_core(database_url, policy=policy, crash=True) as core:
        await core.groups.create(APP, TEAM, [ALICE])
        subscription = await core.subscribe(TEAM, sink=SOAP)
        for members in ([ALICE, BOB, CAROL], [ALICE, BOB, CAROL, ALL], [ALICE, BOB], [ALICE, BOB, CAROL]):
            await core.groups.set_members(APP, TEAM, members)
            await core.advance(1)
        assert await core.told(subscription) == ["ERROR team TOO_MANY_ADDRESSES"] * 2
        assert set(core.watcher.wanted) == {ALICE, BOB}
    async with run_core(database_url, policy=policy) as core:
        await core.groups.add_members(APP, TEAM, [ALL])
        await core.advance(1)
        assert await core.told(subscription) == ["ERROR team TOO_MANY_ADDRESSES"] * 2


async def test_unreadable_document_is_told_once_to_who_waits(core: Core) -> None:
    """A subscription that waits to be told at once hears once that the document cannot be read, an early or a late one;
    the status follows when one can be. Others are told changes only."""
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
        assert await core.told(subscription) == ["ERROR alice DOCUMENT_UNREADABLE", "alice REACHABLE", "alice BUSY"]
    assert await core.told(quiet) == ["alice BUSY"]


async def test_terminal_that_fails_while_the_subscription_is_stored_is_an_error(core: Core) -> None:
    """A presence server that answers faster than the database loses nothing."""
    create = core.store.create_subscription

    async def slow(*args: Any) -> Any:
        stored = await create(*args)
        core.watcher.fail(ALICE, UNKNOWN)
        return stored

    core.store.create_subscription = slow  # type: ignore[attr-defined]  # it passes everything else on
    subscription = await core.subscribe(ALICE, sink=SOAP)
    await core.settled()
    assert await core.told(subscription) == ["ERROR TERMINAL_UNKNOWN"]


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        (SOAP, []),
        (WEBHOOK, ["STARTED"]),
        (Sink(kind=SinkKind.WEBHOOK, url="https://example.com", profile="camara"), ["STARTED", "ENDED CANCELLED"]),
        (Sink(kind=SinkKind.STREAM), ["ENDED CANCELLED"]),
    ],
)
async def test_cancelled_subscription_is_told_nothing_more(core: Core, sink: Sink, expected: list[str]) -> None:
    """The client's own end is not told where the sink's contract has no message for it; changes no longer are."""
    subscription = await core.subscribe(ALICE, sink=sink)
    await core.play(ALICE, REACHABLE)
    await core.subscriptions.cancel(APP, subscription.id, face="grpc")
    await core.play(ALICE, BUSY)
    assert await core.told(subscription) == expected
    assert (await core.stored(subscription)).end_reason is EndReason.CANCELLED
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, subscription.id, face="grpc")


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
    """It stays owed to webhooks, and is withdrawn from a SOAP endpoint; where the duration ends it, it stays owed."""
    cancelled = await core.subscribe(ALICE, sink=sink, check_immediate=True)
    expired = await core.subscribe(ALICE, sink=sink, check_immediate=True, duration_ms=60_000)
    await core.play(ALICE, UNREACHABLE)
    await core.subscriptions.cancel(APP, cancelled.id, face="soap")
    assert {one.state for one in await core.owed(cancelled)} == {state}
    await core.advance(61)
    kept = DeliveryState.PENDING if sink.kind is not SinkKind.STREAM else DeliveryState.DELIVERED
    assert {one.state for one in await core.owed(expired)} == {kept}
    assert (await core.told(expired))[-1] == "ENDED EXPIRED"


async def test_caller_that_leaves_ends_callbacks_too(tmp_path: Path) -> None:
    """Where the caller of an end leaves while it is written, what is claimed already is withdrawn all the same."""
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
        ending = asyncio.ensure_future(core.subscriptions.cancel(APP, made.id, face="soap"))
        await written.wait()
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        go_on.set()
        await until(lambda: core.live.engine.figures()["subscriptions"] == 0)
        assert withdrawn == [made.id]


async def test_cancelled_by_correlator(core: Core) -> None:
    """A client ends a subscription by its own name for it, which is free again then; others have other names."""
    first = await core.subscribe(ALICE, correlator="c", sink=SOAP)
    with pytest.raises(DuplicateCorrelator):
        await core.subscribe(BOB, correlator="c", sink=SOAP)
    other = await core.subscribe(ALICE, correlator="c", sink=SOAP, client=OTHER)
    await core.subscriptions.cancel_by_correlator(APP, "c", face="soap")
    assert not (await core.stored(first)).active
    assert (await core.stored(other)).active
    for correlator in ("c", "", "x" * 10_000):
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.cancel_by_correlator(APP, correlator, face="soap")
    await core.subscribe(BOB, correlator="c", sink=SOAP)
    assert core.live.engine.figures()["subscriptions"] == 2


async def test_deleted_client_takes_its_subscriptions_groups_and_streams(core: Core) -> None:
    """With a client go its subscriptions (told as their sinks' contract says), its groups and its streams."""
    soap = await core.subscribe(ALICE, sink=SOAP)
    hook = await core.subscribe(ALICE, sink=WEBHOOK)
    kept = await core.subscribe(ALICE, sink=SOAP, client=OTHER)
    await core.groups.create(APP, TEAM, [ALICE])
    async with reading(core, ALICE) as stream:
        await until(lambda: stream.events)
        assert await core.subscriptions.delete_client(APP.id) == 2
        await until(lambda: len(stream.events) > 2)
    assert await core.told(soap) == ["ERROR CLIENT_UNKNOWN"]
    assert await core.told(hook) == ["STARTED", "ENDED CLIENT_DELETED"]
    assert (await core.stored(hook)).end_reason is EndReason.CLIENT_DELETED
    assert not core.directory.is_group(APP.id, TEAM)
    await core.play(ALICE, REACHABLE)
    await core.play(ALICE, BUSY)
    assert await core.told(kept) == ["alice BUSY"]
    with pytest.raises(ClientUnknown):
        await core.subscriptions.delete_client(APP.id)


async def test_changes_of_subscriptions_are_audited(core: Core) -> None:
    """Who made, prolonged and ended which subscription stands in the audit log; what changed nothing does not."""
    made = await core.subscribe(ALICE, request_id="once")
    await core.subscribe(ALICE, request_id="once")
    await core.subscriptions.renew(ADMIN, made.id, 60_000)
    await core.subscriptions.cancel(APP, made.id, face="rest", requester="bob")
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, made.id, face="rest")
    entries, _ = await core.store.audit_entries(BEGAN - timedelta(days=1), Page())
    assert [(one.who, one.what, one.details["subscription"]) for one in entries] == [
        (APP.id, "subscription created", made.id),
        (ADMIN.id, "subscription renewed", made.id),
        (APP.id, "subscription cancelled", made.id),
    ]
    assert (entries[2].details["face"], entries[2].details["requester"]) == ("rest", "bob")


async def test_ends_are_written_with_the_deletion_of_their_client(core: Core) -> None:
    """Whoever deletes a client, its sinks' ends are owed at once, by the same transaction: no gateway need follow."""
    soap, hook = [await core.subscribe(ALICE, sink=sink) for sink in (SOAP, WEBHOOK)]
    assert (
        await ClientRegistry(core.store, contracts=SINK_CONTRACTS, clock=lambda: BEGAN).delete(APP.id, who="cli") == 2
    )
    await core.play(ALICE, BUSY)  # a gateway that has not noticed
    for _ in range(2):
        assert await core.told(soap) == ["ERROR CLIENT_UNKNOWN"]
        assert await core.told(hook) == ["STARTED", "ENDED CLIENT_DELETED"]
        await core.live.lifecycle.on_client_deleted(APP.id)
    stored = await core.stored(hook)
    assert (stored.ended_at, stored.end_reason) == (BEGAN, EndReason.CLIENT_DELETED)
    assert stored.end_detail == "Its client was deleted."
    assert core.live.engine.figures()["subscriptions"] == 0


async def test_subscription_ended_by_its_endpoint_is_forgotten(core: Core) -> None:
    """After delivery has ended a subscription nothing more is owed to it."""
    subscription = await core.subscribe(ALICE, sink=SOAP)
    await core.play(ALICE, REACHABLE)
    core.live.lifecycle.on_ended_in_store(subscription.id)
    core.live.lifecycle.on_ended_in_store("nobody's")
    await core.play(ALICE, BUSY)
    assert await core.told(subscription) == []


async def test_renewed_subscription_lasts_from_now(core: Core) -> None:
    """Renewal counts from now, longer or shorter; an ended or foreign subscription cannot be renewed."""
    subscription = await core.subscribe(ALICE, duration_ms=60_000)
    await core.advance(50)
    renewed = await core.subscriptions.renew(APP, subscription.id, 120_000)
    assert renewed.expires_at == core.clocks.now + timedelta(seconds=120)
    await core.advance(100)
    assert (await core.stored(subscription)).active
    await core.subscriptions.renew(APP, subscription.id, 5_000)
    await core.advance(5.1)
    assert (await core.stored(subscription)).end_reason is EndReason.EXPIRED
    for client in (APP, OTHER):
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.renew(client, subscription.id, 1000)


async def test_limit_holds_for_subscriptions_made_at_once(url: str) -> None:
    """However many pass the first check while endpoints are asked, there are as many as allowed."""
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
        assert len((await core.store.subscriptions(APP.id, Page()))[0]) == 2
        ids = [(await one).id for one in repeated]
        assert ids == [ids[0]] * 4 + [ids[4]] * 4


# Restarts


async def test_restart_finds_the_change_that_happened_meanwhile(database_url: str) -> None:
    """After a crash subscriptions are watched again; what changed meanwhile is told, what did not is not."""
    async with run_core(database_url, crash=True) as core:
        changed = await core.subscribe(ALICE, sink=SOAP)
        same = await core.subscribe(BOB, sink=SOAP)
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, REACHABLE)
        await core.play(BOB, BUSY)
    async with run_core(database_url) as core:
        assert set(core.watcher.wanted) == {ALICE, BOB}
        await core.play(ALICE, UNREACHABLE)
        await core.play(BOB, BUSY)
        assert await core.told(changed) == ["alice UNREACHABLE"]
        assert await core.told(same) == ["bob BUSY"]


async def test_restart_before_the_first_observation(database_url: str) -> None:
    """A terminal not observed since the subscription was made is, after a crash, still awaited: its old status is no
    change, and an immediate check is still owed."""
    async with run_core(database_url) as core, reading(core, ALICE, BOB):
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, REACHABLE)
    clocks = Clocks()
    clocks.advance(3600)
    async with run_core(database_url, clocks=clocks, crash=True) as core:
        quiet = await core.subscribe(ALICE, sink=SOAP)
        immediate = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True)
        await core.play(BOB, REACHABLE)
    async with run_core(database_url, clocks=clocks) as core:
        await core.play(ALICE, BUSY)
        assert await core.told(quiet) == []
        assert await core.told(immediate) == ["bob REACHABLE", "alice BUSY"]
        await core.play(ALICE, UNREACHABLE)
        assert await core.told(quiet) == ["alice UNREACHABLE"]
        assert not (await core.stored(quiet)).awaiting


async def test_group_of_another_client_changes_no_subscription(database_url: str) -> None:
    """A subscription to a terminal, or to a group with it, stays that after another client makes a group of its
    address, now, when that group changes, and after a restart."""
    async with run_core(database_url, crash=True) as core:
        await core.groups.create(OTHER, TEAM, [ALICE])
        one = await core.subscribe(ALICE, sink=SOAP, client=OTHER)
        many = await core.subscribe(TEAM, sink=SOAP, client=OTHER)
        await core.groups.create(APP, ALICE, [BOB])
        await core.groups.create(APP, TEAM, [CAROL])
        await core.groups.set_members(APP, ALICE, [BOB, CAROL])
        await core.groups.set_members(OTHER, TEAM, [ALICE])
        await until(lambda: core.live.engine.rounds)
        await core.advance(1)
        assert set(core.watcher.wanted) == {ALICE}
    async with run_core(database_url) as core:
        await core.groups.set_members(OTHER, TEAM, [ALICE])
        await core.advance(1)
        assert set(core.watcher.wanted) == {ALICE}
        await core.play(ALICE, REACHABLE)
        await core.play(ALICE, BUSY)
        assert await core.told(one) == await core.told(many) == ["alice BUSY"]


async def test_restart_keeps_what_was_held_back(database_url: str) -> None:
    """A change that waited for the interval is told after a crash, when the interval has passed."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks, crash=True) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True, min_interval_ms=60_000)
        await core.play(ALICE, REACHABLE)
        clocks.advance(1)
        await core.play(ALICE, BUSY)
        assert await core.told(subscription) == ["alice REACHABLE"]
    clocks.advance(20)
    async with run_core(database_url, clocks=clocks) as core:
        await core.play(ALICE, BUSY)
        await core.advance(30)
        assert await core.told(subscription) == ["alice REACHABLE"]
        await core.advance(10)
        assert await core.told(subscription) == ["alice REACHABLE", "alice BUSY"]
    async with run_core(database_url, clocks=clocks) as core:
        await core.advance(600)
        assert await core.told(subscription) == ["alice REACHABLE", "alice BUSY"]


async def test_restart_ends_what_expired_meanwhile(database_url: str) -> None:
    """A subscription whose duration ended while the gateway was down ends when it is up again."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP, duration_ms=60_000)
        for_ever = await core.subscribe(BOB, sink=SOAP)
    clocks.advance(61)
    async with run_core(database_url, clocks=clocks) as core:
        await until(lambda: core.live.engine.figures()["subscriptions"] == 1)
        assert await core.told(subscription) == ["ENDED EXPIRED"]
        assert (await core.stored(for_ever)).active


async def test_crash_in_the_middle_of_a_write_loses_nothing(database_url: str) -> None:
    """Whether the transaction of a change was done or not when the gateway was killed, the change is told once."""
    for done in (False, True):
        async with run_core(database_url, crash=True) as core:
            subscription = await core.subscribe(ALICE, sink=SOAP)
            await core.play(ALICE, REACHABLE)

            async def killed(changes: Changes, core: Core = core, done: bool = done) -> None:
                if done:
                    await core.store._store.write(changes)  # noqa: SLF001
                core.store.away = True

            core.store.before_write = killed
            core.watcher.play(ALICE, BUSY)
            await until(lambda: core.store.away)  # used at once
        async with run_core(database_url) as core:
            await core.play(ALICE, BUSY)
            assert await core.told(subscription) == ["alice BUSY"]
            await core.subscriptions.cancel(APP, subscription.id, face="grpc")
            await core.play(ALICE, REACHABLE)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_each_stored_change_is_told_once_in_order(database_url: str, seed: int) -> None:
    """However often the gateway is killed, what is owed is exactly the changes that are stored, in their order."""
    chance, clocks, now = random.Random(seed), Clocks(), dict.fromkeys((ALICE, BOB), REACHABLE)
    async with run_core(database_url, clocks=clocks) as core:
        subscription = await core.subscribe(ALICE, BOB, sink=SOAP)
        for address in now:
            await core.play(address, REACHABLE)
    for _ in range(12):
        async with run_core(database_url, clocks=clocks, crash=True) as core:
            for address, status in now.items():
                core.watcher.play(address, status)
            for _ in range(chance.randrange(20)):
                address = chance.choice((ALICE, BOB))
                now[address] = chance.choice((REACHABLE, BUSY, UNREACHABLE))
                clocks.advance(0.001)
                core.watcher.play(address, now[address])
                for _ in range(chance.randrange(30)):
                    await asyncio.sleep(0)
    async with run_core(database_url, clocks=clocks) as core:
        for address, status in now.items():
            await core.play(address, status)
        stored = await core.store.statuses([ALICE, BOB])
        assert {address: stored[address].status for address in now} == now
        owed = await core.owed(subscription)
        assert [one.sequence for one in owed] == list(range(1, len(owed) + 1))
        for address in now:
            told = [change.revision for one in owed for change in one.changes if change.address == address]
            assert told == list(range(2, stored[address].revision + 1))
        assert (await core.stored(subscription)).notified == len(owed)


# Groups


async def test_group_subscription_follows_its_members(core: Core) -> None:
    """Notifications are about members; who joins is watched, who leaves is told no more, in nested groups too."""
    await core.groups.create(APP, TEAM, [ALICE])
    await core.groups.create(APP, ALL, [TEAM, ALL])
    subscription = await core.subscribe(ALL, sink=SOAP, check_immediate=True)
    assert subscription.addresses == (ALL,)
    await core.play(ALICE, REACHABLE)
    await core.groups.set_members(APP, TEAM, [BOB])
    await until(lambda: BOB in core.watcher.wanted)
    await core.play(BOB, BUSY)
    await core.play(ALICE, BUSY)
    await core.groups.add_members(APP, ALL, [CAROL])
    await until(lambda: CAROL in core.watcher.wanted)
    await core.play(CAROL, UNREACHABLE)
    assert await core.told(subscription) == ["alice REACHABLE", "bob BUSY", "carol UNREACHABLE"]
    await core.groups.delete(APP, TEAM)
    await until(lambda: not core.live.registry.wanted_by(BOB))
    await core.advance(31)
    assert set(core.watcher.wanted) == {CAROL}


async def test_live_terminal_that_joins_is_told_at_once(core: Core) -> None:
    """With checkImmediate a terminal that joins a watched group and is live already is told without an observation."""
    await core.groups.create(APP, TEAM, [ALICE])
    async with reading(core, BOB):
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(BOB, BUSY)
        immediate = await core.subscribe(TEAM, sink=SOAP, check_immediate=True)
        later = await core.subscribe(TEAM, sink=SOAP)
        await core.groups.add_members(APP, TEAM, [BOB])
        await until(lambda: len(core.hints) == 1)
        await core.play(BOB, REACHABLE)
        assert await core.told(immediate) == ["bob BUSY", "bob REACHABLE"]
        assert await core.told(later) == ["bob REACHABLE"]


async def test_restart_expands_groups_anew(url: str) -> None:
    """After a restart a group's members of now are watched, and changes of the group still reach the subscription."""
    async with run_core(url) as core:
        await core.groups.create(APP, TEAM, [ALICE])
        subscription = await core.subscribe(TEAM, sink=SOAP)
        await core.play(ALICE, REACHABLE)
    async with run_core(url) as core:
        assert set(core.watcher.wanted) == {ALICE}
        await core.groups.add_members(APP, TEAM, [BOB])
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(BOB, REACHABLE)
        await core.play(BOB, BUSY)
        assert await core.told(subscription) == ["bob BUSY"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_deleted_groups_stay_groups_over_a_restart(database_url: str, restarted: bool) -> None:
    """A group that is deleted while subscribed stands for nobody, one in a group too, also after a crash; made anew it
    is followed again."""
    async with AsyncExitStack() as gateways:
        core = await gateways.enter_async_context(run_core(database_url, crash=True))
        await core.groups.create(APP, TEAM, [ALICE])
        await core.groups.create(APP, ALL, [BOB])
        alone, nested = await core.subscribe(TEAM, sink=SOAP), await core.subscribe(ALL, sink=SOAP)
        await core.groups.add_members(APP, ALL, [TEAM])
        await until(lambda: core.live.registry.wanted_by(ALICE) == [alone.id, nested.id])
        await core.groups.delete(APP, TEAM)
        await until(lambda: not core.live.registry.wanted_by(ALICE))
        if restarted:
            await gateways.aclose()
            core = await gateways.enter_async_context(run_core(database_url))
            assert set(core.watcher.wanted) == {BOB}
        await core.groups.create(APP, TEAM, [CAROL])
        await until(lambda: core.live.registry.wanted_by(CAROL) == [alone.id, nested.id])
        await core.play(CAROL, REACHABLE)
        await core.play(CAROL, BUSY)
        assert await core.told(alone) == await core.told(nested) == ["carol BUSY"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_group_made_of_a_subscribed_terminal(database_url: str, restarted: bool) -> None:
    """What was asked for as a terminal stays one, whatever group is made of its address; a member of a group becomes
    the group. Both also over a crash, and for streams."""
    async with AsyncExitStack() as gateways:
        core = await gateways.enter_async_context(run_core(database_url, crash=True))
        await core.groups.create(APP, TEAM, [ALICE])
        terminal, by_group = await core.subscribe(ALICE, sink=SOAP), await core.subscribe(TEAM, sink=SOAP)
        both = await core.subscribe(TEAM, ALICE, sink=SOAP)
        await gateways.enter_async_context(reading(core, TEAM))
        await until(lambda: len(core.live.registry.wanted_by(ALICE)) == 4)
        await core.groups.create(APP, ALICE, [BOB])
        await until(lambda: core.live.registry.wanted_by(BOB) == [by_group.id, f"stream:{APP.id}"])
        await core.groups.set_members(APP, TEAM, [CAROL, ALICE])
        await until(lambda: len(core.live.registry.wanted_by(CAROL)) == 3)
        if restarted:
            await gateways.aclose()
            core = await gateways.enter_async_context(run_core(database_url))
        for address, wanting in ((ALICE, [terminal, both]), (BOB, [by_group]), (CAROL, [by_group, both])):
            found = [one for one in core.live.registry.wanted_by(address) if not one.startswith("stream:")]
            assert found == [one.id for one in wanting]


async def test_restart_awaits_only_whom_it_must(database_url: str) -> None:
    """While one of several terminals was never observed, a restart tells the others nothing anew, and finds what
    changed meanwhile."""
    async with run_core(database_url, crash=True) as core, reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, REACHABLE)
        core.clocks.advance(1)
        immediate = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True)
        later = await core.subscribe(ALICE, BOB, sink=SOAP)
    for status in (REACHABLE, BUSY):
        async with run_core(database_url, crash=True) as core:
            await core.play(ALICE, status)
    async with run_core(database_url) as core:
        await core.play(BOB, REACHABLE)
        assert await core.told(immediate) == ["alice REACHABLE", "alice BUSY", "bob REACHABLE"]
        assert await core.told(later) == ["alice BUSY"]


@pytest.mark.parametrize("first", [REACHABLE, BUSY])
async def test_restart_still_awaits_who_joined(database_url: str, first: Status) -> None:
    """Who joined a group and was not observed before a crash is told at once with checkImmediate, and without it is no
    change; others are told nothing anew."""
    async with run_core(database_url) as core, reading(core, BOB):
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(BOB, REACHABLE)
        await core.groups.create(APP, TEAM, [ALICE])
    async with run_core(database_url, crash=True) as core:
        immediate = await core.subscribe(TEAM, sink=SOAP, check_immediate=True)
        later = await core.subscribe(TEAM, sink=SOAP)
        await core.play(ALICE, REACHABLE)
        await core.groups.add_members(APP, TEAM, [BOB])
        await until(lambda: core.live.registry.wanted_by(BOB) == [immediate.id, later.id])
    for status in (first, UNREACHABLE):
        async with run_core(database_url, crash=True) as core:
            await core.play(ALICE, REACHABLE)
            await core.play(BOB, status)
    async with run_core(database_url) as core:
        assert await core.told(immediate) == ["alice REACHABLE", f"bob {first.name}", "bob UNREACHABLE"]
        assert await core.told(later) == ["bob UNREACHABLE"]


async def test_restart_holds_back_no_first_observation(database_url: str) -> None:
    """With an interval, who was observed for the first time after the last notification is told nothing after a crash,
    nor is who left a group while a change was held back, and came again."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks, crash=True) as core:
        await core.groups.create(APP, TEAM, [ALICE, CAROL])
        subscription = await core.subscribe(TEAM, sink=SOAP, min_interval_ms=3000)
        for address, status in ((ALICE, REACHABLE), (CAROL, REACHABLE), (ALICE, BUSY)):
            clocks.advance(0.1)
            await core.play(address, status)
        assert await core.told(subscription) == ["alice BUSY"]
        await core.play(CAROL, BUSY)  # held back
        await core.groups.set_members(APP, TEAM, [ALICE, BOB])
        await until(lambda: not core.live.registry.wanted_by(CAROL))
        await core.groups.add_members(APP, TEAM, [CAROL])
        await until(lambda: core.live.registry.wanted_by(CAROL))
        clocks.advance(0.1)
        await core.play(BOB, REACHABLE)
    clocks.advance(10)
    async with run_core(database_url, clocks=clocks) as core:
        await core.advance(10)
        for address, status in ((ALICE, BUSY), (BOB, REACHABLE), (CAROL, BUSY)):
            await core.play(address, status)
        assert await core.told(subscription) == ["alice BUSY"]


async def test_group_deleted_while_too_many_are_left(database_url: str) -> None:
    """With a stricter limit after a restart, a group that is deleted while others are left out is followed, and tells
    nothing that was told."""
    async with run_core(database_url) as core:
        await core.groups.create(APP, TEAM, [ALICE])
        subscription = await core.subscribe(TEAM, BOB, CAROL, sink=SOAP)
    async with run_core(database_url, policy=Policy(max_notification_addresses=1)) as core:
        with capture_logs() as log:
            await core.groups.delete(APP, TEAM)
            await core.advance(1)
        assert not [entry for entry in log if entry["log_level"] == "error"]
        await core.play(BOB, REACHABLE)
        await core.play(BOB, BUSY)
        assert await core.told(subscription) == ["bob BUSY"]


async def test_group_that_changes_while_it_is_followed(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change of a group, while the first one is being followed, is followed too."""
    await core.groups.create(APP, TEAM, [ALICE])
    await core.subscribe(TEAM)
    members_now = core.directory.members_now

    async def changing(*arguments: Any) -> Any:
        monkeypatch.setattr(core.directory, "members_now", members_now)
        found = await members_now(*arguments)
        await core.groups.add_members(APP, TEAM, [CAROL])
        return found

    monkeypatch.setattr(core.directory, "members_now", changing)
    await core.groups.add_members(APP, TEAM, [BOB])
    for address in (BOB, CAROL):
        await until(partial(core.live.registry.wanted_by, address))


async def test_group_that_changes_while_the_endpoint_is_tested(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription begins with the members that its group has then."""
    await core.groups.create(APP, TEAM, [ALICE])

    async def check(subscription: Subscription) -> None:
        await core.groups.add_members(APP, TEAM, [BOB])
        await core.advance(1)  # nobody followed it yet

    monkeypatch.setattr(core.sender, "check", check)
    await core.subscribe(TEAM, sink=WEBHOOK)
    assert core.live.registry.wanted_by(BOB)


async def test_defect_in_one_group_loses_no_others_change(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one subscription or stream cannot follow its group, those of others follow theirs."""
    await core.groups.create(APP, TEAM, [ALICE])
    await core.groups.create(APP, ALL, [ALICE])
    await core.subscribe(TEAM, sink=SOAP)
    await core.subscribe(ALL, sink=SOAP)
    async with reading(core, TEAM), reading(core, ALL):
        await until(lambda: core.live.engine.figures()["streams"] == 2)
        members_now = core.directory.members_now

        async def defective(client_id: str, addresses: Sequence[TerminalAddress], *rest: Any) -> Expansion:
            if TEAM in addresses:
                raise RuntimeError("a defect")
            return await members_now(client_id, addresses, *rest)

        monkeypatch.setattr(core.directory, "members_now", defective)
        await core.groups.set_members(APP, TEAM, [CAROL])
        await core.groups.set_members(APP, ALL, [BOB])
        await until(lambda: len(core.live.registry.wanted_by(BOB)) == 2)
    assert not core.live.registry.wanted_by(CAROL)


# Making, showing


async def test_creation_is_idempotent_by_request_id(core: Core) -> None:
    """The same request again returns the first one's subscription; another request with that id is refused."""
    first = await core.subscribe(ALICE, sink=WEBHOOK, request_id="r1", duration_ms=1000)
    again = await core.subscribe("SIP:alice@EXAMPLE.com", sink=WEBHOOK, request_id="r1", duration_ms=1000)
    assert again.id == first.id
    assert await core.told(first) == ["STARTED"]
    with pytest.raises(RequestIdReused):
        await core.subscribe(BOB, sink=WEBHOOK, request_id="r1")
    others = await core.subscribe(BOB, sink=WEBHOOK, request_id="r1", client=OTHER)
    assert others.id != first.id
    assert core.live.engine.figures()["subscriptions"] == 2
    await core.advance(31)
    again = await core.subscribe(ALICE, sink=WEBHOOK, request_id="r1", duration_ms=1000)
    assert again.end_reason is EndReason.EXPIRED


async def test_a_repeated_creation_looks_at_nothing_again(tmp_path: Path) -> None:
    """The same request again checks no endpoint and no limit; one that differs in anything is refused."""
    async with run_core(await new_database(tmp_path), policy=Policy(max_subscriptions=1)) as core:
        sink = replace(WEBHOOK, parameters={"token": "t", "handshake": "test"})
        first = await core.subscribe(ALICE, sink=sink, request_id="r1")
        core.sender.error = SinkRefused("No.", reason="host")
        assert await core.subscribe(ALICE, sink=sink, request_id="r1") == first
        assert len(core.sender.checked) == 1
        for other in (
            {"duration_ms": 1000},
            {"count": 1},
            {"criteria": frozenset({BUSY})},
            {"correlator": "c"},
            {"check_immediate": True},
            {"sink": replace(sink, url=f"{sink.url}/x")},
            {"sink": replace(sink, parameters={**sink.parameters, "token": "u"})},
            {"sink": replace(sink, parameters={**sink.parameters, "handshake": "none"})},
            {"sink": replace(sink, parameters={**sink.parameters, "secrets": "whsec_" + "A" * 32})},
        ):
            with pytest.raises(RequestIdReused):
                await core.subscribe(ALICE, **{"sink": sink, **other}, request_id="r1")  # type: ignore[arg-type]
        assert len(core.sender.checked) == 1


async def test_every_webhook_of_v1_is_signed(core: Core) -> None:
    """A webhook without a signing secret gets one, which is known as made here; other sinks get none."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)
    assert len(read_secret(made_secret(made))) == SECRET_BYTES
    own = await core.subscribe(ALICE, sink=replace(WEBHOOK, parameters={"secrets": "whsec_" + "A" * 32}))
    assert made_secret(own) == ""
    for other in (replace(WEBHOOK, profile="camara", parameters={"type": "t"}), Sink(kind=SinkKind.STREAM)):
        assert (await core.subscribe(ALICE, sink=other)).sink == other


async def test_a_subscription_ends_with_its_token(core: Core) -> None:
    """It ends in time to say so with the access token; renewing does not prolong it past that; CAMARA's are not
    renewed at all; a token that is about to end is refused."""
    ends_at = BEGAN + timedelta(seconds=60)
    sink = replace(WEBHOOK, parameters={"token": "t", "token_expires_at": ends_at.isoformat()})
    made = await core.subscribe(ALICE, sink=sink)
    assert made.expires_at == ends_at - TOKEN_LEAD
    assert (await core.subscribe(ALICE, sink=sink, duration_ms=1000)).expires_at == BEGAN + timedelta(seconds=1)
    renewed = await core.subscriptions.renew(APP, made.id, 3_600_000)
    assert renewed.expires_at == ends_at - TOKEN_LEAD
    camaras = await core.subscribe(ALICE, sink=replace(sink, profile="camara"))
    with pytest.raises(NotPermitted):
        await core.subscriptions.renew(APP, camaras.id, 3_600_000)
    assert (await core.stored(camaras)).expires_at == camaras.expires_at
    soon = replace(sink, parameters={"token": "t", "token_expires_at": (BEGAN + TOKEN_LEAD).isoformat()})
    with pytest.raises(SinkRefused):
        await core.subscribe(ALICE, sink=soon)


@pytest.mark.parametrize(
    ("error", "policy", "request_"),
    [
        (InvalidAddress, {}, {"addresses": ["mailto:x@example.com"]}),
        (NoValidAddresses, {}, {"addresses": []}),
        (TooManyAddresses, {"max_notification_addresses": 1}, {"addresses": [ALICE, BOB]}),
        (BusyNotSupported, {"busy_available": False}, {"criteria": frozenset({BUSY})}),
        (IntervalTooShort, {"min_interval_ms": 1000}, {"min_interval_ms": 999}),
        (InvalidRequest, {}, {"min_interval_ms": -1}),
        (DurationTooLong, {"max_duration_ms": 1000}, {"duration_ms": 1001}),
        (InvalidRequest, {}, {"duration_ms": -1}),
        (InvalidRequest, {}, {"duration_ms": 1 << 70}),
        (UnlimitedCountNotAllowed, {"unlimited_count_allowed": False}, {"count": 0}),
        (CountTooLarge, {"max_count": 10}, {"count": 11}),
        (InvalidRequest, {}, {"count": -1}),
        (InvalidRequest, {}, {"correlator": "x" * 10_000}),
        (InvalidRequest, {}, {"request_id": "x" * 65}),
        (TooManySubscriptions, {"max_subscriptions": 0}, {}),
        (TooManyWatchedTerminals, {"max_watched_terminals": 0}, {}),
    ],
)
async def test_request_that_the_policy_refuses(
    url: str, error: type[TerminalStatusError], policy: dict[str, Any], request_: dict[str, Any]
) -> None:
    """Each violation has its own error, leaves a usage record, and nothing else."""
    async with run_core(url, policy=Policy(**policy)) as core:
        with pytest.raises(error):
            await core.subscribe(*request_.pop("addresses", [ALICE]), **request_)
        (record,) = await core.usage_records()
        assert (record.operation, record.result) == ("startNotification", error.code)
        assert core.live.engine.figures()["terminals"] == 0


async def test_defaults_of_the_policy_fill_what_is_not_asked(url: str) -> None:
    """The policy's least interval and default duration are taken where a request names none."""
    policy = Policy(min_interval_ms=500, default_duration_ms=0, max_duration_ms=7000)
    async with run_core(url, policy=policy) as core:
        made = await core.subscribe(ALICE)
        assert (made.min_interval_ms, made.expires_at) == (500, core.clocks.now + timedelta(seconds=7))
        assert made.sink.kind is SinkKind.STREAM
    async with run_core(url, policy=Policy(default_duration_ms=0)) as core:
        assert (await core.subscribe(ALICE)).expires_at is None


async def test_sink_is_checked_when_the_subscription_is_made(core: Core) -> None:
    """An endpoint that may not or cannot be used is refused at once; a kind without a sender, too."""
    core.sender.error = SinkUnreachable("The endpoint refuses the connection.")
    with pytest.raises(SinkUnreachable):
        await core.subscribe(ALICE, sink=WEBHOOK)
    await core.subscribe(ALICE)
    assert [one.sink.url for one in core.sender.checked] == [WEBHOOK.url]
    core.subscriptions._senders = {}  # noqa: SLF001
    with pytest.raises(SinkRefused):
        await core.subscribe(ALICE, sink=SOAP)


@pytest.mark.parametrize(
    ("sink", "why"),
    [
        (Sink(kind=SinkKind.STREAM, url=WEBHOOK.url), "kind"),
        (Sink(kind=SinkKind.STREAM, profile="v1"), "kind"),
        (Sink(kind=SinkKind.STREAM, parameters={"token": "t"}), "kind"),
        (replace(WEBHOOK, parameters={"made": "0" * 64}), "parameter"),
        (replace(WEBHOOK, parameters={"request": "0" * 64}), "parameter"),
    ],
)
async def test_nothing_of_a_sink_is_dropped_in_silence(core: Core, sink: Sink, why: str) -> None:
    """What would have no meaning, or is the gateway's own, is refused, and nothing is made."""
    with pytest.raises(SinkRefused) as caught:
        await core.subscribe(ALICE, sink=sink)
    assert caught.value.details == {"field": "sink", "reason": why}
    assert not core.sender.checked


async def test_client_sees_its_own_only(core: Core) -> None:
    """Another client's subscription is unknown; an operator's client sees all."""
    mine = await core.subscribe(ALICE)
    theirs = await core.subscribe(ALICE, client=OTHER)
    assert (await core.subscriptions.get(APP, mine.id)).id == mine.id
    for unknown in (theirs.id, "", "x" * 5000):
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.get(APP, unknown)
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.cancel(APP, unknown, face="rest")
    assert [one.id for one in (await core.subscriptions.list(APP, Page()))[0]] == [mine.id]
    assert len((await core.subscriptions.list(ADMIN, Page()))[0]) == 2
    assert (await core.subscriptions.get(ADMIN, theirs.id)).id == theirs.id
    with pytest.raises(InvalidRequest):
        await core.subscriptions.list(APP, Page(token="elsewhere"))


async def test_all_pages_are_one_call(url: str) -> None:
    """A rate that is limited counts all pages of a client's subscriptions once, and refuses before the first."""
    async with run_core(url, policy=Policy(rate_per_s=1, rate_burst=1)) as core:
        made = []
        for _ in range(3):
            made.append((await core.subscribe(ALICE)).id)
            core.clocks.advance(1)
        pages = [[one.id for one in page] async for page in core.subscriptions.pages(APP, 2)]
        assert pages == [made[:2], made[2:]]
        with pytest.raises(RateLimited):
            await anext(core.subscriptions.pages(APP, 2))
        assert [page async for page in core.subscriptions.pages(OTHER, 2)] == [[]]


async def test_stream_sink_is_delivered_by_being_listed(core: Core) -> None:
    """What goes to no endpoint stands in the list as delivered, and wakes no delivery."""
    subscription = await core.subscribe(ALICE, check_immediate=True)
    await core.play(ALICE, BUSY)
    assert [one.state for one in await core.owed(subscription)] == [DeliveryState.DELIVERED]
    assert core.hints == []


async def test_starts_and_ends_leave_usage_records(core: Core) -> None:
    """Each start and end is recorded by the contract's names, in the transaction that makes it where it succeeds."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    made = await core.subscribe(TEAM, correlator="c")
    await core.subscriptions.cancel(APP, made.id, face="rest", requester="tel:+1")
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, made.id, face="rest")
    start, end, failed = await core.usage_records()
    assert (start.operation, start.targets, start.target_count, start.expanded_count) == (
        "startNotification",
        (TEAM,),
        1,
        2,
    )
    assert (start.correlator, start.subscription_id, start.face, start.result) == ("c", made.id, "grpc", "OK")
    assert (end.operation, end.requester, end.correlator, end.face) == ("endNotification", "tel:+1", "c", "rest")
    assert failed.result == "SUBSCRIPTION_UNKNOWN"


async def test_creation_fails_clearly_while_the_store_is_away(core: Core) -> None:
    """Nothing is made, and nothing stays in memory; the same request succeeds when the store is back."""
    core.store.away = True
    with pytest.raises(StoreUnavailable):
        await core.subscribe(ALICE)
    assert core.live.engine.figures()["subscriptions"] == 0
    core.store.away = False
    await core.subscribe(ALICE)


async def test_caller_that_leaves_does_not_tear_creation(core: Core) -> None:
    """A creation whose caller is cancelled is done whole: what is stored stands in memory, too."""
    creating = asyncio.ensure_future(core.subscribe(ALICE, request_id="r"))
    await until(lambda: ALICE in core.watcher.wanted)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    await until(lambda: core.live.engine.figures()["subscriptions"] == 1)
    await core.subscribe(ALICE, request_id="r")
    assert core.live.engine.figures()["subscriptions"] == 1
