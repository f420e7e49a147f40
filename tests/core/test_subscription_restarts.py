"""Subscriptions over restarts and crashes of the gateway."""

import asyncio
import random

import pytest

from app.domain.changes import Changes
from app.domain.operations import Face
from tests.support.core import (
    ALICE,
    APP,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    SOAP,
    TEAM,
    UNREACHABLE,
    Clocks,
    Core,
    reading,
    run_core,
)
from tests.support.waiting import until


async def test_restart_finds_the_change_that_happened_meanwhile(database_url: str) -> None:
    """After a crash subscriptions are watched again; statuses that changed meanwhile are sent, unchanged ones are
    not."""
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
        assert await core.owed_in_short(changed) == ["alice UNREACHABLE"]
        assert await core.owed_in_short(same) == ["bob BUSY"]


async def test_restart_before_the_first_observation(database_url: str) -> None:
    """A terminal that was not observed since the subscription was made is still awaited after a crash: its old status
    is not a change, and the immediate status is still owed."""
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
        assert await core.owed_in_short(quiet) == []
        assert await core.owed_in_short(immediate) == ["bob REACHABLE", "alice BUSY"]
        await core.play(ALICE, UNREACHABLE)
        assert await core.owed_in_short(quiet) == ["alice UNREACHABLE"]
        assert not (await core.stored(quiet)).awaiting


async def test_group_of_another_client_changes_no_subscription(database_url: str) -> None:
    """A subscription to a terminal, or to a group with that terminal, does not change when another client makes or
    changes a group with the terminal's address, nor after a restart."""
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
        assert await core.owed_in_short(one) == await core.owed_in_short(many) == ["alice BUSY"]


async def test_restart_keeps_what_was_held_back(database_url: str) -> None:
    """A change that the interval held back is sent after a crash, once the interval has passed."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks, crash=True) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP, check_immediate=True, min_interval_ms=60_000)
        await core.play(ALICE, REACHABLE)
        clocks.advance(1)
        await core.play(ALICE, BUSY)
        assert await core.owed_in_short(subscription) == ["alice REACHABLE"]
    clocks.advance(20)
    async with run_core(database_url, clocks=clocks) as core:
        await core.play(ALICE, BUSY)
        await core.advance(30)
        assert await core.owed_in_short(subscription) == ["alice REACHABLE"]
        await core.advance(10)
        assert await core.owed_in_short(subscription) == ["alice REACHABLE", "alice BUSY"]
    async with run_core(database_url, clocks=clocks) as core:
        await core.advance(600)
        assert await core.owed_in_short(subscription) == ["alice REACHABLE", "alice BUSY"]


async def test_restart_ends_what_expired_meanwhile(database_url: str) -> None:
    """A subscription whose duration ended while the gateway was down ends at the next start."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks) as core:
        subscription = await core.subscribe(ALICE, sink=SOAP, duration_ms=60_000)
        for_ever = await core.subscribe(BOB, sink=SOAP)
    clocks.advance(61)
    async with run_core(database_url, clocks=clocks) as core:
        await until(lambda: core.live.engine.figures()["subscriptions"] == 1)
        assert await core.owed_in_short(subscription) == ["ENDED EXPIRED"]
        assert (await core.stored(for_ever)).active


async def test_crash_in_the_middle_of_a_write_loses_nothing(database_url: str) -> None:
    """Whether the transaction of a change was committed or not at the crash, the change is sent once."""
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
            assert await core.owed_in_short(subscription) == ["alice BUSY"]
            await core.subscriptions.cancel(APP, subscription.id, face=Face.GRPC)
            await core.play(ALICE, REACHABLE)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_each_stored_change_is_reported_once_in_order(database_url: str, seed: int) -> None:
    """However often the gateway is killed, exactly the stored changes are owed, in order."""
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
            reported = [change.revision for one in owed for change in one.changes if change.address == address]
            assert reported == list(range(2, stored[address].revision + 1))
        assert (await core.stored(subscription)).notified == len(owed)
