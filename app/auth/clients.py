"""Administration of clients and their API keys (`ClientRegistry`), and following what other processes change.

Invariants: a key's secret is 256 random bits, returned once and stored as its SHA-256. Each change is written to the
audit log with who made it, without secrets.

Deliberately absent: permissions. The callers are the command line, which has the database, and operators' services.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NoReturn

import structlog

from app.auth.credentials import KEY_PREFIX, hash_secret
from app.domain.errors import ClientExists, ClientUnknown, InvalidRequest, StoreUnavailable, TooManyClients
from app.domain.operations import AuditAction
from app.domain.owed import ClientDeletion
from app.domain.policy import check_limits
from app.domain.records import ANONYMOUS, Client
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import check_callback_version
from app.ports.store import Store

MAX_KEYS = 8
"""The largest number of keys of one client. When a new key exceeds it, the keys that expire first are deleted."""

MAX_CLIENTS = 10_000
"""The largest number of clients of one gateway; a further one is refused."""

FOLLOW_S = 10.0
"""How often changes by other processes are looked for."""

MAX_OVERLAP_S = 90 * 86_400
DEFAULT_OVERLAP_S = 86_400

_log = structlog.get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_@]{0,63}")
_NAME = re.compile(r"[\w.\-@]([\w .\-@]{0,62}[\w.\-@])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """An API key without its secret; `expires_at` None: never."""

    id: str
    expires_at: datetime | None


class ClientRegistry:
    """Adds, lists, rotates, disables and deletes clients.

    `on_changed` is called after each change, so that remembered credentials are looked up again; `on_disabled` for a
    client that was disabled. `delete` deletes a client with its data, and returns how many subscriptions ended; the
    default does so in the store only, for a process without live subscriptions.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime],
        contracts: SinkContracts,
        on_changed: Callable[[], None] = lambda: None,
        delete: Callable[[str], Awaitable[int]] | None = None,
        on_disabled: Callable[[str], None] = lambda client_id: None,
    ) -> None:
        self.max_clients = MAX_CLIENTS
        self._store = store
        self._clock = clock
        self._contracts = contracts
        self._on_changed = on_changed
        self._delete = delete
        self._on_disabled = on_disabled

    async def add(
        self,
        name: str,
        *,
        who: str,
        client_id: str = "",
        admin: bool = False,
        limits: Mapping[str, int | bool] = {},
        soap_callback_version: str = "",
    ) -> tuple[Client, str]:
        """Creates a client and returns it with its API key. `client_id` is for clients that certificates or access
        tokens name. (A client with the id of a deleted one can read the usage records of that one.)

        Raises ClientExists, InvalidRequest, StoreUnavailable, TooManyClients.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest("A client's name must have 1 to 64 letters, digits, spaces and .-_@.", field="name")
        if client_id and (not _ID.fullmatch(client_id) or client_id == ANONYMOUS):
            raise InvalidRequest(
                "A client's id must have 1 to 64 characters of A-Z a-z 0-9 . - _ @.", field="client_id"
            )
        check_limits(limits)
        check_callback_version(soap_callback_version)
        if client_id and await self._store.client(client_id):
            raise ClientExists(f"A client with the id {client_id!r} exists already.", name=client_id)
        if len(await self._store.clients()) >= self.max_clients:
            raise TooManyClients(f"Limit reached: {self.max_clients} clients. Delete one first.")
        now = self._clock()
        client = Client(
            id=client_id or f"c{secrets.token_hex(8)}",
            name=name,
            created_at=now,
            admin=admin,
            limits=dict(limits),
            soap_callback_version=soap_callback_version,
        )
        await self._store.put_client(client)
        key = await self._new_key(client)
        details = {"client": client.id, "name": name, "admin": str(admin)}
        if soap_callback_version:
            details["soap_callback_version"] = soap_callback_version
        await self._store.audit(now, who, AuditAction.CLIENT_ADDED, details)
        self._on_changed()
        return client, key

    async def clients(self) -> list[Client]:
        """All clients, sorted by name. Raises StoreUnavailable."""
        return await self._store.clients()

    async def keys(self, client_id: str) -> list[ClientKey]:
        """A client's keys, the ones that expire last first. Raises StoreUnavailable."""
        found = [
            ClientKey(id=key_id, expires_at=expires_at) for key_id, expires_at in await self._store.keys(client_id)
        ]
        return sorted(found, key=lambda key: (key.expires_at is not None, _backwards(key.expires_at), key.id))

    async def find(self, named: str) -> Client:
        """The client of this id, or else of this name. Raises ClientUnknown, StoreUnavailable."""
        if client := await self._store.client(named):
            return client
        for client in await self._store.clients():
            if client.name == named:
                return client
        raise ClientUnknown(f"There is no client with the id or name {named[:64]!r}.", client=named[:64])

    async def rotate(self, client_id: str, *, who: str, overlap_s: int = DEFAULT_OVERLAP_S) -> tuple[Client, str]:
        """Returns the client with a new API key. Its other keys expire after `overlap_s` seconds.

        Raises ClientUnknown, InvalidRequest, StoreUnavailable.
        """
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise InvalidRequest(f"The overlap must be 0 to {MAX_OVERLAP_S} seconds.", field="overlap")
        client = await self.client(client_id)
        now = self._clock()
        ends_at = now + timedelta(seconds=overlap_s)
        keys = await self.keys(client_id)
        new = await self._new_key(client)
        for place, key in enumerate(keys):
            if place >= MAX_KEYS - 1 or overlap_s == 0 or (key.expires_at is not None and key.expires_at <= now):
                await self._store.delete_key(key.id)
            elif (key.expires_at is None or key.expires_at > ends_at) and (found := await self._store.key(key.id)):
                await self._store.put_key(client_id, key.id, found[1], ends_at)
        await self._store.end_tickets(client_id, ends_at)  # made with an earlier key
        await self._store.audit(
            now, who, AuditAction.CLIENT_KEY_ROTATED, {"client": client_id, "overlap_s": str(overlap_s)}
        )
        self._on_changed()
        return client, new

    async def set_disabled(self, client_id: str, disabled: bool, *, who: str) -> Client:
        """Refuses the client's credentials from now on, or accepts them again. Raises ClientUnknown,
        StoreUnavailable."""
        client = replace(await self.client(client_id), disabled=disabled)
        await self._store.put_client(client)
        action = AuditAction.CLIENT_DISABLED if disabled else AuditAction.CLIENT_ENABLED
        await self._store.audit(self._clock(), who, action, {"client": client_id})
        self._on_changed()
        if disabled:
            self._on_disabled(client_id)
        return client

    async def delete(self, client_id: str, *, who: str) -> int:
        """Deletes the client with its keys and groups, and ends its subscriptions. Returns their number.

        Raises ClientUnknown, StoreUnavailable.
        """
        client, now = await self.client(client_id), self._clock()
        if self._delete is not None:
            ended = await self._delete(client_id)
        else:
            ended = len(await self._store.delete_client(client_id, ClientDeletion(self._contracts, now)))
        await self._store.end_tickets(client_id, now)  # a later client may get the same id
        await self._store.audit(now, who, AuditAction.CLIENT_DELETED, {"client": client_id, "name": client.name})
        self._on_changed()
        return ended

    async def client(self, client_id: str) -> Client:
        """Raises ClientUnknown, StoreUnavailable."""
        if client := await self._store.client(client_id):
            return client
        raise ClientUnknown(f"There is no client {client_id[:64]!r}.", client=client_id[:64])

    async def _new_key(self, client: Client) -> str:
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        await self._store.put_key(client.id, key_id, hash_secret(secret), None)
        return f"{KEY_PREFIX}{key_id}_{secret}"


class ClientFollower:
    """Notices when another process (`terminal-status clients`) deletes or disables a client, by reading all clients
    every FOLLOW_S. `run` it as a task, and cancel the task.
    """

    def __init__(
        self, store: Store, *, on_deleted: Callable[[str], Awaitable[object]], on_disabled: Callable[[str], None]
    ) -> None:
        self._store = store
        self._on_deleted = on_deleted
        self._on_disabled = on_disabled
        self._seen: dict[str, Client] = {}

    async def look(self) -> None:
        """Reads the clients once. Raises StoreUnavailable."""
        clients = {client.id: client for client in await self._store.clients()}
        for client_id, client in self._seen.items():
            now = clients.get(client_id)
            if now is None:
                await self._on_deleted(client_id)
            elif now.disabled and not client.disabled:
                self._on_disabled(client_id)
        self._seen = clients  # last: if a callback raised, the client is handled again the next time

    async def run(self) -> NoReturn:
        """Looks until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable as error:
                _log.warning("clients_not_followed", why=str(error))
            except Exception:
                _log.exception("clients_not_followed")
            await asyncio.sleep(FOLLOW_S)


def _backwards(expires_at: datetime | None) -> float:
    return -expires_at.timestamp() if expires_at else 0.0
