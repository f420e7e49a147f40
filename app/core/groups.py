"""Groups: sets of terminals that are queried and watched by one address. Clients make, list, change and delete groups.

Invariants: a client sees and changes its own groups; an operator's client sees everybody's. A group's version grows
with each change, and a change may name the version that it is based on.

Deliberately absent: which terminals a group means (`live/group_directory.py`), and limits themselves (`policy.py`).
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    GroupChanged,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    TooManyGroups,
)
from app.domain.filters import GroupFilter, seen_by
from app.domain.operations import AuditAction
from app.domain.policy import Policy
from app.domain.records import Client, Group
from app.live.group_directory import GroupDirectory, parse_field, parse_list
from app.ports.pages import empty
from app.ports.store import ALL_GROUPS, Page, Store

_TRIES = 5
"""How often a change without `expected_version` is tried while other calls change the same group."""


class GroupService:
    """One per process."""

    def __init__(
        self, store: Store, directory: GroupDirectory, policies: Policies, clock: Callable[[], datetime]
    ) -> None:
        """`clock` gives the time in UTC."""
        self._directory = directory
        self._store = store
        self._policies = policies
        self._clock = clock
        self._making: Counter[str] = Counter()  # by client id: groups that are being stored

    def is_group(self, client_id: str, address: str) -> bool:
        """Whether the (canonical) address is a group of this client."""
        return self._directory.is_group(client_id, address)

    async def create(self, client: Client, address: str, members: Sequence[str]) -> Group:
        """Makes a group with a `sip:` or `sips:` address. Members are terminals, or groups if the policy allows that.

        Raises GroupExists (the client has it already), GroupNotAllowed, GroupTooLarge, InvalidAddress,
        NestedGroupNotAllowed, RateLimited, StoreUnavailable, TooManyGroups.
        """
        policy = self._policies.admit(client)
        if not policy.group_support:
            raise GroupNotAllowed("This gateway does not support groups.", field="address")
        own = parse_field(address, "address")
        if own.startswith("tel:"):
            raise InvalidAddress("A group needs a sip: or sips: URI as its address, not a tel: URI.", field="address")
        if self._directory.count(client.id) + self._making[client.id] >= policy.max_groups:
            raise TooManyGroups(
                f"Limit reached: {policy.max_groups} groups. Delete one, or ask the operator to raise `max_groups`."
            )
        now = self._clock()
        group = Group(
            address=own,
            client_id=client.id,
            members=self._members(client.id, policy, own, _read(policy, members)),
            created_at=now,
        )
        self._making[client.id] += 1  # counted from here on: other calls may come while it is stored
        try:
            await self._store.create_group(group)
        finally:
            self._making[client.id] -= 1
            if not self._making[client.id]:
                del self._making[client.id]
        self._directory.on_group_stored((client.id, own), group.version)
        await self._store.audit(
            now, client.id, AuditAction.GROUP_CREATED, {"group": own, "members": str(len(group.members))}
        )
        return group

    async def get(self, client: Client, address: str) -> Group:
        """The client's group with this address. For an operator's client without such a group: another client's.

        Raises GroupUnknown, InvalidAddress, InvalidRequest (several clients have one), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        return await self._own(client, parse_field(address, "address"))

    async def list(self, client: Client, page: Page, only: GroupFilter = ALL_GROUPS) -> tuple[list[Group], str]:
        """The client's groups (an operator's client gets all) by address, and the next page's token ("" at the end).

        Raises InvalidAddress, InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        if only.member:
            only = replace(only, member=parse_field(only.member, "member"))
        seen = seen_by(client, only)
        return empty(page) if seen is None else await self._store.groups(page, seen)

    async def expected_version(self, client: Client, address: str, etags: Collection[str]) -> int:
        """The version of the group, for a change of just this version. Raises GroupChanged if `etags` does not contain
        the group's etag; also as `get`."""
        group = await self.get(client, address)
        if group.etag not in etags:
            raise GroupChanged(
                f"The group {group.address} has changed: its etag is {group.etag!r} now. Read it again before you "
                "change it.",
                group=group.address,
                field="etag",
            )
        return group.version

    async def set_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Replaces the members, if the group has `expected_version` (None: any).

        Raises GroupChanged, GroupUnknown, and the errors of `create` about members.
        """
        policy = self._policies.admit(client)
        group = await self._own(client, parse_field(address, "address"))
        return await self._change(
            client,
            group,
            self._members(group.client_id, policy, group.address, _read(policy, members)),
            expected_version,
        )

    async def add_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Adds members; present ones are ignored. Raises as `set_members`."""
        policy = self._policies.admit(client)
        own, added = parse_field(address, "address"), _read(policy, members)
        return await self._edit(
            client,
            own,
            lambda group: self._members(group.client_id, policy, own, (*group.members, *added)),
            expected_version,
        )

    async def remove_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Removes members; missing ones are ignored. Raises as `set_members`."""
        self._policies.admit(client)
        gone = set(parse_list(members, "members"))
        return await self._edit(
            client,
            parse_field(address, "address"),
            lambda group: tuple([member for member in group.members if member not in gone]),
            expected_version,
        )

    async def delete(self, client: Client, address: str, *, expected_version: int | None = None) -> None:
        """Deletes the group, if it has `expected_version` (None: any). Subscriptions and streams by the group go on
        without its members. Raises GroupChanged, GroupUnknown, InvalidAddress, RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        group = await self._own(client, parse_field(address, "address"))
        await self._store.delete_group(group.client_id, group.address, expected_version)
        self._directory.on_group_stored((group.client_id, group.address), None)
        await self._store.audit(self._clock(), client.id, AuditAction.GROUP_DELETED, {"group": group.address})

    def _members(
        self, owner_id: str, policy: Policy, own: TerminalAddress, members: Sequence[TerminalAddress]
    ) -> tuple[TerminalAddress, ...]:
        """The members, each once."""
        members = tuple(dict.fromkeys(members))
        if len(members) > policy.max_group_size:
            raise _too_large(policy)
        for member in members:
            if not policy.nested_group_support and (member == own or self._directory.is_group(owner_id, member)):
                raise NestedGroupNotAllowed(
                    f"{member} is a group; this gateway does not allow groups in groups.", field="members"
                )
        return members

    async def _own(self, client: Client, address: TerminalAddress) -> Group:
        group = await self._store.group(client.id, address)
        if group is None and client.admin:
            others = self._directory.owners(address)
            if len(others) > 1:
                raise InvalidRequest(
                    f"{len(others)} clients have a group with this address; use the credentials of one of them.",
                    field="address",
                )
            if others:
                group = await self._store.group(others[0], address)
        if group is None:
            raise GroupUnknown(
                f"There is no group {address}, or it belongs to another client.", group=address, field="address"
            )
        return group

    async def _change(
        self, client: Client, group: Group, members: tuple[TerminalAddress, ...], expected_version: int | None
    ) -> Group:
        if expected_version is not None and expected_version < 1:
            raise InvalidRequest("`expected_version` must be 1 or more.", field="expected_version")
        changed = await self._store.change_group(group.client_id, group.address, members, expected_version)
        self._directory.on_group_stored((changed.client_id, changed.address), changed.version)
        await self._store.audit(
            self._clock(), client.id, AuditAction.GROUP_CHANGED, {"group": group.address, "members": str(len(members))}
        )
        return changed

    async def _edit(
        self,
        client: Client,
        address: TerminalAddress,
        edit: Callable[[Group], tuple[TerminalAddress, ...]],
        expected_version: int | None,
    ) -> Group:
        for _ in range(_TRIES - 1 if expected_version is None else 0):
            group = await self._own(client, address)
            try:
                return await self._change(client, group, edit(group), group.version)
            except GroupChanged:
                continue
        group = await self._own(client, address)
        return await self._change(
            client, group, edit(group), group.version if expected_version is None else expected_version
        )


def _read(policy: Policy, members: Sequence[str]) -> list[TerminalAddress]:
    if len(members) > 2 * policy.max_group_size:  # some may be named twice
        raise _too_large(policy)
    return parse_list(members, "members")


def _too_large(policy: Policy) -> GroupTooLarge:
    return GroupTooLarge(
        f"Limit reached: {policy.max_group_size} members of one group. Ask the operator to raise `max_group_size`.",
        field="members",
    )
