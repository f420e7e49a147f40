"""Opens SQLite and PostgreSQL: from a URL to connections.

Invariants: SQLite runs with WAL and `synchronous=FULL`: a subscription that was confirmed must survive a power cut.
This costs one fsync per transaction; with NORMAL the last transactions could be lost. Every wait for a database has a
limit: for a lock, a connection, an answer. An SQLite file that other accounts can read is not opened (`files.py`).
"""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.store.files import keep_private

SQLITE = "sqlite"
POSTGRESQL = "postgresql+psycopg"

BUSY_TIMEOUT_MS = 2000
"""How long a statement waits for a lock before StoreUnavailable."""

TURN_TIMEOUT_S = 5.0
"""How long a call waits for a connection of this process before StoreUnavailable."""

SQLITE_CONNECTIONS = 5
"""One connection writes, the others read; each has its own thread."""

SQLITE_STATEMENTS = 256
"""Parsed statements in the cache of a connection."""

POSTGRESQL_CONNECTIONS = 10
STATEMENT_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 5
_PASSING = ("the database system is", "too many clients")
"""Temporary FATAL answers of PostgreSQL: it is starting, stopping, in recovery, or has no free connection."""

T = TypeVar("T")


class DatabaseUnavailable(Exception):
    """The database cannot be opened, or cannot be used by this version; the message has the reason."""

    @property
    def may_pass(self) -> bool:
        """Whether a retry may succeed: PostgreSQL did not answer, or is starting or stopping. Other refusals (a wrong
        password, an unknown database) and problems with a file are permanent."""
        error = self.__cause__
        if not isinstance(error, OperationalError | OSError) or isinstance(getattr(error, "orig", None), sqlite3.Error):
            return False
        said = why(error)
        return "FATAL" not in said or any(state in said for state in _PASSING)


def make_engine(url: str, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS, create: bool = False) -> AsyncEngine | Engine:
    """An engine (SQLite: a synchronous one, for threads); nothing is opened yet. `create`: SQLite may create the file.

    Raises DatabaseUnavailable for a URL of another kind of database.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == SQLITE:
            return _sqlite_engine(parsed, busy_timeout_ms, create)
        if parsed.drivername == POSTGRESQL:
            return _postgresql_engine(parsed, busy_timeout_ms)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise DatabaseUnavailable(str(error)) from error
    raise DatabaseUnavailable(f"{parsed.drivername} is not {SQLITE} or {POSTGRESQL}")


def _sqlite_engine(url: URL, busy_timeout_ms: int, create: bool) -> Engine:
    if not url.database or ":memory:" in url.database or url.query:
        raise DatabaseUnavailable(f"the URL must name a file and nothing else: {SQLITE}:///PATH")
    # Without a mode, SQLite would create an empty file, without tables, if there is none.
    path = Path(url.database).absolute()
    uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
    timeout_s = busy_timeout_ms / 1000

    def connected() -> sqlite3.Connection:
        keep_private(path, create=create)
        # None: sqlite3 begins no transaction by itself; `beginning` begins each transaction, also before DDL
        connection = sqlite3.connect(
            uri,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=SQLITE_STATEMENTS,
            uri=True,
        )
        try:
            for pragma in ("foreign_keys=ON", "synchronous=FULL"):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    engine = create_engine(
        url,
        creator=connected,
        hide_parameters=True,  # a failed statement would be logged with its secrets
        pool_size=SQLITE_CONNECTIONS,
        max_overflow=0,
        pool_timeout=TURN_TIMEOUT_S,
        pool_use_lifo=True,  # the connection used last has the statements in its cache
    )

    @event.listens_for(engine, "begin")
    def beginning(connection: Any) -> None:
        options = connection.get_execution_options()
        if not options.get("one_statement"):  # one statement is a transaction by itself
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def _postgresql_engine(url: URL, busy_timeout_ms: int) -> AsyncEngine:
    options = (
        f"-c timezone=UTC -c lock_timeout={busy_timeout_ms} -c statement_timeout={STATEMENT_TIMEOUT_MS} "
        f"-c idle_in_transaction_session_timeout={STATEMENT_TIMEOUT_MS}"
    )
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_size=POSTGRESQL_CONNECTIONS,
        max_overflow=0,
        pool_timeout=TURN_TIMEOUT_S,
        pool_use_lifo=True,
        connect_args={
            "options": options,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "terminal-status",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )


def shown_url(url: str) -> str:
    """The URL without its password, for people and logs."""
    return make_url(url).render_as_string(hide_password=True)


async def on_connection(engine: AsyncEngine | Engine, ask: Callable[[Connection], T], *, writes: bool = False) -> T:
    """Returns the result of `ask`, called in a transaction, which is committed if `writes`."""
    if isinstance(engine, AsyncEngine):
        async with engine.begin() if writes else engine.connect() as connection:
            return await connection.run_sync(ask)

    def asked() -> T:
        options = engine.execution_options(writes=writes)
        with options.begin() if writes else options.connect() as connection:
            return ask(connection)

    return await asyncio.to_thread(asked)


async def dispose(engine: AsyncEngine | Engine) -> None:
    """Closes the engine's connections."""
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()


async def check_database(url: str) -> str:
    """Opens the database at `url` and returns its version. Raises DatabaseUnavailable."""
    engine = make_engine(url, create=True)
    kind = engine.dialect.name
    question = text("select sqlite_version()" if kind == "sqlite" else "show server_version")
    try:
        return f"{kind} {await on_connection(engine, lambda connection: connection.execute(question).scalar_one())}"
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnavailable(why(error)) from error
    finally:
        await dispose(engine)


def why(error: BaseException) -> str:
    """The database's own error message, on one line. Not for callers: it may contain hosts, users and paths."""
    return " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
