"""Transactions for the parts of the store, on both databases, also while the database is unavailable.

Invariants: a write is one transaction. It runs as a task of the store, so that a cancelled caller leaves no half-used
connection. SQLite has one writer at a time (`BEGIN IMMEDIATE`, and a lock here instead of polling for the file's lock);
PostgreSQL has one for each connection. The work of a transaction (`Work`) is written once for both databases and awaits
only its connection. On PostgreSQL these awaits run in the event loop. On SQLite the whole work runs in a thread without
suspending: a thread switch for each statement, as in asyncio drivers for SQLite, takes several times as long as the
statement. Errors that mean locked, full or gone become StoreUnavailable; other database errors are defects and are
raised. A commit is on disk before it is acknowledged. If the connection drops during PostgreSQL's COMMIT, we cannot
know whether it happened, and the write is repeated: so every write must be idempotent.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import structlog
from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, Executable, Row, Select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.errors import StoreUnavailable
from app.store.engines import POSTGRESQL_CONNECTIONS, SQLITE_CONNECTIONS, TURN_TIMEOUT_S, dispose, why
from app.store.statements import LISTED, among, listed

TRANSACTION_S = 10.0
"""Time limit of a transaction, after which the database counts as unavailable and the connection is closed. If that
happens during COMMIT, compare-and-set and ids make the repetition safe."""

PATIENCE_S = 60.0
"""How long each call at the start of the gateway waits for an unavailable database."""

RETRY_S = 0.5

CLOSE_S = 10.0
"""How long `aclose` waits for running transactions."""

ATTEMPTS = 3
"""How often a transaction is tried that loses its connection before COMMIT, or is aborted by a deadlock."""

_DEFECTS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)
_AGAIN = {"40001", "40P01"}  # serialization_failure, deadlock_detected

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
T = TypeVar("T")
Work = Callable[[AsyncConnection], Coroutine[Any, Any, T]]

_log = structlog.get_logger(__name__)


class Database:
    """Base of the parts of the store: transactions that read and write. Used from one event loop."""

    def __init__(self, engine: AsyncEngine | Engine) -> None:
        self.engine = engine
        """For tests and operators' tools only."""
        self.sqlite = engine.dialect.name == "sqlite"
        self._free_threads = asyncio.Semaphore(SQLITE_CONNECTIONS)
        self._threads = ThreadPoolExecutor(SQLITE_CONNECTIONS, thread_name_prefix="sqlite")
        self._writers = asyncio.Semaphore(1 if self.sqlite else POSTGRESQL_CONNECTIONS)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._path = Path(str(engine.url.database)) if self.sqlite else None
        self._inode = self._present()
        self._available = True
        self._away_for_writes = False
        self._patient = False

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Inside this context, calls wait up to PATIENCE_S for a locked or unavailable database, and log the wait. For
        the start, when there is no caller yet to whom StoreUnavailable could be reported."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    async def aclose(self) -> None:
        """Waits up to CLOSE_S for running transactions, and closes every connection."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._threads.shutdown(wait=False)
        await dispose(self.engine)

    async def _read(self, work: Work[T]) -> T:
        """Returns the result of `work`. On SQLite all statements read one snapshot; on PostgreSQL each statement reads
        the latest state."""
        return await self._owned(lambda: self._transact(work))

    async def _all(self, statement: AnySelect) -> Sequence[AnyRow]:
        async def work(c: AsyncConnection) -> Sequence[AnyRow]:
            return (await c.execute(statement)).all()

        return await self._owned(lambda: self._transact(work, one_statement=True))

    async def _first(self, statement: AnySelect) -> AnyRow | None:
        rows = await self._all(statement)
        return rows[0] if rows else None

    async def _write(self, work: Work[T], *, one_statement: bool = False) -> T:
        """Returns the result of `work` after its commit. If it raises, nothing is written."""
        return await self._owned(lambda: self._wait_and_write(work, one_statement))

    async def _wait_and_write(self, work: Work[T], one_statement: bool) -> T:
        await self._one_of(self._writers, writes=True)
        try:
            return await self._transact(work, writes=True, one_statement=one_statement)
        finally:
            self._writers.release()

    async def _one_of(self, free: asyncio.Semaphore, *, writes: bool = False) -> None:
        """Acquires `free` within TURN_TIMEOUT_S, without starting a timer if it is free now."""
        try:
            if free.locked():
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    await free.acquire()
            else:
                await free.acquire()
        except TimeoutError as error:
            raise self._unavailable("locked", error, writes=writes) from None

    async def _owned(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.create_task(self._patiently(begin) if self._patient else begin())
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _patiently(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        give_up_s = asyncio.get_running_loop().time() + PATIENCE_S
        said = False
        while True:
            try:
                return await begin()
            except StoreUnavailable as error:
                if asyncio.get_running_loop().time() >= give_up_s:
                    raise
                if not said:
                    _log.warning("database_not_ready", reason=error.details["reason"], most_s=PATIENCE_S)
                    said = True
            await asyncio.sleep(RETRY_S)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the caller may be cancelled

    async def _transact(self, work: Work[T], **options: bool) -> T:
        writes = options.get("writes", False)
        for attempts_left in reversed(range(ATTEMPTS)):
            await self._same_file()
            turn = _Turn(options)
            try:
                if isinstance(self.engine, AsyncEngine):
                    async with asyncio.timeout(TRANSACTION_S):
                        result = await _in_loop(self.engine, work, turn)
                else:
                    result = await self._when_a_thread_is_free(self.engine, work, turn)
            except asyncio.CancelledError:
                turn.left = True
                raise
            except TimeoutError as error:
                turn.left = True
                raise self._unavailable("hangs", error, writes=writes) from error
            except (DBAPIError, InterfaceError) as error:
                if isinstance(error, _DEFECTS) and not error.connection_invalidated:
                    raise
                again = error.connection_invalidated or getattr(error.orig, "sqlstate", "") in _AGAIN
                if not again or turn.committing or not attempts_left:
                    raise self._unavailable(_reason(error), error, writes=writes) from error
            except NoConnectionFree as error:
                raise self._unavailable("locked", error, writes=writes) from error
            except OSError as error:
                raise self._unavailable("gone", error, writes=writes) from error
            else:
                if not self._available and (writes or not self._away_for_writes):  # a locked database can still be read
                    self._available, self._away_for_writes = True, False
                    _log.info("store_available")
                return result
        raise AssertionError("the last attempt raises or returns")

    async def _when_a_thread_is_free(self, engine: Engine, work: Work[T], turn: "_Turn") -> T:
        loop = asyncio.get_running_loop()
        await self._one_of(self._free_threads)

        def free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits
                loop.call_soon_threadsafe(self._free_threads.release)

        done = self._threads.submit(_in_thread, engine, work, turn)
        done.add_done_callback(free)  # not earlier, even if the caller was cancelled
        async with asyncio.timeout(TRANSACTION_S):
            return await asyncio.wrap_future(done)

    def _unavailable(self, reason: str, error: BaseException, *, writes: bool = False) -> StoreUnavailable:
        self._away_for_writes |= writes
        if self._available:  # once per outage, not for each call
            self._available = False
            _log.error("store_unavailable", reason=reason, why=why(error))
        return StoreUnavailable("The database cannot be used now; nothing was changed.", retry_after_s=1, reason=reason)

    async def _same_file(self) -> None:
        """Raises StoreUnavailable if the database file was removed or replaced: SQLite would write to the old file, and
        everything written would be lost."""
        if self._path is None or (inode := self._present()) == self._inode:
            return
        if not inode:
            raise self._unavailable("gone", FileNotFoundError(f"{self._path} is not there"))
        await dispose(self.engine)
        self._inode = inode

    def _present(self) -> int:
        try:
            return self._path.stat().st_ino if self._path else 0
        except OSError:
            return 0

    def _among(self, column: ColumnElement[Any], values: Iterable[str] | Iterable[int]) -> ColumnElement[bool]:
        """Whether the column is one of the values."""
        return among(column, None, listed(values, for_sqlite=self.sqlite), for_sqlite=self.sqlite)

    def _listed(self, values: Iterable[str] | Iterable[int]) -> dict[str, Any]:
        """The parameter of a prepared statement."""
        return {LISTED: listed(values, for_sqlite=self.sqlite)}


class _Turn:
    """One attempt at a transaction."""

    __slots__ = ("committing", "left", "options")

    def __init__(self, options: Mapping[str, bool]) -> None:
        self.options = options
        self.committing = False
        self.left = False
        """Whether the caller has stopped waiting. Then no further statement is executed, and nothing is committed. A
        statement that commits by itself may be running, so it must be idempotent."""

    def still(self) -> None:
        """Raises TimeoutError if the caller has stopped waiting."""
        if self.left:
            raise TimeoutError


async def _in_loop(engine: AsyncEngine, work: Work[T], turn: _Turn) -> T:
    connection = await engine.connect()
    try:
        result = await work(connection)
        turn.committing = True
        if turn.options.get("writes"):
            await connection.commit()
    except asyncio.CancelledError:
        await connection.invalidate()  # a database that hangs does not answer a rollback either
        raise
    finally:
        await connection.close()
    return result


def _in_thread(engine: Engine, work: Work[T], turn: _Turn) -> T:
    with engine.connect() as connection:
        connection.execution_options(**turn.options)  # options of an engine would take several times as long
        result = _done_at_once(work(cast("AsyncConnection", _Here(connection, turn))))
        turn.still()
        turn.committing = True
        if turn.options.get("writes"):
            connection.commit()
    return result


class _Here:
    """A synchronous connection with the methods of AsyncConnection that `Work` uses."""

    def __init__(self, connection: Connection, turn: _Turn) -> None:
        self._connection = connection
        self._turn = turn

    async def execute(self, statement: Executable, parameters: Any = None) -> "CursorResult[Any]":
        self._turn.still()
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> "CursorResult[Any]":
        self._turn.still()
        return self._connection.exec_driver_sql(statement, parameters)


def _done_at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        call.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    call.close()
    raise AssertionError("the work of a transaction awaited something other than its connection")


def _reason(error: DBAPIError) -> str:
    said, state = str(error.orig).lower(), getattr(error.orig, "sqlstate", None) or ""
    if "locked" in said or "busy" in said or state in {"55P03", "57014"} | _AGAIN:
        return "locked"
    if "is full" in said or state.startswith("53"):
        return "full"
    return "gone"
