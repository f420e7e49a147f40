"""Clients, their API keys, and the audit log."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.changes import SubscriptionUpdate
from app.domain.errors import ClientExists, ClientUnknown
from app.domain.filters import AuditFilter
from app.domain.operations import AuditAction
from app.domain.records import AuditEntry, Client, OwedNotification, Subscription
from app.ports.store import ALL_ENTRIES, Page
from app.store import tables as t
from app.store.changes import audit_line
from app.store.database import AnyRow
from app.store.groups import Groups
from app.store.scans import scan_period
from app.store.subscriptions import Subscriptions


class Clients(Subscriptions, Groups):
    """As `ports.store.Store` says."""

    async def put_client(self, client: Client) -> None:
        """Creates or replaces a client. Raises ClientExists if another client has its name."""
        values = {
            "id": client.id,
            "name": client.name,
            "created_at": client.created_at,
            "admin": client.admin,
            "limits": msgspec.json.encode(dict(client.limits)).decode(),
            "disabled": client.disabled,
            "soap_callback_version": client.soap_callback_version,
        }
        upsert = sqlite.insert(t.clients) if self.sqlite else postgresql.insert(t.clients)
        changed = {name: value for name, value in values.items() if name != "id"}
        statement = upsert.values(values).on_conflict_do_update(index_elements=["id"], set_=changed)
        try:
            await self._write(lambda c: c.execute(statement))
        except IntegrityError:
            raise ClientExists(
                f"Another client has the name {client.name!r}; choose a different one.", name=client.name
            ) from None

    async def client(self, client_id: str) -> Client | None:
        """The client of this id, or None."""
        row = await self._first(select(t.clients).where(t.clients.c.id == client_id))
        return None if row is None else _client(row)

    async def clients(self) -> list[Client]:
        """All clients, sorted by name."""
        return [_client(row) for row in await self._all(select(t.clients).order_by(t.clients.c.name))]

    async def delete_client(
        self, client_id: str, end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]]
    ) -> list[Subscription]:
        """Deletes a client with its keys and groups, ends its subscriptions by `end`, and returns them."""

        async def work(c: AsyncConnection) -> list[Subscription]:
            if not (await c.execute(delete(t.clients).where(t.clients.c.id == client_id))).rowcount:
                raise ClientUnknown(f"There is no client {client_id!r}.", client=client_id)
            return await self._leave_nothing(c, client_id, end)

        if await self.client(client_id) is not None:
            await self.delete_groups(client_id)
        return await self._write(work)

    async def finish_client_deletion(
        self, client_id: str, end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]]
    ) -> list[Subscription]:
        """As `delete_client`, for groups and subscriptions that were created during the deletion."""
        await self.delete_groups(client_id)
        return await self._write(lambda c: self._leave_nothing(c, client_id, end))

    async def _leave_nothing(
        self,
        c: AsyncConnection,
        client_id: str,
        end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]],
    ) -> list[Subscription]:
        await c.execute(delete(t.groups).where(t.groups.c.client_id == client_id))
        return await self._end_all(c, client_id, end)

    async def put_key(self, client_id: str, key_id: str, key_hash: bytes, expires_at: datetime | None) -> None:
        """Stores the hash of a client's API key, or replaces the one of this id. Raises ClientUnknown."""
        upsert = sqlite.insert(t.client_keys) if self.sqlite else postgresql.insert(t.client_keys)
        changed = {"hash": key_hash, "expires_at": expires_at}
        statement = upsert.values(id=key_id, client_id=client_id, **changed).on_conflict_do_update(
            index_elements=["id"], set_=changed, where=t.client_keys.c.client_id == client_id
        )
        try:
            await self._write(lambda c: c.execute(statement))
        except IntegrityError:
            raise ClientUnknown(f"There is no client {client_id!r}.", client=client_id) from None

    async def key(self, key_id: str) -> tuple[Client, bytes, datetime | None] | None:
        """The key's client, hash and expiry; None if there is no such key."""
        statement = select(t.client_keys.c.hash, t.client_keys.c.expires_at, t.clients).join_from(
            t.client_keys, t.clients
        )
        row = await self._first(statement.where(t.client_keys.c.id == key_id))
        return None if row is None else (_client(row), row.hash, row.expires_at)

    async def keys(self, client_id: str) -> list[tuple[str, datetime | None]]:
        """The client's key ids and their expiry."""
        keys = t.client_keys.c
        rows = await self._all(select(keys.id, keys.expires_at).where(keys.client_id == client_id).order_by(keys.id))
        return [(row.id, row.expires_at) for row in rows]

    async def delete_key(self, key_id: str) -> None:
        """Deletes a key, if it exists."""
        statement = delete(t.client_keys).where(t.client_keys.c.id == key_id)
        await self._write(lambda c: c.execute(statement))

    async def audit(self, at: datetime, actor: str, action: AuditAction, details: Mapping[str, str]) -> None:
        """Adds an entry to the audit log."""
        statement = audit_line(AuditEntry(at=at, actor=actor, action=action, details=details))
        await self._write(lambda c: c.execute(statement))

    async def audit_entries(self, page: Page, only: AuditFilter = ALL_ENTRIES) -> tuple[list[AuditEntry], str]:
        """A page of the audit log, in the order of writing, and the next page's token."""
        names = ("audit", only)
        log = t.audit_log.c
        rest = []
        if only.actor:
            rest.append(log.who == only.actor)
        if only.action is not None:
            rest.append(log.what == only.action.value)

        async def work(c: AsyncConnection) -> tuple[Sequence[AnyRow], str]:
            return await scan_period(c, t.audit_log, only, [], rest, page, names)

        rows, following = await self._read(work)
        return [
            AuditEntry(
                at=row.at,
                actor=row.who,
                action=AuditAction(row.what),
                details=msgspec.json.decode(row.details),
            )
            for row in rows
        ], following


def _client(row: AnyRow) -> Client:
    return Client(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        admin=row.admin,
        limits=msgspec.json.decode(row.limits),
        disabled=row.disabled,
        soap_callback_version=row.soap_callback_version,
    )
