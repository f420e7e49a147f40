"""Brings a database's schema up to date: Alembic, run from here, without its command line and its `env` script.

Invariants: all that is missing is one transaction, on both databases, so that a process killed in the middle leaves
the schema as it was. Two processes that start at once take turns (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory
lock that ends with its transaction), and the second finds nothing to do.

A migration is a file in `versions/`, named and chained by its number. It uses `op` and plain SQLAlchemy types only:
tables of today are no part of a migration of yesterday. There is no way down: restore a backup.
"""

import asyncio
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from app.store.engines import DatabaseUnavailable, dispose, make_engine, on_connection, why
from app.store.tables import METADATA

TURN_TIMEOUT_MS = 60_000
"""How long a process waits while another one migrates."""

TELL_S = 2.0
"""When to tell that it lasts."""

MIGRATION_LOCK = 0x7465_726D
"""PostgreSQL's advisory lock."""

_HERE = Path(__file__).parent
_MOST_S = TURN_TIMEOUT_MS // 1000
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What `migrate` did: revisions of the schema before ("" for a new database) and now."""

    before: str
    now: str


async def migrate(url: str) -> Migrated:
    """Brings the schema of the database at `url` up to date; an SQLite file that is not there is made.

    Raises DatabaseUnavailable, also for a schema of a newer version of the gateway.
    """
    engine = make_engine(url, busy_timeout_ms=TURN_TIMEOUT_MS, create=True)
    slow = asyncio.get_running_loop().call_later(TELL_S, _tell_that_it_lasts)
    try:
        if isinstance(engine, Engine):
            await asyncio.to_thread(_use_wal, engine)
        return await on_connection(engine, _upgrade, writes=True)
    except CommandError as error:
        if re.search("locate revision", str(error)):
            raise DatabaseUnavailable("its schema is of a newer version of the gateway") from error
        raise DatabaseUnavailable(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnavailable(why(error)) from error
    finally:
        slow.cancel()
        await dispose(engine)


def _tell_that_it_lasts() -> None:
    _log.warning("database_not_ready", why="it is being migrated, or another process has locked it", most_s=_MOST_S)


def _use_wal(engine: Engine) -> None:
    """Readers then disturb no writer. The file keeps it. SQLite does not wait for others here, so this does."""
    give_up_s = time.monotonic() + TURN_TIMEOUT_MS / 1000
    while True:
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            try:
                (mode,) = raw.execute("PRAGMA journal_mode=WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up_s:
                    raise DatabaseUnavailable(why(error)) from error
            else:
                if mode == "wal":
                    return
                raise DatabaseUnavailable(f"SQLite cannot write ahead here: its journal mode is {mode}")
        time.sleep(0.02)


def _upgrade(connection: Connection, to: str = "head") -> Migrated:
    if connection.dialect.name == "postgresql":
        connection.execute(text("set local statement_timeout = 0"))
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    script = ScriptDirectory(str(_HERE), version_locations=[str(_HERE / "versions")])

    def upgrade(revision: Any, _context: object) -> Any:
        return script._upgrade_revs(to, revision)  # noqa: SLF001  # as alembic.command does it

    with EnvironmentContext(Config(), script, fn=upgrade, destination_rev=to) as environment:
        environment.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
        before = environment.get_context().get_current_revision() or ""
        environment.run_migrations()
        return Migrated(before=before, now=environment.get_context().get_current_revision() or "")
