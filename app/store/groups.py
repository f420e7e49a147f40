"""Groups and their members. An address may be a group of several clients: each has its own."""

from collections.abc import Sequence

from sqlalchemy import FromClause, and_, delete, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import GroupChanged, GroupExists, GroupUnknown, TerminalAddress
from app.ports import Page
from app.records import Group
from app.store import tables as t
from app.store.database import AnyRow, Database
from app.store.pages import cut, position, token

_group = t.groups.c
_member = t.group_members.c


class Groups(Database):
    """As `ports.Store` says."""

    async def create_group(self, group: Group) -> None:
        """Raises GroupExists where the client has one of this address."""
        values = {
            "address": group.address,
            "client_id": group.client_id,
            "created_at": group.created_at,
            "version": group.version,
        }

        async def work(c: AsyncConnection) -> None:
            await c.execute(insert(t.groups), values)
            await _put_members(c, group.client_id, group.address, group.members)

        try:
            await self._write(work)
        except IntegrityError:
            raise GroupExists(f"{group.address} is a group already.", group=group.address) from None

    async def group(self, client_id: str, address: TerminalAddress) -> Group | None:
        """One group with its members, None where there is none."""
        return (await self.groups_of(client_id, [address])).get(address)

    async def groups_of(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, Group]:
        """Those of the addresses that are groups of this client."""
        of_client = select(t.groups).where(_group.client_id == client_id)
        picked = of_client.where(self._among(_group.address, addresses)).subquery()
        return {group.address: group for group in await self._groups(picked)}

    async def groups(self, client_id: str | None, page: Page) -> tuple[list[Group], str]:
        """A client's (None: everybody's) groups by address, and the next page's token."""
        names = ("groups", client_id)
        address, _, owner = position(page, *names).partition(" ")
        if client_id is not None:
            picked = select(t.groups).where(_group.client_id == client_id, _group.address > address)
        else:
            picked = select(t.groups).where(tuple_(_group.address, _group.client_id) > tuple_(address, owner))
        found = await self._groups(picked.order_by(_group.address, _group.client_id).limit(page.size + 1).subquery())
        groups, more = cut(found, page)
        return list(groups), token(f"{groups[-1].address} {groups[-1].client_id}", *names) if more else ""

    async def _groups(self, picked: FromClause) -> list[Group]:
        """The groups of a subquery with their members, by address: one statement, so that both are of one version."""
        statement = (
            select(picked, t.group_members.c.member)
            .join_from(
                picked,
                t.group_members,
                and_(_member.client_id == picked.c.client_id, _member.group_address == picked.c.address),
                isouter=True,
            )
            .order_by(picked.c.address, picked.c.client_id, _member.position)
        )

        async def work(c: AsyncConnection) -> list[Group]:
            members: dict[tuple[str, str], list[TerminalAddress]] = {}
            heads: dict[tuple[str, str], AnyRow] = {}
            for row in await c.execute(statement):
                key = (row.client_id, row.address)
                heads.setdefault(key, row)
                of = members.setdefault(key, [])
                if row.member is not None:
                    of.append(TerminalAddress(row.member))
            return [
                Group(
                    address=TerminalAddress(row.address),
                    client_id=row.client_id,
                    members=tuple(members[key]),
                    created_at=row.created_at,
                    version=row.version,
                )
                for key, row in heads.items()
            ]

        return await self._read(work)

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
            .values(version=_group.version + 1)
            .returning(_group.created_at, _group.version)
        )

        async def work(c: AsyncConnection) -> Group:
            row = (await c.execute(change)).one_or_none()
            if row is None:
                raise _unknown(address)
            _check_version(address, row.version - 1, expected_version)
            its = delete(t.group_members).where(_member.client_id == client_id, _member.group_address == address)
            await c.execute(its)
            await _put_members(c, client_id, address, members)
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


def _unknown(address: str) -> GroupUnknown:
    return GroupUnknown(f"{address} is no group.", group=address)


def _check_version(address: str, version: int, expected: int | None) -> None:
    if expected is not None and version != expected:
        raise GroupChanged(f"The group {address} is of version {version}, not {expected}.", group=address)


async def _put_members(c: AsyncConnection, client_id: str, address: str, members: Sequence[TerminalAddress]) -> None:
    if members:
        await c.execute(
            insert(t.group_members),
            [
                {"client_id": client_id, "group_address": address, "position": i, "member": member}
                for i, member in enumerate(members)
            ],
        )
