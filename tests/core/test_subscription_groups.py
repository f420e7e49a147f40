"""Subscriptions to groups: members that join, leave and fail."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.domain.addresses import TerminalAddress
from app.domain.policy import Policy
from app.domain.records import Subscription
from app.domain.statuses import Status
from app.live.group_directory import Expansion
from app.live.registry import WantedBy
from tests.support.core import (
    ALICE,
    ALL,
    APP,
    BOB,
    BUSY,
    CAROL,
    REACHABLE,
    SOAP,
    TEAM,
    UNREACHABLE,
    WEBHOOK,
    Clocks,
    Core,
    reading,
    run_core,
)
from tests.support.waiting import until


def listeners(core: Core, address: TerminalAddress) -> int:
    """How many subscriptions, and clients with streams, want the terminal."""
    wanted = core.live.registry.wanted_by(address)
    return len(wanted.subscription_ids) + len(wanted.stream_client_ids)


async def test_group_subscription_follows_its_members(core: Core) -> None:
    """Notifications are about members: a terminal that joins is watched, and a terminal that leaves is no longer
    reported, in nested groups too."""
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
    assert await core.owed_in_short(subscription) == ["alice REACHABLE", "bob BUSY", "carol UNREACHABLE"]
    await core.groups.delete(APP, TEAM)
    await until(lambda: not core.live.registry.wanted_by(BOB))
    await core.advance(31)
    assert set(core.watcher.wanted) == {CAROL}


async def test_live_terminal_that_joins_is_reported_at_once(core: Core) -> None:
    """With checkImmediate, a live terminal that joins a watched group is reported without a new observation."""
    await core.groups.create(APP, TEAM, [ALICE])
    async with reading(core, BOB):
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(BOB, BUSY)
        immediate = await core.subscribe(TEAM, sink=SOAP, check_immediate=True)
        later = await core.subscribe(TEAM, sink=SOAP)
        await core.groups.add_members(APP, TEAM, [BOB])
        await until(lambda: len(core.hints) == 1)
        await core.play(BOB, REACHABLE)
        assert await core.owed_in_short(immediate) == ["bob BUSY", "bob REACHABLE"]
        assert await core.owed_in_short(later) == ["bob REACHABLE"]


async def test_restart_expands_groups_again(url: str) -> None:
    """After a restart the group's current members are watched, and later changes of the group still have an effect."""
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
        assert await core.owed_in_short(subscription) == ["bob BUSY"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_deleted_groups_stay_groups_over_a_restart(database_url: str, restarted: bool) -> None:
    """A subscribed group that is deleted, directly or inside a group, has no members, after a crash too; once it is
    made again the subscription follows it."""
    async with AsyncExitStack() as gateways:
        core = await gateways.enter_async_context(run_core(database_url, crash=True))
        await core.groups.create(APP, TEAM, [ALICE])
        await core.groups.create(APP, ALL, [BOB])
        alone, nested = await core.subscribe(TEAM, sink=SOAP), await core.subscribe(ALL, sink=SOAP)
        await core.groups.add_members(APP, ALL, [TEAM])
        await until(lambda: core.live.registry.wanted_by(ALICE).subscription_ids == [alone.id, nested.id])
        await core.groups.delete(APP, TEAM)
        await until(lambda: not core.live.registry.wanted_by(ALICE))
        if restarted:
            await gateways.aclose()
            core = await gateways.enter_async_context(run_core(database_url))
            assert set(core.watcher.wanted) == {BOB}
        await core.groups.create(APP, TEAM, [CAROL])
        await until(lambda: core.live.registry.wanted_by(CAROL).subscription_ids == [alone.id, nested.id])
        await core.play(CAROL, REACHABLE)
        await core.play(CAROL, BUSY)
        assert await core.owed_in_short(alone) == await core.owed_in_short(nested) == ["carol BUSY"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_group_made_of_a_subscribed_terminal(database_url: str, restarted: bool) -> None:
    """An address that was subscribed to as a terminal stays a terminal, whatever group is made of it. A member of a
    group becomes the group. Both hold over a crash, and for streams."""
    async with AsyncExitStack() as gateways:
        core = await gateways.enter_async_context(run_core(database_url, crash=True))
        await core.groups.create(APP, TEAM, [ALICE])
        terminal, by_group = await core.subscribe(ALICE, sink=SOAP), await core.subscribe(TEAM, sink=SOAP)
        both = await core.subscribe(TEAM, ALICE, sink=SOAP)
        await gateways.enter_async_context(reading(core, TEAM))
        await until(lambda: listeners(core, ALICE) == 4)
        await core.groups.create(APP, ALICE, [BOB])
        await until(
            lambda: (
                core.live.registry.wanted_by(BOB)
                == WantedBy(subscription_ids=[by_group.id], stream_client_ids=[APP.id])
            )
        )
        await core.groups.set_members(APP, TEAM, [CAROL, ALICE])
        await until(lambda: listeners(core, CAROL) == 3)
        if restarted:
            await gateways.aclose()
            core = await gateways.enter_async_context(run_core(database_url))
        for address, wanting in ((ALICE, [terminal, both]), (BOB, [by_group]), (CAROL, [by_group, both])):
            found = core.live.registry.wanted_by(address).subscription_ids
            assert found == [one.id for one in wanting]


async def test_restart_awaits_only_whom_it_must(database_url: str) -> None:
    """Where one of several terminals was never observed, a restart reports nothing about the others again, and finds
    what changed meanwhile."""
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
        assert await core.owed_in_short(immediate) == ["alice REACHABLE", "alice BUSY", "bob REACHABLE"]
        assert await core.owed_in_short(later) == ["alice BUSY"]


@pytest.mark.parametrize("first", [REACHABLE, BUSY])
async def test_restart_still_awaits_who_joined(database_url: str, first: Status) -> None:
    """A terminal that joined a group and was not observed before a crash is reported at once with checkImmediate, and
    is not a change without it; other terminals are not reported again."""
    async with run_core(database_url) as core, reading(core, BOB):
        await until(lambda: BOB in core.watcher.wanted)
        await core.play(BOB, REACHABLE)
        await core.groups.create(APP, TEAM, [ALICE])
    async with run_core(database_url, crash=True) as core:
        immediate = await core.subscribe(TEAM, sink=SOAP, check_immediate=True)
        later = await core.subscribe(TEAM, sink=SOAP)
        await core.play(ALICE, REACHABLE)
        await core.groups.add_members(APP, TEAM, [BOB])
        await until(lambda: core.live.registry.wanted_by(BOB).subscription_ids == [immediate.id, later.id])
    for status in (first, UNREACHABLE):
        async with run_core(database_url, crash=True) as core:
            await core.play(ALICE, REACHABLE)
            await core.play(BOB, status)
    async with run_core(database_url) as core:
        assert await core.owed_in_short(immediate) == ["alice REACHABLE", f"bob {first.name}", "bob UNREACHABLE"]
        assert await core.owed_in_short(later) == ["bob UNREACHABLE"]


async def test_restart_holds_back_no_first_observation(database_url: str) -> None:
    """With an interval, these are not reported after a crash: a terminal that was first observed after the last
    notification, and one that left the group while its change was held back, and joined again."""
    clocks = Clocks()
    async with run_core(database_url, clocks=clocks, crash=True) as core:
        await core.groups.create(APP, TEAM, [ALICE, CAROL])
        subscription = await core.subscribe(TEAM, sink=SOAP, min_interval_ms=3000)
        for address, status in ((ALICE, REACHABLE), (CAROL, REACHABLE), (ALICE, BUSY)):
            clocks.advance(0.1)
            await core.play(address, status)
        assert await core.owed_in_short(subscription) == ["alice BUSY"]
        await core.play(CAROL, BUSY)  # the interval holds this change back
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
        assert await core.owed_in_short(subscription) == ["alice BUSY"]


async def test_group_deleted_while_too_many_are_left(database_url: str) -> None:
    """With a stricter limit after a restart, a group that is deleted while members are left out is followed, and no
    status is reported twice."""
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
        assert await core.owed_in_short(subscription) == ["bob BUSY"]


async def test_group_that_changes_while_it_is_followed(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change of a group, while the first is being followed, has its effect too."""
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
    """A subscription begins with the group's members after the check of its endpoint."""
    await core.groups.create(APP, TEAM, [ALICE])

    async def check(subscription: Subscription) -> None:
        await core.groups.add_members(APP, TEAM, [BOB])
        await core.advance(1)  # no subscription follows the group yet

    monkeypatch.setattr(core.sender, "check", check)
    await core.subscribe(TEAM, sink=WEBHOOK)
    assert core.live.registry.wanted_by(BOB)


async def test_defect_in_one_group_loses_no_others_change(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where following a group fails for one subscription or stream, the others still follow theirs."""
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
        await until(lambda: listeners(core, BOB) == 2)
    assert not core.live.registry.wanted_by(CAROL)
