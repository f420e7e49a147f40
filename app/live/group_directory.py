"""Which addresses are groups, and which terminals a list of addresses means.

Invariants: a group belongs to one client; to every other client, operators' too, its address is a terminal like any,
and may be a group of its own. So no client can change what an address means to another. Expansion ends whatever the
members are: each group is visited once (so cycles do no harm), and no more than MAX_EXPANDED terminals are named.
Members are counted before they are read (`most_members`), and read in portions, so that no list keeps a thread of the
database from others. Which addresses are groups is kept in memory, so that a list without groups costs no query; their
members are not.

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
from app.ports import Store

MAX_EXPANDED = 100_000
"""Most terminals a list of addresses may stand for, whatever the policy; above it the list is refused."""

_PARSED_AT_ONCE = 1_000
NAMED_AGAIN = 10
"""How often each terminal may be named by groups on average: a list whose groups have more members is refused."""

READ_AT_ONCE = 5000
"""Members that are read together, if not a single group has more."""

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


class GroupDirectory:
    """Knows which addresses are groups, and expands them. One per process; `reload` it before use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[str, dict[TerminalAddress, int]] = {}  # by client id
        self._meanwhile: set[GroupKey] | None = None  # what changed here, while the store is read
        self._listeners: list[Callable[[GroupKey], None]] = []

    def on_change(self, listener: Callable[[GroupKey], None]) -> None:
        """Calls `listener` with the key of each group that was made, changed or deleted, after it was stored."""
        self._listeners.append(listener)

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
                    known = self._versions.get(client_id, {}).get(address)
                    if known != version and (client_id, address) not in ours:
                        self.changed((client_id, address), version)
            for client_id, own in list(self._versions.items()):
                for address in own.keys() - seen.get(client_id, set()):
                    if (client_id, address) not in ours:
                        self.changed((client_id, address), None)
                await asyncio.sleep(0)  # others have their turn between clients
        finally:
            self._meanwhile = None

    def client_deleted(self, client_id: str) -> None:
        """The client's groups are no longer in the store."""
        for address in list(self._versions.get(client_id, ())):
            self.changed((client_id, address), None)

    def is_group(self, client_id: str, address: str) -> bool:
        """Whether the (canonical) address is a group of this client's; another's is none."""
        return address in self._versions.get(client_id, ())

    def count(self, client_id: str) -> int:
        """How many groups the client has."""
        return len(self._versions.get(client_id, ()))

    def owners(self, address: TerminalAddress) -> list[str]:
        """The ids of the clients that have a group of this address."""
        return [client_id for client_id, own in self._versions.items() if address in own]

    def changed(self, key: GroupKey, version: int | None) -> None:
        """Takes in that a group was stored with this version, or deleted (None), and calls the listeners."""
        client_id, address = key
        if self._meanwhile is not None:
            self._meanwhile.add(key)
        own = self._versions.setdefault(client_id, {})
        own.pop(address, None)
        if version is not None:
            own[address] = version
        if not own:
            del self._versions[client_id]
        for listener in self._listeners:
            listener(key)

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
            asked.update(dict.fromkeys([parse_field(each, _FIELD) for each in addresses[at : at + _PARSED_AT_ONCE]]))
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


def most_members(most: int) -> int:
    """How many members may be read for a list that may stand for so many terminals; some are named by several groups.
    A stated number, so that an operator sees which lists are refused."""
    return min(NAMED_AGAIN * most, MAX_EXPANDED)


def parse_field(text: str, field: str) -> TerminalAddress:
    """As `parse_address`; an error names the part of the request that the text came from."""
    try:
        return parse_address(text)
    except InvalidAddress as error:
        error.details["field"] = field
        raise


def _too_many(most: int) -> TooManyAddresses:
    return TooManyAddresses(
        f"At most {most} terminals may be asked for, groups expanded.", field=_FIELD, most=str(most)
    )
