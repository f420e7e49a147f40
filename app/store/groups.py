"""Groups and their members. Groups belong to a client: two clients may use one address for different groups.

Invariants: a group's row has the number and total length of its members, so that every read, list or deletion can be
cut into portions before members are read.
"""

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from sqlalchemy import FromClause, Text, cast, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.addresses import TerminalAddress
from app.domain.errors import GroupChanged, GroupExists, GroupUnknown
from app.domain.filters import GroupFilter
from app.domain.records import Group
from app.ports.pages import position, token
from app.ports.store import ALL_GROUPS, GroupVersion, Page
from app.store import tables as t
from app.store.changes import Writing, as_json
from app.store.database import AnyRow, Work

PORTION = 5000
"""Groups per read at the start, and members per transaction when a client is deleted."""

MAX_PAGE_MEMBERS = 10_000
MAX_PAGE_CHARACTERS = 2_000_000
"""Most members on a page of groups, and their greatest total length; further groups are on the next page. gRPC clients
accept messages of 4 MB."""

_group = t.groups.c
_member = t.group_members.c


class Groups(Writing):
    """As `ports.store.Store` says."""

    async def create_group(self, group: Group) -> None:
        """Raises GroupExists if the client has a group of this address."""
        values = {
            "address": group.address,
            "client_id": group.client_id,
            "created_at": group.created_at,
            "version": group.version,
            **_sizes(group.members),
        }

        async def work(c: AsyncConnection) -> None:
            await c.execute(insert(t.groups), values)
            await self._put_members(c, group.client_id, group.address, group.members)

        try:
            await self._write(work)
        except IntegrityError:
            raise GroupExists(f"{group.address} is a group already.", group=group.address) from None

    async def group(self, client_id: str, address: TerminalAddress) -> Group | None:
        """The group with its members, or None."""
        return (await self.groups_of(client_id, [address])).get(address)

    async def groups_of(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, Group]:
        """The client's groups among the addresses."""
        of_client = select(t.groups).where(_group.client_id == client_id)
        picked = of_client.where(self._among(_group.address, addresses)).subquery()
        return {group.address: group for group in await self._read(lambda c: self._groups(c, picked))}

    async def group_sizes(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, int]:
        """The number of members of the client's groups among the addresses, in the order given."""
        which = select(_group.address, _group.members).where(_group.client_id == client_id)
        rows = await self._all(which.where(self._among(_group.address, addresses)))
        sizes = {row.address: row.members for row in rows}
        return {address: sizes[address] for address in addresses if address in sizes}

    async def group_versions(self) -> AsyncIterator[Sequence[GroupVersion]]:
        """All groups in portions, without their members."""
        key = tuple_(_group.client_id, _group.address)
        statement = select(_group.client_id, _group.address, _group.version).order_by(*key).limit(PORTION)
        last = ("", "")
        while rows := await self._all(statement.where(key > tuple_(*last))):
            last = rows[-1].client_id, rows[-1].address
            yield [(row.client_id, TerminalAddress(row.address), row.version) for row in rows]

    async def groups(self, page: Page, only: GroupFilter = ALL_GROUPS) -> tuple[list[Group], str]:
        """A page of groups, sorted by address, and the next page's token. A page ends early if its groups have too many
        members."""
        names = ("groups", only)
        address, _, owner = position(page, *names).partition(" ")
        key = tuple_(_group.address, _group.client_id)
        of_list = [key > tuple_(address, owner)]
        if only.client_id:
            of_list = [_group.client_id == only.client_id, _group.address > address]
        if only.member:
            having = select(_member.client_id, _member.group_address).where(_member.member == only.member)
            of_list.append(tuple_(_group.client_id, _group.address).in_(having))
        heads = select(_group.address, _group.client_id, _group.members, _group.characters).where(*of_list)
        heads = heads.order_by(_group.address, _group.client_id).limit(page.size + 1)

        async def work(c: AsyncConnection) -> tuple[list[Group], str]:
            found = (await c.execute(heads)).all()
            if not found:
                return [], ""
            on_page = found[: min(page.size, _fitting(found, MAX_PAGE_MEMBERS, MAX_PAGE_CHARACTERS))]
            last = on_page[-1].address, on_page[-1].client_id
            groups = await self._groups(c, select(t.groups).where(*of_list, key <= tuple_(*last)).subquery())
            return groups, token(" ".join(last), *names) if len(on_page) < len(found) else ""

        return await self._read(work)

    async def _groups(self, c: AsyncConnection, picked: FromClause) -> list[Group]:
        """The groups of a subquery, sorted by address. One statement, so that members and version are consistent. The
        members are read as one text, which takes a thirtieth of the time of one row per member."""
        its = (_member.client_id == picked.c.client_id) & (_member.group_address == picked.c.address)
        if self.sqlite:
            in_order = select(_member.member).where(its).order_by(_member.position).correlate(picked).subquery()
            members = select(func.json_group_array(in_order.c.member)).scalar_subquery()
        else:
            all_of_them = func.json_agg(aggregate_order_by(_member.member, _member.position))
            members = select(func.coalesce(cast(all_of_them, Text), "[]")).where(its).scalar_subquery()
        statement = select(picked, members.label("texts")).order_by(picked.c.address, picked.c.client_id)
        return [
            Group(
                address=TerminalAddress(row.address),
                client_id=row.client_id,
                members=tuple(msgspec.json.decode(row.texts)),
                created_at=row.created_at,
                version=row.version,
            )
            for row in await c.execute(statement)
        ]

    async def change_group(
        self,
        client_id: str,
        address: TerminalAddress,
        members: Sequence[TerminalAddress],
        expected_version: int | None,
    ) -> Group:
        """Replaces the members. Raises GroupUnknown, GroupChanged."""
        change = (
            update(t.groups)
            .where(_group.client_id == client_id, _group.address == address)
            .values(version=_group.version + 1, **_sizes(members))
            .returning(_group.created_at, _group.version)
        )

        async def work(c: AsyncConnection) -> Group:
            row = (await c.execute(change)).one_or_none()
            if row is None:
                raise _unknown(address)
            _check_version(address, row.version - 1, expected_version)
            its = delete(t.group_members).where(_member.client_id == client_id, _member.group_address == address)
            await c.execute(its)
            await self._put_members(c, client_id, address, members)
            return Group(
                address=address,
                client_id=client_id,
                members=tuple(members),
                created_at=row.created_at,
                version=row.version,
            )

        return await self._write(work)

    async def delete_group(self, client_id: str, address: TerminalAddress, expected_version: int | None) -> None:
        """Raises GroupUnknown, GroupChanged."""
        its = delete(t.groups).where(_group.client_id == client_id, _group.address == address)
        statement = its.returning(_group.version)

        async def work(c: AsyncConnection) -> None:
            version = (await c.execute(statement)).scalar_one_or_none()
            if version is None:
                raise _unknown(address)
            _check_version(address, version, expected_version)

        await self._write(work)

    async def delete_groups(self, client_id: str) -> None:
        """Deletes the client's groups in portions, so that other writes are not blocked for long."""
        own = select(_group.address, _group.members, _group.characters).where(_group.client_id == client_id)
        while rows := await self._all(own.order_by(_group.address).limit(PORTION)):
            last = rows[_fitting(rows, PORTION) - 1].address
            await self._write(_deleting(client_id, last))

    async def _put_members(
        self, c: AsyncConnection, client_id: str, address: TerminalAddress, members: Sequence[TerminalAddress]
    ) -> None:
        if members:
            texts = as_json([t.clean(member) for member in members])
            await c.execute(self._sql.add_members, {"client_id": client_id, "group_address": address, "texts": texts})


def _unknown(address: str) -> GroupUnknown:
    return GroupUnknown(f"{address} is not a group.", group=address)


def _check_version(address: str, version: int, expected: int | None) -> None:
    if expected is not None and version != expected:
        raise GroupChanged(f"The group {address} was changed meanwhile; read it again.", group=address, field="etag")


def _sizes(members: Sequence[TerminalAddress]) -> Mapping[str, int]:
    """The number and total length of members, as columns of `terminal_group`."""
    return {"members": len(members), "characters": sum(map(len, members))}


def _fitting(rows: Sequence[AnyRow], most_members: int, most_characters: int | None = None) -> int:
    """How many of these groups fit the limits together; at least one."""
    members = characters = 0
    for number, row in enumerate(rows):
        members, characters = members + row.members, characters + row.characters
        if number and (members > most_members or (most_characters is not None and characters > most_characters)):
            return number
    return len(rows)


def _deleting(client_id: str, last: str) -> Work[None]:
    """Deletes the client's groups up to the address `last`."""

    async def work(c: AsyncConnection) -> None:
        await c.execute(delete(t.groups).where(_group.client_id == client_id, _group.address <= last))

    return work
