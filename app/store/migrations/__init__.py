"""Brings a database's schema up to date: Alembic, run from here, without its command line and its `env` script.

Invariants: all missing migrations run in one transaction, on both databases, so that a killed process leaves the schema
unchanged. Of two processes that start together, one waits (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock that
ends with its transaction), and then finds nothing to do.

A migration is a file in `versions/`, named and chained by its number. It uses `op` and plain SQLAlchemy types only,
never the classes of `store/tables.py`, which change later. There are no downgrades: restore a backup.
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

LOG_AFTER_S = 2.0
"""A migration that takes longer is logged."""

MIGRATION_LOCK = 0x7465_726D
"""The PostgreSQL advisory lock of a migration."""

_HERE = Path(__file__).parent
_MOST_S = TURN_TIMEOUT_MS // 1000
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """The schema's revisions before `migrate` ("": a new database) and after it."""

    before: str
    now: str


async def migrate(url: str) -> Migrated:
    """Brings the schema of the database at `url` up to date; a missing SQLite file is created.

    Raises DatabaseUnavailable, also for a schema of a newer version of the gateway.
    """
    engine = make_engine(url, busy_timeout_ms=TURN_TIMEOUT_MS, create=True)
    slow = asyncio.get_running_loop().call_later(LOG_AFTER_S, _log_that_it_lasts)
    try:
        if isinstance(engine, Engine):
            await asyncio.to_thread(_use_wal, engine)
        return await on_connection(engine, _upgrade, writes=True)
    except CommandError as error:
        if re.search("locate revision", str(error)):
            raise DatabaseUnavailable(
                "its schema belongs to a newer version of the gateway; install that version, or restore a backup"
            ) from error
        raise DatabaseUnavailable(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnavailable(why(error)) from error
    finally:
        slow.cancel()
        await dispose(engine)


def _log_that_it_lasts() -> None:
    _log.warning("database_not_ready", why="it is being migrated, or another process has locked it", most_s=_MOST_S)


def _use_wal(engine: Engine) -> None:
    """Switches the file to WAL for good, so that readers do not block the writer. SQLite does not wait for locks here,
    so this function does."""
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
