"""What a subscription is sent, by its criteria, interval and count."""

from datetime import timedelta

from app.domain.policy import Policy
from app.domain.sinks import EndReason
from tests.support.core import (
    ALICE,
    BOB,
    BUSY,
    CAROL,
    REACHABLE,
    SOAP,
    UNREACHABLE,
    Core,
    reading,
    run_core,
)
from tests.support.waiting import until


async def test_first_observation_is_what_later_ones_are_compared_with(core: Core) -> None:
    """Without checkImmediate the first status is not sent; each later change is."""
    subscription = await core.subscribe(ALICE, sink=SOAP)
    assert subscription.awaiting
    await core.play(ALICE, REACHABLE)
    assert await core.owed_in_short(subscription) == []
    await core.play(ALICE, BUSY)
    await core.play(ALICE, BUSY)
    await core.play(ALICE, UNREACHABLE)
    assert await core.owed_in_short(subscription) == ["alice BUSY", "alice UNREACHABLE"]
    stored = await core.stored(subscription)
    assert (stored.notified, stored.awaiting) == (2, False)
    assert stored.last_notified_at == (await core.owed(subscription))[-1].changes[0].observed_at
    assert core.hints == ["owed", "owed"]


async def test_check_immediate_sends_a_live_status_at_once(core: Core) -> None:
    """With checkImmediate, known live statuses are owed in the transaction that makes the subscription, and count."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        writes = len(core.store.writes)
        subscription = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True)
        assert len(core.store.writes) == writes
        assert (subscription.notified, subscription.joined) == (1, (BOB,))
        assert await core.owed_in_short(subscription) == ["alice BUSY"]
        await core.play(BOB, REACHABLE)
        await core.play(BOB, REACHABLE)
        assert await core.owed_in_short(subscription) == ["alice BUSY", "bob REACHABLE"]


async def test_check_immediate_waits_for_the_first_observation(core: Core) -> None:
    """A terminal without a live status is reported at its first observation, even if the status has not changed."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, REACHABLE)
        core.watcher.lose(ALICE)
        subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True)
        assert await core.owed_in_short(subscription) == []
        await core.play(ALICE, REACHABLE)
        assert await core.owed_in_short(subscription) == ["alice REACHABLE"]


async def test_criteria_trigger(core: Core) -> None:
    """Only statuses among the criteria are sent, at the start and later."""
    subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True, criteria=frozenset({BUSY, UNREACHABLE}))
    for status in (REACHABLE, BUSY, REACHABLE, UNREACHABLE):
        await core.play(ALICE, status)
    assert await core.owed_in_short(subscription) == ["alice BUSY", "alice UNREACHABLE"]


async def test_what_changes_together_is_reported_together(core: Core) -> None:
    """Terminals that change in one transaction are one notification, which counts once."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP, count=1, check_immediate=True)
    core.watcher.play(ALICE, BUSY)
    core.watcher.play(BOB, REACHABLE)
    await core.settled()
    assert await core.owed_in_short(subscription) == ["alice BUSY, bob REACHABLE", "ENDED COUNT_REACHED"]


async def test_interval_holds_back_and_the_newest_wins(core: Core) -> None:
    """Notifications are never closer together than the interval; afterwards the newest held status is sent."""
    subscription = await core.subscribe(ALICE, BOB, sink=SOAP, check_immediate=True, min_interval_ms=10_000)
    await core.play(ALICE, REACHABLE)
    await core.play(ALICE, BUSY)
    await core.play(BOB, BUSY)
    await core.play(ALICE, UNREACHABLE)
    await core.advance(9.9)
    assert await core.owed_in_short(subscription) == ["alice REACHABLE"]
    await core.advance(0.2)
    assert await core.owed_in_short(subscription) == ["alice REACHABLE", "alice UNREACHABLE, bob BUSY"]
    await core.advance(60)
    await core.play(BOB, REACHABLE)
    assert (await core.owed_in_short(subscription))[2:] == ["bob REACHABLE"]


async def test_held_change_that_is_over_is_not_reported(core: Core) -> None:
    """Where the newest status is not among the criteria, the status held before it is not sent, since it is no longer
    true."""
    subscription = await core.subscribe(
        ALICE, sink=SOAP, criteria=frozenset({BUSY}), check_immediate=True, min_interval_ms=10_000
    )
    for status in (BUSY, REACHABLE, BUSY, REACHABLE):
        await core.play(ALICE, status)
    await core.advance(11)
    assert await core.owed_in_short(subscription) == ["alice BUSY"]


async def test_count_ends_the_subscription(core: Core) -> None:
    """The last notification of the count and the end are one transaction; nothing follows."""
    subscription = await core.subscribe(ALICE, sink=SOAP, count=2)
    for status in (REACHABLE, BUSY, REACHABLE, BUSY):
        await core.play(ALICE, status)
    assert await core.owed_in_short(subscription) == ["alice BUSY", "alice REACHABLE", "ENDED COUNT_REACHED"]
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
        assert await core.owed_in_short(subscription) == ["alice BUSY", "ENDED COUNT_REACHED"]
        assert core.live.engine.figures()["subscriptions"] == 0


async def test_duration_ends_the_subscription(core: Core) -> None:
    """At the end of its duration the subscription ends, its sink is sent the end, and its watch is released."""
    subscription = await core.subscribe(ALICE, sink=SOAP, duration_ms=60_000)
    await core.play(ALICE, REACHABLE)
    await core.advance(59.9)
    assert (await core.stored(subscription)).active
    await core.advance(0.2)
    assert await core.owed_in_short(subscription) == ["ENDED EXPIRED"]
    assert (await core.stored(subscription)).end_reason is EndReason.EXPIRED
    await core.advance(31)
    assert core.watcher.asked[-1] == f"unwatch {ALICE}"


async def test_end_is_found_after_the_wall_clock_jumps(core: Core) -> None:
    """Forward (a suspended machine): subscriptions that should have ended meanwhile end, and no others. Backward: no
    duration gets longer, nor that of a subscription that was renewed or made before the jump was noticed."""
    brief, long = [
        await core.subscribe(who, sink=SOAP, duration_ms=each) for who, each in ((ALICE, 60_000), (BOB, 10**7))
    ]
    core.clocks.now += timedelta(hours=1)
    between = await core.subscribe(CAROL, sink=SOAP, duration_ms=60_000)
    await core.advance(3)
    assert await core.owed_in_short(brief) == ["ENDED EXPIRED"]
    assert [(await core.stored(each)).active for each in (long, between)] == [True, True]
    core.clocks.now -= timedelta(hours=2)
    await core.advance(56)
    assert (await core.stored(between)).active
    await core.advance(2)
    assert await core.owed_in_short(between) == ["ENDED EXPIRED"]
    await core.advance(10_000 - 62)
    assert await core.owed_in_short(long) == ["ENDED EXPIRED"]


async def test_clock_that_jumps_neither_ends_nor_floods(core: Core) -> None:
    """Intervals are measured by the monotonic clock; so are durations where the wall clock is set back."""
    subscription = await core.subscribe(
        ALICE, sink=SOAP, check_immediate=True, min_interval_ms=10_000, duration_ms=60_000
    )
    await core.play(ALICE, REACHABLE)
    core.clocks.now += timedelta(seconds=30)
    await core.play(ALICE, BUSY)
    await core.advance(5)
    assert await core.owed_in_short(subscription) == ["alice REACHABLE"]
    core.clocks.now -= timedelta(days=2)
    await core.advance(5.1)
    assert await core.owed_in_short(subscription) == ["alice REACHABLE", "alice BUSY"]
    await core.advance(50)
    assert (await core.owed_in_short(subscription))[2:] == ["ENDED EXPIRED"]


async def test_busy_is_reported_as_reachable_where_the_policy_says_so(url: str) -> None:
    """A client that may not see BUSY is sent REACHABLE; becoming busy is not a change for it."""
    async with run_core(url, policy=Policy(busy_available=False)) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP)
        for status in (REACHABLE, BUSY, UNREACHABLE, BUSY, REACHABLE):
            await core.play(ALICE, status)
        assert await core.owed_in_short(subscription) == ["alice UNREACHABLE", "alice REACHABLE"]
