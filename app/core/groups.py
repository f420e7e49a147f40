"""Groups: named sets of terminals that are asked and watched by one address, and what a list of addresses stands for.

Invariants: a group belongs to one client; to every other, operators' too, its address is a terminal like any, and may
be a group of its own. So no client can change what an address means to another. Expansion ends whatever the members
are: each group is visited once (so cycles do no harm), and no more than MAX_EXPANDED terminals are named. Members are
counted before they are read (`most_members`), and read in portions, so that no list keeps a thread of the database
from others. Which addresses are groups is kept in memory (`start`, `reload`), so that a list without groups costs no
query; their members are not.

Deliberately absent: who listens to changes of membership (`on_change`), and limits themselves (`policy.py`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.core.policy import Policies, Policy
from app.domain import (
    GroupChanged,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NoValidAddresses,
    TerminalAddress,
    TooManyAddresses,
    TooManyGroups,
    parse_address,
)
from app.ports import Page, Store
from app.records import Client, Group

MAX_EXPANDED = 100_000
"""Most terminals a list of addresses may stand for, whatever the policy; above it the list is refused."""

_PARSED_AT_ONCE = 1_000
NAMED_AGAIN = 10
"""How often each terminal may be named by groups on average: a list whose groups have more members is refused."""

READ_AT_ONCE = 5000
"""Members that are read together, if not a single group has more."""

_TRIES = 5
_FIELD = "addresses"
"""The part of a request that errors of `expand` name."""

Asked = tuple[str, Collection[TerminalAddress], Collection[TerminalAddress]]
"""What many subscriptions may have in common: their client's id, their addresses, and those known to be groups."""

GroupKey = tuple[str, TerminalAddress]
"""Which group: its client's id and its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """What a list of addresses stands for."""

    terminals: tuple[TerminalAddress, ...]
    """Each once, in the order in which it was named first."""
    addresses: tuple[TerminalAddress, ...]
    """What was asked for in canonical form, each once: terminals and groups."""
    groups: tuple[TerminalAddress, ...] = ()
    """Every group that was visited, nested ones too, and those that were groups and are deleted."""
    left_out: int = 0
    """How many terminals more there are than were asked for at most; members of groups that were not read count each
    time."""


class GroupService:
    """Makes, changes, lists and expands groups. One per process; `start` it before use."""

    def __init__(self, store: Store, policies: Policies, clock: Callable[[], datetime]) -> None:
        """`clock` gives the time in UTC."""
        self._store = store
        self._policies = policies
        self._clock = clock
        self._directory: dict[str, dict[TerminalAddress, int]] = {}  # by client id: groups' versions
        self._meanwhile: set[GroupKey] | None = None  # what changed here, while the store is read
        self._making: Counter[str] = Counter()  # by client id: how many groups are being stored
        self._listeners: list[Callable[[GroupKey], None]] = []

    def on_change(self, listener: Callable[[GroupKey], None]) -> None:
        """Calls `listener` with the key of each group that was made, changed or deleted, after it was stored."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Learns which groups there are. Raises StoreUnavailable."""
        await self.reload()

    async def reload(self) -> None:
        """Reads which groups there are, and tells listeners of those that another node has made, changed or deleted.

        Raises StoreUnavailable.
        """
        seen: dict[str, set[TerminalAddress]] = {}
        ours = self._meanwhile = set[GroupKey]()
        try:
            async for portion in self._store.group_versions():
                for client_id, address, version in portion:
                    seen.setdefault(client_id, set()).add(address)
                    known = self._directory.get(client_id, {}).get(address)
                    if known != version and (client_id, address) not in ours:
                        self._changed((client_id, address), version)
            for client_id, own in list(self._directory.items()):
                for address in own.keys() - seen.get(client_id, set()):
                    if (client_id, address) not in ours:
                        self._changed((client_id, address), None)
                await asyncio.sleep(0)  # others have their turn between clients
        finally:
            self._meanwhile = None

    def client_deleted(self, client_id: str) -> None:
        """The client's groups are no longer in the store."""
        for address in list(self._directory.get(client_id, ())):
            self._changed((client_id, address), None)

    def is_group(self, client_id: str, address: str) -> bool:
        """Whether the (canonical) address is a group of this client's; another's is none."""
        return address in self._directory.get(client_id, ())

    async def create(self, client: Client, address: str, members: Sequence[str]) -> Group:
        """Makes a group of a `sip:` or `sips:` address and its members (terminals, or groups where allowed).

        Raises GroupExists (the client has it already), GroupNotAllowed, GroupTooLarge, InvalidAddress,
        NestedGroupNotAllowed, RateLimited, StoreUnavailable, TooManyGroups.
        """
        policy = self._policies.admit(client)
        if not policy.group_support:
            raise GroupNotAllowed("Groups are not supported here.", field="address")
        own = _parse(address, "address")
        if own.startswith("tel:"):
            raise InvalidAddress("A group's address is a sip: or sips: URI.", field="address")
        if len(self._directory.get(client.id, ())) + self._making[client.id] >= policy.max_groups:
            raise TooManyGroups(f"There are {policy.max_groups} groups already, as many as allowed.")
        now = self._clock()
        group = Group(
            address=own, client_id=client.id, members=self._members(client.id, policy, own, members), created_at=now
        )
        self._making[client.id] += 1  # counts from here on: others may come while it is stored
        try:
            await self._store.create_group(group)
        finally:
            self._making[client.id] -= 1
            if not self._making[client.id]:
                del self._making[client.id]
        self._changed((client.id, own), group.version)
        await self._store.audit(now, client.id, "group created", {"group": own, "members": str(len(group.members))})
        return group

    async def get(self, client: Client, address: str) -> Group:
        """The client's own group of this address; an operator's client without one gets the only other's.

        Raises GroupUnknown, InvalidAddress, InvalidRequest (several others have one), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        return await self._own(client, _parse(address, "address"))

    async def list(self, client: Client, page: Page) -> tuple[list[Group], str]:
        """The client's groups (an admin: everybody's) by address, and the next page's token ("" at the end).

        Raises InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        return await self._store.groups(None if client.admin else client.id, page)

    async def set_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Replaces the members, where the group still is of `expected_version` (None: whatever it is).

        Raises GroupChanged, and as `create` but for GroupExists.
        """
        policy = self._policies.admit(client)
        group = await self._own(client, _parse(address, "address"))
        return await self._change(
            client, group, self._members(group.client_id, policy, group.address, members), expected_version
        )

    async def add_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Adds members; those it has already do no harm. Raises as `set_members`."""
        policy = self._policies.admit(client)
        own = _parse(address, "address")
        return await self._edit(
            client,
            own,
            lambda group: self._members(group.client_id, policy, own, (*group.members, *members)),
            expected_version,
        )

    async def remove_members(
        self, client: Client, address: str, members: Sequence[str], *, expected_version: int | None = None
    ) -> Group:
        """Removes members; those it has not do no harm. Raises as `set_members`."""
        self._policies.admit(client)
        gone = {_parse(member, "members") for member in members}
        return await self._edit(
            client,
            _parse(address, "address"),
            lambda group: tuple([member for member in group.members if member not in gone]),
            expected_version,
        )

    async def delete(self, client: Client, address: str, *, expected_version: int | None = None) -> None:
        """Deletes the group, where it still is of `expected_version` (None: whatever it is); what is subscribed by it
        goes on without it. Raises GroupChanged, GroupUnknown, InvalidAddress, RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        group = await self._own(client, _parse(address, "address"))
        await self._store.delete_group(group.client_id, group.address, expected_version)
        self._changed((group.client_id, group.address), None)
        await self._store.audit(self._clock(), client.id, "group deleted", {"group": group.address})

    async def expand(
        self, client: Client, addresses: Sequence[str], policy: Policy, *, most: int | None = None
    ) -> Expansion:
        """What the addresses stand for: terminals as they are, groups as their members.

        With `most`, more terminals than that are refused. Raises GroupNotAllowed, GroupUnknown, InvalidAddress,
        NestedGroupNotAllowed, NoValidAddresses, StoreUnavailable, TooManyAddresses.
        """
        limit = MAX_EXPANDED if most is None else min(most, MAX_EXPANDED)
        if len(addresses) > MAX_EXPANDED:
            raise _too_many(MAX_EXPANDED)
        if most is not None and len(addresses) > 2 * most:  # some may be named twice
            raise _too_many(most)
        asked: dict[TerminalAddress, None] = {}
        for at in range(0, len(addresses), _PARSED_AT_ONCE):
            if at:
                await asyncio.sleep(0)  # 70,000 take 300 ms
            asked.update(dict.fromkeys([_parse(each, _FIELD) for each in addresses[at : at + _PARSED_AT_ONCE]]))
        terminals, groups = await self._expand(client, asked, policy, limit)
        if not terminals:
            raise NoValidAddresses("No terminal was given, or only empty groups.", field=_FIELD)
        return Expansion(terminals=tuple(terminals), addresses=tuple(asked), groups=tuple(groups))

    async def members_now(
        self, client_id: str, addresses: Iterable[TerminalAddress], most: int, known: Collection[TerminalAddress]
    ) -> Expansion:
        """What addresses that were allowed this client once stand for now, at most `most` terminals.

        Those `known` to be groups are that, and stand for nothing once they are deleted; the others are terminals,
        whatever groups were made since. Members are groups where they are now, too. Raises StoreUnavailable.
        """
        terminals: dict[TerminalAddress, None] = {}
        over: dict[TerminalAddress, None] = {}
        visited: dict[TerminalAddress, None] = {}
        level = asked = tuple(addresses)
        known = frozenset(known)
        own = frozenset(asked) - known
        may_read, not_read = most_members(most), 0
        while level:
            inner = [one for one in level if one not in own and one not in visited and self.is_group(client_id, one)]
            sizes = await self._store.group_sizes(client_id, inner) if inner else {}
            read: dict[TerminalAddress, int] = {}
            for address, size in sizes.items():
                if size <= may_read:
                    read[address] = size
                    may_read -= size
                else:
                    not_read += size
            members = await self._read_members(client_id, read)
            following: dict[TerminalAddress, None] = {}
            for address in level:
                if address not in sizes and address not in known and address not in visited:
                    (terminals if address in terminals or len(terminals) < most else over)[address] = None
                elif address not in visited:
                    visited[address] = None
                    following.update(dict.fromkeys(members.get(address, ())))
            level = tuple(following)
        return Expansion(
            terminals=tuple(terminals), addresses=asked, groups=tuple(visited), left_out=len(over) + not_read
        )

    async def _read_members(
        self, client_id: str, sizes: Mapping[TerminalAddress, int]
    ) -> dict[TerminalAddress, tuple[TerminalAddress, ...]]:
        """The members of these groups of the client's, whose sizes are known."""
        members: dict[TerminalAddress, tuple[TerminalAddress, ...]] = {}
        portion: list[TerminalAddress] = []
        left = READ_AT_ONCE
        for address, size in [*sizes.items(), (None, READ_AT_ONCE)]:
            if portion and (size > left or address is None):
                found = await self._store.groups_of(client_id, portion)
                members.update((one.address, one.members) for one in found.values())
                portion, left = [], READ_AT_ONCE
            if address is not None:
                portion.append(address)
                left -= size
        return members

    async def _expand(
        self, client: Client, asked: Iterable[TerminalAddress], policy: Policy, limit: int
    ) -> tuple[dict[TerminalAddress, None], dict[TerminalAddress, None]]:
        terminals: dict[TerminalAddress, None] = {}
        visited: dict[TerminalAddress, None] = {}
        level, nested, may_read = list(asked), False, most_members(limit)
        while level:
            inner = [address for address in level if self.is_group(client.id, address) and address not in visited]
            if inner and not policy.group_support:
                raise GroupNotAllowed(f"{inner[0]} is a group, which is not allowed here.", field=_FIELD)
            if inner and nested and not policy.nested_group_support:
                raise NestedGroupNotAllowed(f"{inner[0]} is a group in a group, which is not allowed.", field=_FIELD)
            sizes = await self._store.group_sizes(client.id, inner) if inner else {}
            if not nested and (gone := [address for address in inner if address not in sizes]):
                # deleted a moment ago, perhaps by another process
                raise GroupUnknown(f"There is no group {gone[0]} any more.", group=gone[0], field=_FIELD)
            visited.update(dict.fromkeys(inner))
            terminals.update(dict.fromkeys([address for address in level if address not in visited]))
            may_read -= sum(sizes.values())
            if may_read < 0 or len(terminals) > limit:
                raise _too_many(limit)
            members = await self._read_members(client.id, sizes)
            level, nested = list(dict.fromkeys([one for its in members.values() for one in its])), True
        return terminals, visited

    def _members(
        self, owner_id: str, policy: Policy, own: TerminalAddress, members: Sequence[str]
    ) -> tuple[TerminalAddress, ...]:
        if len(members) > 2 * policy.max_group_size:  # some may be named twice
            raise _too_large(policy)
        parsed = tuple(dict.fromkeys([_parse(member, "members") for member in members]))
        if len(parsed) > policy.max_group_size:
            raise _too_large(policy)
        for member in parsed:
            if not policy.nested_group_support and (member == own or self.is_group(owner_id, member)):
                raise NestedGroupNotAllowed(f"{member} is a group, which may not be in a group here.", field="members")
        return parsed

    async def _own(self, client: Client, address: TerminalAddress) -> Group:
        group = await self._store.group(client.id, address)
        if group is None and client.admin:
            others = [client_id for client_id, own in self._directory.items() if address in own]
            if len(others) > 1:
                raise InvalidRequest(f"{len(others)} clients have a group of this address.", field="address")
            if others:
                group = await self._store.group(others[0], address)
        if group is None:
            raise GroupUnknown(f"There is no group {address}.", group=address, field="address")
        return group

    async def _change(
        self, client: Client, group: Group, members: tuple[TerminalAddress, ...], expected_version: int | None
    ) -> Group:
        if expected_version is not None and expected_version < 1:
            raise InvalidRequest("A group's version is 1 or more.", field="expected_version")
        changed = await self._store.change_group(group.client_id, group.address, members, expected_version)
        self._changed((changed.client_id, changed.address), changed.version)
        await self._store.audit(
            self._clock(), client.id, "group changed", {"group": group.address, "members": str(len(members))}
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

    def _changed(self, key: GroupKey, version: int | None) -> None:
        client_id, address = key
        if self._meanwhile is not None:
            self._meanwhile.add(key)
        own = self._directory.setdefault(client_id, {})
        own.pop(address, None)
        if version is not None:
            own[address] = version
        if not own:
            del self._directory[client_id]
        for listener in self._listeners:
            listener(key)


def most_members(most: int) -> int:
    """How many members may be read for a list that may stand for so many terminals; some are named by several groups.
    A stated number, so that an operator sees which lists are refused."""
    return min(NAMED_AGAIN * most, MAX_EXPANDED)


def _parse(text: str, field: str) -> TerminalAddress:
    try:
        return parse_address(text)
    except InvalidAddress as error:
        error.details["field"] = field
        raise


def _too_many(most: int) -> TooManyAddresses:
    return TooManyAddresses(
        f"At most {most} terminals may be asked for, groups expanded.", field=_FIELD, most=str(most)
    )


def _too_large(policy: Policy) -> GroupTooLarge:
    return GroupTooLarge(f"A group may have {policy.max_group_size} members at most.", field="members")
