"""Which addresses are groups, and which terminals a list of addresses means.

Invariants: a group belongs to one client. For every other client, even an operator's, the same address is a terminal,
or that client's own group: no client can change what an address means to another. Expansion always ends: each group is
visited once, so cycles do no harm, and at most MAX_EXPANDED terminals result. Members are counted before they are read
(`most_members`), and read in portions, so that one list does not block the database for others. Addresses of groups
are kept in memory, so that a list without groups costs no query; members are not kept.

Deliberately absent: making and changing groups (`core/groups.py`), and limits themselves (`policy.py`).
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import (
    GroupNotAllowed,
    GroupUnknown,
    InvalidAddress,
    NestedGroupNotAllowed,
    NoValidAddresses,
    TooManyAddresses,
)
from app.domain.policy import Policy
from app.domain.records import Client
from app.ports.store import GroupStore

MAX_EXPANDED = 100_000
"""Most terminals that a list of addresses may mean, whatever the policy. A longer list is refused."""

_PARSED_AT_ONCE = 1_000
NAMED_AGAIN = 10
"""Groups may share members: so many members may be read for each terminal that a list may mean (`most_members`)."""

READ_AT_ONCE = 5000
"""Members that are read together; a larger group is read alone."""

_FIELD = "addresses"
"""The request's field that errors of `expand` name."""

Asked = tuple[str, Collection[TerminalAddress], Collection[TerminalAddress]]
"""A client id, the addresses of its request, and the groups among them. Many subscriptions may share one value."""

GroupKey = tuple[str, TerminalAddress]
"""The client id and the address of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The terminals that a list of addresses means."""

    terminals: tuple[TerminalAddress, ...]
    """Each once, in the order of its first mention."""
    addresses: tuple[TerminalAddress, ...]
    """The list in canonical form, terminals and groups, each once."""
    groups: tuple[TerminalAddress, ...] = ()
    """Every group in the list, also nested groups and deleted groups."""
    left_out: int = 0
    """How many terminals were left out because of the limit. A member of several groups that were not read counts once
    for each of these groups."""


class GroupDirectory:
    """One per process; `reload` it before use."""

    def __init__(self, store: GroupStore) -> None:
        self.on_group_changed: Callable[[GroupKey], None] = lambda key: None
        """Called with each group that was made, changed or deleted, after the store has it; may not block or raise."""
        self.changes = 0
        """How often a group was made, changed or deleted. If it grows while members are read, these may be outdated."""
        self._store = store
        self._versions: dict[str, dict[TerminalAddress, int]] = {}  # by client id
        self._meanwhile: set[GroupKey] | None = None  # groups that changed here while the store is read

    async def reload(self) -> None:
        """Reads the stored groups. Calls `on_group_changed` for groups that another node made, changed or deleted.

        Raises StoreUnavailable.
        """
        seen: dict[str, set[TerminalAddress]] = {}
        ours = self._meanwhile = set[GroupKey]()
        try:
            async for portion in self._store.group_versions():
                for client_id, address, version in portion:
                    seen.setdefault(client_id, set()).add(address)
                    known = self._versions.get(client_id, {}).get(address)
                    if known != version and (client_id, address) not in ours:
                        self.on_group_stored((client_id, address), version)
            for client_id, own in list(self._versions.items()):
                for address in own.keys() - seen.get(client_id, set()):
                    if (client_id, address) not in ours:
                        self.on_group_stored((client_id, address), None)
                await asyncio.sleep(0)  # other tasks run between clients
        finally:
            self._meanwhile = None

    def on_client_deleted(self, client_id: str) -> None:
        """Forgets the groups of a client that was deleted in the store; calls `on_group_changed` for each."""
        for address in list(self._versions.get(client_id, ())):
            self.on_group_stored((client_id, address), None)

    def is_group(self, client_id: str, address: str) -> bool:
        """Whether the (canonical) address is a group of this client. Another client's group is not."""
        return address in self._versions.get(client_id, ())

    def count(self, client_id: str) -> int:
        """How many groups the client has."""
        return len(self._versions.get(client_id, ()))

    def owners(self, address: TerminalAddress) -> list[str]:
        """The ids of the clients that have a group with this address."""
        return [client_id for client_id, own in self._versions.items() if address in own]

    def on_group_stored(self, key: GroupKey, version: int | None) -> None:
        """Records that a group was stored with this version, or deleted (None); calls `on_group_changed`."""
        client_id, address = key
        if self._meanwhile is not None:
            self._meanwhile.add(key)
        own = self._versions.setdefault(client_id, {})
        own.pop(address, None)
        if version is not None:
            own[address] = version
        if not own:
            del self._versions[client_id]
        self.changes += 1
        self.on_group_changed(key)

    async def expand(
        self,
        client: Client,
        addresses: Sequence[str],
        policy: Policy,
        *,
        most: int | None = None,
        invalid: dict[str, InvalidAddress] | None = None,
    ) -> Expansion:
        """The terminals that the addresses mean, groups replaced by their members. With `most`, a list that means more
        terminals is refused. Invalid addresses are put into `invalid` with their errors, if it is given.

        Raises GroupNotAllowed, GroupUnknown, InvalidAddress,
        NestedGroupNotAllowed, NoValidAddresses, StoreUnavailable, TooManyAddresses.
        """
        asked = await parse_all(addresses, _FIELD, most=most, invalid=invalid)
        expansion = await self.expand_parsed(client, asked, policy, most=most)
        if not expansion.terminals:
            why = f" {next(iter(invalid.values()))}" if invalid else ""
            raise NoValidAddresses(f"`addresses` names no terminal, or only empty groups.{why}", field=_FIELD)
        return expansion

    async def expand_parsed(
        self,
        client: Client,
        addresses: Sequence[TerminalAddress],
        policy: Policy,
        *,
        most: int | None,
        field: str = _FIELD,
    ) -> Expansion:
        """As `expand`, of canonical addresses, each once; they may mean no terminal. Errors name the `field`."""
        limit = MAX_EXPANDED if most is None else min(most, MAX_EXPANDED)
        terminals, groups = await self._expand(client, addresses, policy, limit, field)
        return Expansion(terminals=tuple(terminals), addresses=tuple(addresses), groups=tuple(groups))

    async def members_now(
        self, client_id: str, addresses: Iterable[TerminalAddress], most: int, known: Collection[TerminalAddress]
    ) -> Expansion:
        """The terminals, at most `most`, that addresses of an earlier `expand` mean now.

        An address in `known` was a group and stays one; after the group's deletion it means no terminal. Every other
        address stays a terminal, even if a group with this address was made since. Present members may be
        terminals or groups. Raises StoreUnavailable.
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
        """The members of these groups of the client, whose sizes are known."""
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
        self, client: Client, asked: Iterable[TerminalAddress], policy: Policy, limit: int, field: str
    ) -> tuple[dict[TerminalAddress, None], dict[TerminalAddress, None]]:
        terminals: dict[TerminalAddress, None] = {}
        visited: dict[TerminalAddress, None] = {}
        level, nested, may_read = list(asked), False, most_members(limit)
        while level:
            inner = [address for address in level if self.is_group(client.id, address) and address not in visited]
            if inner and not policy.group_support:
                raise GroupNotAllowed(
                    f"{inner[0]} is a group; this gateway does not allow groups. Name terminals.", field=field
                )
            if inner and nested and not policy.nested_group_support:
                raise NestedGroupNotAllowed(
                    f"{inner[0]} is a group in a group; this gateway does not allow nested groups. Name terminals.",
                    field=field,
                )
            sizes = await self._store.group_sizes(client.id, inner) if inner else {}
            if not nested and (gone := [address for address in inner if address not in sizes]):
                raise GroupUnknown(f"The group {gone[0]} was deleted a moment ago.", group=gone[0], field=field)
            visited.update(dict.fromkeys(inner))
            terminals.update(dict.fromkeys([address for address in level if address not in visited]))
            may_read -= sum(sizes.values())
            if may_read < 0 or len(terminals) > limit:
                raise too_many(limit, field)
            members = await self._read_members(client.id, sizes)
            level, nested = list(dict.fromkeys([one for its in members.values() for one in its])), True
        return terminals, visited


def most_members(most: int) -> int:
    """How many members may be read for a list that may mean `most` terminals. A list with more is refused. The number
    is part of the documentation for operators."""
    return min(NAMED_AGAIN * most, MAX_EXPANDED)


async def parse_all(
    addresses: Sequence[str], field: str, *, most: int | None, invalid: dict[str, InvalidAddress] | None = None
) -> tuple[TerminalAddress, ...]:
    """The addresses in canonical form, each once. Raises InvalidAddress (without `invalid`, into which invalid
    addresses are put), TooManyAddresses."""
    if len(addresses) > MAX_EXPANDED:
        raise too_many(MAX_EXPANDED, field)
    if most is not None and len(addresses) > 2 * most:  # some may be named twice
        raise too_many(most, field)
    parsed: dict[TerminalAddress, None] = {}
    for at in range(0, len(addresses), _PARSED_AT_ONCE):
        if at:
            await asyncio.sleep(0)  # other tasks run: parsing 70,000 addresses takes 300 ms
        parsed.update(dict.fromkeys(parse_list(addresses[at : at + _PARSED_AT_ONCE], field, at, invalid=invalid)))
    return tuple(parsed)


def parse_field(text: str, field: str) -> TerminalAddress:
    """As `parse_address`; an error names the part of the request that the text came from."""
    try:
        return parse_address(text)
    except InvalidAddress as error:
        error.details["field"] = field
        raise


def parse_list(
    texts: Sequence[str], field: str, first: int = 0, *, invalid: dict[str, InvalidAddress] | None = None
) -> list[TerminalAddress]:
    """As `parse_address`, for each of them. An error names the text's place in the request, such as `addresses[1]`;
    `first` is the place of the first text. With `invalid` nothing is raised: invalid texts are put into it."""
    try:
        return [parse_address(each) for each in texts]
    except InvalidAddress:
        parsed: list[TerminalAddress] = []
        for place, each in enumerate(texts, first):
            try:
                parsed.append(parse_field(each, f"{field}[{place}]"))
            except InvalidAddress as error:
                if invalid is None:
                    raise
                invalid[each] = error
        return parsed


def too_many(most: int, field: str) -> TooManyAddresses:
    """The error for a list that means more terminals than are allowed."""
    return TooManyAddresses(
        f"`{field}` means more than {most} terminals, groups expanded; ask for fewer.", field=field, most=str(most)
    )
