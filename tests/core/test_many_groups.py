"""Groups of many members do not delay other clients: members are counted before they are read, bounded, and read in
portions."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import ClientUnknown, TooManyAddresses
from app.domain.filters import GroupFilter, SubscriptionFilter
from app.domain.policy import Policy
from app.domain.records import Client, Group
from app.ports.store import Page
from app.store import SqlStore
from tests.support.core import ALICE, ALL, APP, BEGAN, BOB, BUSY, CAROL, TEAM, Core, new_database, run_core
from tests.support.records import group, make, paged, status
from tests.support.statements import Asked, asked
from tests.support.waiting import until

SIZE = 1000


def members(number: int, size: int = SIZE) -> tuple[TerminalAddress, ...]:
    """Members that are distinct for each number."""
    return tuple([TerminalAddress(f"sip:{number}-{i}@example.com") for i in range(size)])


def address(number: int) -> TerminalAddress:
    return TerminalAddress(f"sip:group-{number:03}@example.com")


async def make_groups(store: Any, count: int, size: int = SIZE, client_id: str = APP.id) -> list[TerminalAddress]:
    """Makes this number of groups of the client; returns their addresses."""
    for number in range(count):
        its = members(number, size)
        made = Group(address=address(number), client_id=client_id, members=its, created_at=BEGAN)
        await store.create_group(made)
    return [address(number) for number in range(count)]


async def test_a_start_reads_no_members(tmp_path: Path) -> None:
    """A start reads the same number of rows by the same statements, however many members groups have; so does a later
    `reload`."""
    seen: list[Any] = []
    for size in (0, SIZE):
        (tmp_path / str(size)).mkdir()
        url = await new_database(tmp_path / str(size))
        async with run_core(url) as core:
            await make_groups(core.store, 3, size)
        with asked() as database:
            async with run_core(url) as core:
                assert core.directory.is_group(APP.id, address(2))
                await core.directory.reload()
                assert not database.reads_of("group_member")
                seen.append((sorted(database.statements), sum(database.rows)))
    assert seen[0] == seen[1]


async def test_a_start_reads_the_members_of_a_subscribed_group_once(url: str) -> None:
    """A start reads a group's members once, however many subscriptions use the group."""
    async with run_core(url) as core:
        groups = await make_groups(core.store, 2, 100)
        await core.directory.reload()
        subscriptions = [await core.subscribe(*groups) for _ in range(5)]
    with asked() as database:
        async with run_core(url) as core:
            assert len(core.live.registry.wanted_by(members(1)[0]).subscription_ids) == len(subscriptions)
            assert len(database.reads_of("group_member")) == 1


async def test_a_page_is_bounded_by_members(store: SqlStore) -> None:
    """A page ends before its groups would have more than 10,000 members; a larger group has a page of its own."""
    for number, size in enumerate([4000, 4000, 2000, 1, 12_000, 1, 9_999, 1]):
        await store.create_group(group(address(number), members=members(number, size), client_id="c1"))
    for client_id in ("c1", ""):
        pages = await paged(lambda page, whose=client_id: store.groups(page, GroupFilter(client_id=whose)), 1000)
        assert [[len(one.members) for one in page] for page in pages] == [
            [4000, 4000, 2000],
            [1],
            [12_000],
            [1, 9_999],
            [1],
        ]
        assert [one.address for page in pages for one in page] == [address(number) for number in range(8)]


async def test_a_page_is_bounded_by_characters(store: SqlStore) -> None:
    """A page ends before its members' addresses would have more than two million characters."""
    for number in range(5):
        its = tuple([TerminalAddress(f"sip:{number}-{i}-{'x' * 200}@example.com") for i in range(3000)])
        await store.create_group(group(address(number), members=its))
    pages = await paged(lambda page: store.groups(page, GroupFilter(client_id="c1")), 1000)
    assert [len(page) for page in pages] == [2, 2, 1]


async def test_subscriptions_of_many_addresses_are_read_in_portions(store: SqlStore) -> None:
    """A page of subscriptions, or a portion at a start, ends before it would have more than 50,000 addresses."""
    for number, size in enumerate([20_000, 20_000, 10_000, 1, 60_000]):
        await make(store, f"s{number}", addresses=members(number, size))
    wanted = [["s0", "s1", "s2"], ["s3"], ["s4"]]
    for client_id in ("c1", ""):
        pages = await paged(
            lambda page, whose=client_id: store.subscriptions(page, SubscriptionFilter(client_id=whose)), 1000
        )
        assert [[one.id for one in page] for page in pages] == wanted
        assert pages[0][1].addresses == members(1, 20_000)
    portions = [portion async for portion in store.active_subscriptions()]
    assert [[one.id for one in portion] for portion in portions] == wanted
    assert portions[2][0].addresses == members(4, 60_000)


async def test_sizes_follow_the_members(store: SqlStore) -> None:
    """The number of a group's members is known without reading them, after each change."""
    await store.create_group(group(members=members(1, 3)))
    await store.create_group(group(address(1), members=()))
    await store.create_group(group(client_id="c2", members=members(1, 9)))
    wanted = [address(1), ALICE, group().address]
    assert list((await store.group_sizes("c1", wanted)).items()) == [(address(1), 0), (group().address, 3)]
    await store.change_group("c1", group().address, members(1, 5), None)
    assert (await store.group_sizes("c1", wanted))[group().address] == 5
    await store.delete_group("c1", group().address, None)
    assert await store.group_sizes("c1", wanted) == {address(1): 0}


async def test_groups_are_learnt_in_portions(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start learns each group of every client once, in portions."""
    monkeypatch.setattr("app.store.groups.PORTION", 2)
    for client_id in ("c2", "c1"):
        for number in range(3):
            await store.create_group(group(address(number), client_id=client_id, members=()))
    portions = [portion async for portion in store.group_versions()]
    assert [one for portion in portions for one in portion] == [
        (client_id, address(number), 1) for client_id in ("c1", "c2") for number in range(3)
    ]
    assert len(portions) == 3


async def refused_unread(core: Core, database: Asked, asked_for: Sequence[str], most: int) -> list[str]:
    """Asserts that the list is refused; returns the statements that read members before the refusal."""
    database.forget()
    with pytest.raises(TooManyAddresses) as refused:
        await core.directory.expand(APP, asked_for, Policy(), most=most)
    assert refused.value.details["most"] == str(most)
    return database.reads_of("group_member")


async def test_members_are_counted_before_they_are_read(url: str) -> None:
    """A list whose groups have ten times as many members as terminals are allowed is refused without reading a member.
    Of a group of groups only its own members are read, not those of the inner groups."""
    with asked() as database:
        async with run_core(url) as core:
            groups = await make_groups(core.store, 11, 100)
            await core.directory.reload()
            await core.groups.create(APP, ALL, groups)
            assert await refused_unread(core, database, groups, 100) == []
            assert len(await refused_unread(core, database, [ALL], 100)) == 1
            assert sum(database.rows) < 50
            assert await refused_unread(core, database, members(99, 101), 100) == []
            found = await core.directory.expand(APP, groups, Policy(), most=1100)
            assert len(found.terminals) == 1100


async def test_terminals_that_several_groups_name_are_counted_once(core: Core) -> None:
    """A terminal in several groups counts once, for up to ten times the limit."""
    for number in range(10):
        await core.groups.create(APP, address(number), members(0, 100))
    found = await core.directory.expand(APP, [address(number) for number in range(10)], Policy(), most=100)
    assert found.terminals == members(0, 100)


async def test_members_are_read_in_portions(url: str) -> None:
    """No statement reads more than 5,000 members; all members are returned in order."""
    with asked() as database:
        async with run_core(url) as core:
            groups = await make_groups(core.store, 12)
            await core.directory.reload()
            database.forget()
            found = await core.directory.expand(APP, groups, Policy(), most=12_000)
            assert found.terminals == tuple([one for number in range(12) for one in members(number)])
            assert len(database.reads_of("group_member")) == 3
            assert max(database.rows) == 12  # rows with the groups' sizes; members are not rows


async def test_a_subscription_to_groups_that_grew_reads_no_more_than_it_may(url: str) -> None:
    """Members beyond the limit are counted as left out."""
    async with run_core(url) as core:
        groups = await make_groups(core.store, 11, 100)
        await core.directory.reload()
        found = await core.directory.members_now(APP.id, [*groups, ALICE], 100, groups)
    assert found.terminals == (ALICE, *members(0, 99))
    assert (found.groups, found.left_out) == (tuple(groups), 11 * 100 + 1 - 100)


async def test_a_deletion_of_many_groups_lets_others_write(store: SqlStore) -> None:
    """A client's groups are deleted in portions, and other writes are stored in between."""
    await store.put_client(Client(id="c1", name="c1", created_at=BEGAN))
    await make_groups(store, 20, client_id="c1")
    deletion = asyncio.create_task(store.delete_client("c1", lambda _: pytest.fail("it has no subscription")))
    revision = 0
    while not deletion.done():
        revision += 1
        assert await store.write(Changes(statuses=[status(ALICE, revision)])) == ()
    await deletion
    assert revision > 3
    assert await store.groups(Page()) == ([], "")


async def test_a_client_that_is_not_there_loses_no_groups(store: SqlStore) -> None:
    """Deleting an unknown client keeps the groups of anonymous callers."""
    await make_groups(store, 1, 1, client_id="anonymous")
    with pytest.raises(ClientUnknown):
        await store.delete_client("anonymous", lambda _: pytest.fail("it has no subscription"))
    assert len((await store.groups(Page()))[0]) == 1


async def test_a_deletion_holds_no_lock_while_groups_go(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations that arrive during the deletion are stored and sent."""
    await core.subscribe(ALICE)
    await make_groups(core.store, 1, client_id="other")
    delete_groups, go_on = core.store.delete_groups, asyncio.Event()

    async def slow(client_id: str) -> None:
        await go_on.wait()
        await delete_groups(client_id)

    monkeypatch.setattr(core.store, "delete_groups", slow, raising=False)
    deletion = asyncio.create_task(core.subscriptions.delete_client("other"))
    await core.play(ALICE, BUSY)
    assert (await core.store.statuses([ALICE]))[ALICE].status is BUSY
    await core.subscribe(BOB)
    assert not deletion.done()
    go_on.set()
    await deletion


async def test_subscriptions_follow_their_group_in_portions(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two portions other tasks run: a new subscription waits for one portion only."""
    monkeypatch.setattr("app.live.group_follower._TOGETHER", 1)
    await core.groups.create(APP, TEAM, [ALICE])
    for _ in range(3):
        await core.subscribe(TEAM)
    happened: list[str] = []
    members_now = core.directory.members_now
    subscribing: list[asyncio.Task[Any]] = []

    async def watched(*arguments: Any) -> Any:
        if not subscribing:
            subscribing.append(asyncio.create_task(core.subscribe(CAROL)))
            subscribing[0].add_done_callback(lambda _: happened.append("subscribed"))
            for _ in range(100):  # until the new subscription waits for the lock
                await asyncio.sleep(0)
        happened.append("followed")
        return await members_now(*arguments)

    monkeypatch.setattr(core.directory, "members_now", watched)
    await core.groups.add_members(APP, TEAM, [BOB])
    await until(lambda: happened.count("followed") == 3 and "subscribed" in happened)
    assert happened.index("subscribed") < 3
