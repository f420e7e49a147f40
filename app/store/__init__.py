"""The store: the one place with SQL. SQLite by default, PostgreSQL for more than one node; one schema for both.

`open_store` brings the schema up to date and returns a `SqlStore`, which implements `ports.store.Store`. Its base
classes are one for each noun (clients, groups, outbox, …), on top of `database.Database`, which has the transactions.

Deliberately absent: rules about subscriptions and deliveries, a clock, and randomness; callers bring times and ids.
"""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from app.domain.errors import StoreUnavailable
from app.store.clients import Clients
from app.store.database import PATIENCE_S, RETRY_S, Database
from app.store.encryption import SETTING, read_keys
from app.store.engines import BUSY_TIMEOUT_MS, DatabaseUnavailable, check_database, make_engine, shown_url, why
from app.store.exclusive import only_gateway
from app.store.migrations import migrate
from app.store.outbox import Outbox
from app.store.retention import Retention
from app.store.tickets import Tickets

__all__ = [
    "PATIENCE_S",
    "Database",
    "DatabaseUnavailable",
    "SqlStore",
    "check_database",
    "migrate",
    "only_gateway",
    "open_store",
    "read_keys",
    "shown_url",
]

_log = structlog.get_logger(__name__)


class SqlStore(Clients, Outbox, Retention, Tickets):
    """`ports.store.Store` over a database that is up to date; `open_store` makes one. `async with` closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def open_store(
    url: str, *, secret_key_file: Path | None = None, busy_timeout_ms: int = BUSY_TIMEOUT_MS, wait_s: float = 0.0
) -> SqlStore:
    """Brings the database at `url` up to date (creating an SQLite file if there is none) and returns the store.

    Waits `busy_timeout_ms` for a lock of another process, longer for its migration, and `wait_s` for a PostgreSQL that
    does not answer. Raises DatabaseUnavailable, also if secrets are encrypted with a key that is not in
    `secret_key_file`. Close the store with `aclose` or `async with`.
    """
    keys = read_keys(secret_key_file)
    await _migrate(url, wait_s)
    store = SqlStore(make_engine(url, busy_timeout_ms=busy_timeout_ms), keys)
    try:
        with store.patient():
            missing = sorted({*await store.keys_in_use()}.difference(keys.ids))
    except StoreUnavailable as error:
        await store.aclose()
        raise DatabaseUnavailable(why(error.__cause__ or error)) from error
    except BaseException:
        await store.aclose()
        raise
    if missing:
        await store.aclose()
        has = f"{secret_key_file} has the key {' and '.join(keys.ids)}" if keys.ids else "is not set"
        raise DatabaseUnavailable(f"its secrets are encrypted with the key {missing[0]}, and {SETTING} {has}")
    return store


async def _migrate(url: str, wait_s: float) -> None:
    """As `migrate`, but waits for a PostgreSQL that does not answer yet, and logs the wait."""
    clock, said = asyncio.get_running_loop().time, False
    give_up_s = clock() + wait_s
    while True:
        try:
            await migrate(url)
        except DatabaseUnavailable as error:
            if not error.may_pass or clock() >= give_up_s:
                raise
            if not said:
                _log.warning("database_not_ready", reason="gone", why=str(error), most_s=wait_s)
                said = True
        else:
            return
        await asyncio.sleep(RETRY_S)
