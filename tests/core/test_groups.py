"""Tests of `app/core/groups.py`: making, changing and expanding groups, and the limits."""

import asyncio

import pytest

from app.domain.errors import (
    GroupChanged,
    GroupExists,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NoValidAddresses,
    RateLimited,
    TerminalStatusError,
    TooManyAddresses,
    TooManyGroups,
)
from app.domain.policy import Policy
from app.ports.store import Page
from tests.support.core import (
    ADMIN,
    ALICE,
    ALL,
    APP,
    BOB,
    CAROL,
    OTHER,
    TEAM,
    Core,
    run_core,
)


async def expand(core: Core, *addresses: str, policy: Policy | None = None, most: int | None = None) -> tuple[str, ...]:
    expansion = await core.directory.expand(APP, addresses, policy or Policy(), most=most)
    return expansion.terminals


async def test_group_is_made_changed_and_deleted(core: Core) -> None:
    """Members are canonical and distinct; each change is a new version, and the audit log has them in order."""
    made = await core.groups.create(APP, "SIP:team@GROUPS.example.com", [ALICE, "sip:alice@EXAMPLE.com", "tel:+1-555"])
    assert (made.address, made.members, made.version) == (TEAM, (ALICE, "tel:+1555"), 1)
    assert await core.groups.get(APP, TEAM) == made
    changed = await core.groups.set_members(APP, TEAM, [BOB], expected_version=1)
    assert (changed.members, changed.version) == ((BOB,), 2)
    with pytest.raises(GroupChanged):
        await core.groups.set_members(APP, TEAM, [CAROL], expected_version=1)
    assert (await core.groups.add_members(APP, TEAM, [ALICE, BOB])).members == (BOB, ALICE)
    assert (await core.groups.remove_members(APP, TEAM, [BOB, CAROL])).members == (ALICE,)
    assert [one.address for one in (await core.groups.list(APP, Page()))[0]] == [TEAM]
    for change in (core.groups.add_members, core.groups.remove_members):
        with pytest.raises(GroupChanged):
            await change(APP, TEAM, [CAROL], expected_version=3)
    with pytest.raises(GroupChanged):
        await core.groups.delete(APP, TEAM, expected_version=3)
    await core.groups.delete(APP, TEAM, expected_version=4)
    with pytest.raises(GroupUnknown):
        await core.groups.get(APP, TEAM)
    assert not core.directory.is_group(APP.id, TEAM)


async def test_group_is_its_clients_own(core: Core) -> None:
    """Another client can neither see nor change a group; an operator's client sees all groups, and may change those
    whose address only one client uses."""
    await core.groups.create(APP, TEAM, [ALICE])
    for call in (
        core.groups.get(OTHER, TEAM),
        core.groups.set_members(OTHER, TEAM, []),
        core.groups.add_members(OTHER, TEAM, []),
        core.groups.delete(OTHER, TEAM),
    ):
        with pytest.raises(GroupUnknown):
            await call
    assert await core.groups.list(OTHER, Page()) == ([], "")
    assert (await core.groups.get(ADMIN, TEAM)).client_id == APP.id
    assert len((await core.groups.list(ADMIN, Page()))[0]) == 1
    with pytest.raises(GroupExists):
        await core.groups.create(APP, TEAM, [])
    await core.groups.create(OTHER, TEAM, [BOB])
    with pytest.raises(InvalidRequest):
        await core.groups.get(ADMIN, TEAM)
    await core.groups.delete(OTHER, TEAM)
    assert (await core.groups.add_members(ADMIN, TEAM, [CAROL])).members == (ALICE, CAROL)


@pytest.mark.parametrize("restarted", [False, True])
async def test_address_is_a_group_for_its_client_only(url: str, restarted: bool) -> None:
    """An address means the group that the client itself made of it, whatever groups other clients make."""
    async with run_core(url) as core:
        await core.groups.create(APP, ALICE, [BOB])
        await core.groups.create(APP, TEAM, [ALICE])
        await core.groups.create(OTHER, ALL, [ALICE, TEAM])
        if not restarted:
            await _each_has_its_own(core)
    if restarted:
        async with run_core(url) as core:
            await _each_has_its_own(core)


async def _each_has_its_own(core: Core) -> None:
    for client, expected in ((APP, (BOB,)), (OTHER, (ALICE, TEAM)), (ADMIN, (ALICE, TEAM))):
        found = await core.directory.expand(client, [ALICE, TEAM], Policy())
        assert found.terminals == expected
    theirs = await core.directory.expand(OTHER, [ALL], Policy(nested_group_support=False))
    assert (theirs.terminals, theirs.groups) == ((ALICE, TEAM), (ALL,))
    assert (await core.directory.members_now(OTHER.id, [ALL], 10, [ALL])).terminals == (ALICE, TEAM)
    assert (await core.directory.members_now(APP.id, [TEAM], 10, [TEAM])).terminals == (BOB,)


@pytest.mark.parametrize(
    ("error", "policy", "address", "members"),
    [
        (InvalidAddress, Policy(), "tel:+1555", []),
        (InvalidAddress, Policy(), "team", []),
        (InvalidAddress, Policy(), ALL, ["bob"]),
        (GroupNotAllowed, Policy(group_support=False), ALL, []),
        (GroupTooLarge, Policy(max_group_size=2), ALL, [ALICE, BOB, CAROL]),
        (GroupTooLarge, Policy(max_group_size=2), ALL, [ALICE] * 10_000),
        (NestedGroupNotAllowed, Policy(nested_group_support=False), ALL, [TEAM]),
        (NestedGroupNotAllowed, Policy(nested_group_support=False), ALL, [ALL]),
        (TooManyGroups, Policy(max_groups=1), ALL, []),
        (RateLimited, Policy(rate_per_s=1), ALL, []),
    ],
)
async def test_group_that_the_policy_refuses(
    url: str, error: type[TerminalStatusError], policy: Policy, address: str, members: list[str]
) -> None:
    """Each violation of the policy has its own error."""
    async with run_core(url) as core:
        await core.groups.create(APP, TEAM, [ALICE])
    async with run_core(url, policy=policy) as core:
        if policy.rate_per_s:
            core.policies.admit(APP)
        with pytest.raises(error):
            await core.groups.create(APP, address, members)
        assert not core.directory.is_group(APP.id, ALL)


async def test_limit_holds_for_groups_made_at_once(url: str) -> None:
    """Groups that are made at the same time keep to the limit; a deleted group makes room."""
    async with run_core(url, policy=Policy(max_groups=2)) as core:
        made = await asyncio.gather(
            *(core.groups.create(APP, f"sip:g{i}@example.com", []) for i in range(8)), return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in made) == ["Group"] * 2 + ["TooManyGroups"] * 6
        found, _ = await core.groups.list(APP, Page())
        await core.groups.delete(APP, found[0].address)
        with pytest.raises(GroupExists):
            await core.groups.create(APP, found[1].address, [])
        await core.groups.create(APP, TEAM, [])


async def test_expansion_names_each_terminal_once(core: Core) -> None:
    """Groups are expanded to their members, nested groups and cycles too; each terminal is named once."""
    await core.groups.create(APP, TEAM, [ALICE, BOB, ALL])
    await core.groups.create(APP, ALL, [TEAM, BOB, CAROL, ALL])
    assert await expand(core, CAROL, TEAM, "sip:carol@EXAMPLE.com") == (CAROL, ALICE, BOB)
    expansion = await core.directory.expand(APP, [TEAM], Policy())
    assert (expansion.addresses, expansion.groups) == ((TEAM,), (TEAM, ALL))


async def test_expansion_within_the_policy(core: Core) -> None:
    """Groups, nested groups, too many terminals, no terminal, and an invalid address each have their own error."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    await core.groups.create(APP, ALL, [TEAM])
    await core.groups.create(APP, "sip:empty@example.com", [])
    with pytest.raises(GroupNotAllowed):
        await expand(core, TEAM, policy=Policy(group_support=False))
    with pytest.raises(NestedGroupNotAllowed):
        await expand(core, ALL, policy=Policy(nested_group_support=False))
    assert await expand(core, TEAM, policy=Policy(nested_group_support=False)) == (ALICE, BOB)
    with pytest.raises(TooManyAddresses) as refused:
        await expand(core, ALL, most=1)
    assert refused.value.details == {"field": "addresses", "most": "1"}
    with pytest.raises(TooManyAddresses):
        await expand(core, *[f"sip:{i}@example.com" for i in range(100_001)])
    for nobody in ((), ("sip:empty@example.com",)):
        with pytest.raises(NoValidAddresses):
            await expand(core, *nobody)
    with pytest.raises(InvalidAddress) as invalid:
        await expand(core, ALICE, "bob")
    assert invalid.value.details["field"] == "addresses[1]"


async def test_groups_of_another_node_are_learnt(url: str) -> None:
    """Groups are known after a restart; `reload` learns of groups that another node made, changed or deleted."""
    async with run_core(url) as core:
        await core.groups.create(APP, TEAM, [ALICE])
        async with run_core(url) as other:
            assert other.directory.is_group(APP.id, TEAM)
            changed: list[str] = []
            other.directory.on_group_changed = lambda key: changed.append(key[1])
            await core.groups.create(APP, ALL, [])
            await core.groups.set_members(APP, TEAM, [BOB])
            await other.directory.reload()
            assert sorted(changed) == [ALL, TEAM]
            await core.groups.delete(APP, ALL)
            await other.directory.reload()
            assert (changed[2:], other.directory.is_group(APP.id, ALL)) == ([ALL], False)


async def test_group_that_another_process_deleted_is_unknown(core: Core) -> None:
    """A group that another process has just deleted is GROUP_UNKNOWN in a query, not a group without members."""
    await core.groups.create(APP, TEAM, [ALICE])
    await core.store.delete_group(APP.id, TEAM, None)
    with pytest.raises(GroupUnknown) as refused:
        await core.directory.expand(APP, [TEAM], Policy())
    assert refused.value.details == {"group": TEAM, "field": "addresses"}


async def test_page_token_from_elsewhere_is_refused(core: Core) -> None:
    """A page token of another list is an invalid request."""
    with pytest.raises(InvalidRequest):
        await core.groups.list(APP, Page(token="x"))
